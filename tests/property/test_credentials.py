"""No secret of a URI is shown, whatever it is made of, and nothing else is lost."""

from __future__ import annotations

import re
import string

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.credentials import has_credentials, redact

BUCKETS = ("s3", "s3a", "gs")
scheme = st.sampled_from([*BUCKETS, "https", "http", "memory", "sftp"])
name = st.text(string.ascii_letters + string.digits + "-.", min_size=1, max_size=8).filter(lambda n: n != "labels")
secret = st.text(string.ascii_letters + string.digits + "/+=:?#&%~!$*,;", min_size=6, max_size=40)
place = st.tuples(st.sampled_from(["", ":8080"]), st.sampled_from(["/a/b.jpg", "/x y/é.tar", "/d@labels/gt:3", ""]))
chain = st.sampled_from(["", "simplecache::", "zip://in/side.jpg::", "filecache::simplecache::"])


@settings(max_examples=200, deadline=None)
@given(chain, scheme, name, secret, name, place)
def test_a_password_goes_and_the_rest_stays(
    before: str, scheme: str, user: str, password: str, host: str, place: tuple[str, str]
) -> None:
    assume("::" not in f":{password}")
    # Nobody can tell these from a host with a port.
    assume(scheme in BUCKETS or not re.match(r"\d{0,5}(?:[/?#]|$)", password))
    port, path = place
    plain = f"{scheme}://{host}{'' if scheme in BUCKETS else port}{path}"
    uri = f"{before}{scheme}://{user}:{password}@{plain.split('://', 1)[1]}"
    assert redact(uri) == before + plain
    assert has_credentials(uri) and not has_credentials(before + plain)
    assert redact(before + plain) == before + plain


@settings(max_examples=200, deadline=None)
@given(chain, scheme, st.text(string.ascii_letters + string.digits + "+/=@.:%", min_size=8), name)
def test_a_signed_query_goes(before: str, scheme: str, signature: str, host: str) -> None:
    assume("::" not in signature)
    uri = f"{before}{scheme}://{host}/a.jpg?X-Amz-Expires=9&X-Amz-Signature={signature}"
    assert redact(uri) == f"{before}{scheme}://{host}/a.jpg" and has_credentials(uri)
