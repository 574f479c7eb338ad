"""What boxmill needs of an S3 server holds on each that the tests use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.exceptions import ClientError


def test_wrong_keys_are_refused(any_s3_server):
    client = boto3.client("s3", aws_access_key_id=any_s3_server.access_key, aws_secret_access_key="wrong")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.put_object(Bucket=any_s3_server.bucket, Key="probe", Body=b"1")


def test_of_many_conditional_puts_one_wins(any_s3_server):
    clients = [boto3.session.Session().client("s3") for _ in range(8)]
    bucket = any_s3_server.bucket
    for key in ("race-1", "race-2", "race-3"):
        with ThreadPoolExecutor(len(clients)) as pool:
            answers = list(pool.map(put_new, clients, [bucket] * 8, [key] * 8, range(8)))
        assert answers.count(200) == 1, answers
        assert set(answers) <= {200, 409, 412}
        assert clients[0].get_object(Bucket=bucket, Key=key)["Body"].read() == b"%d" % answers.index(200)


def put_new(client, bucket: str, key: str, number: int) -> int:
    try:
        return client.put_object(Bucket=bucket, Key=key, Body=b"%d" % number, IfNoneMatch="*")["ResponseMetadata"][
            "HTTPStatusCode"
        ]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
