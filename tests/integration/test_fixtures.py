"""The shared fixtures hold what they promise."""

from __future__ import annotations

import boto3
import pytest
from botocore.exceptions import ClientError


def test_the_s3_server_refuses_wrong_keys_and_accepts_its_own(s3_server):
    def put(key: str, secret: str) -> None:
        client = boto3.client("s3", aws_access_key_id=key, aws_secret_access_key=secret)
        client.put_object(Bucket=s3_server.bucket, Key="probe", Body=b"1")

    put(s3_server.access_key, s3_server.secret_key)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        put(s3_server.access_key, "wrong")
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        put("nobody", "wrong")
