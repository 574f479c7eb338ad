"""Credentials in URIs: taken out of what is shown, refused where a URI is written down to be read again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_CHAIN = re.compile(r"::(?=[a-z0-9+.-]+(?:::|://))", re.IGNORECASE)  # simplecache::https://host/a
_URI = re.compile(r"([a-z0-9+.-]+://)([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_PORT = re.compile(r"[^:]*:\d{0,5}|.*\]:\d{0,5}", re.DOTALL)
_REFERENCE = "@labels"  # behind a bucket's name it makes a dataset reference: s3://bucket@labels/gt
# Buckets have no port, so that a colon there is one between user and password.
_BUCKETS = ("s3://", "s3a://", "gs://", "gcs://")
# A name without a password is one of a user, or a container's (abfs); but of these schemes it is a token.
_TOKENS = ("http://", "https://", "ftp://")
_SIGNED = re.compile(
    r"(?:^|[&;])(?:sig|auth|[^=&;]*(?:signature|token|secret|passw|credential|api_?key|access_?key)[^=&;]*)=",
    re.IGNORECASE,
)


def redact(uri: str) -> str:
    """The URI without user name, password or signed query: safe for rows, logs and messages.

    Of a chain (``simplecache::https://...``) each URI. Where a password may end in several places, too much goes.
    """
    return "::".join(map(_redact_one, _CHAIN.split(uri)))


def _redact_one(uri: str) -> str:
    found = _URI.fullmatch(uri)
    if found is None:
        return uri.split("?", 1)[0] if "://" in uri else uri
    scheme, _, _ = found.groups()
    return (scheme + uri[len(scheme) + len(_userinfo(uri)) :]).split("?", 1)[0]


def _userinfo(uri: str) -> str:
    """What stands before the host, with its ``@``; empty where nothing does."""
    found = _URI.fullmatch(uri)
    if found is None:
        return ""
    scheme, authority, rest = found.groups()
    named, _, _ = authority.partition(_REFERENCE) if authority.endswith(_REFERENCE) else (authority, "", "")
    if "@" in named:
        return named[: named.rindex("@") + 1]
    if ":" not in named or (scheme.lower() not in _BUCKETS and _PORT.fullmatch(named)):
        return ""  # a host, with a port perhaps, or a bucket
    if named != authority:  # a user with a password, and a host that is called labels
        return f"{named}@"
    # The password has a slash or the like in it: it ends at the last @ that makes no reference.
    whole = authority + rest
    ends = [at.end() for at in re.finditer("@", whole)]
    sure = [end for end in ends if not whole.startswith("labels/", end)]
    return whole[: (sure or ends or [0])[-1]]


def has_credentials(uri: str) -> bool:
    """Whether there is a password, a token or a signed query in a URI, or in a part of a chain."""
    return "://" in uri and any(map(_one_has, _CHAIN.split(uri)))


def _one_has(uri: str) -> bool:
    found = _URI.fullmatch(uri)
    if found is None:
        return False
    scheme, query = found[1].lower(), uri.partition("?")[2]
    user = _userinfo(uri)
    return ":" in user or bool(user and scheme in _TOKENS) or bool(_SIGNED.search(query))


def check_uri(uri: str, what: str) -> None:
    """Refuse a URI that would be written down with a secret in it.

    Args:
        uri: as given.
        what: that it is, for the message.
    Raises:
        ValueError: names the URI without the secret, and where credentials belong.
    """
    if has_credentials(uri):
        raise ValueError(
            f"{what} {redact(uri)} holds a user name, a password or a signature, which would be written into the "
            "dataset: plans and commits say what was read. Leave it out and give credentials by the environment "
            "(e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile, or fsspec's own configuration "
            "(FSSPEC_HTTPS_..., ~/.config/fsspec); signed URLs of images are read from a list, see `url_list`"
        )


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """As ``check_uri``, of every option of a source, however deep."""
    for name, value in _texts("", options):
        check_uri(value, f"option {name} of the source {kind!r}:")


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    match value:
        case str():
            yield name, value
        case Mapping():
            for key, below in value.items():
                yield from _texts(f"{name}.{key}".lstrip("."), below)
        case list() | tuple():
            for below in value:
                yield from _texts(name, below)
