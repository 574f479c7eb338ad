"""Weights by name, path, URL and hub id: fetched once, whole or not at all, and only what their digest says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from detectors.weights import KnownWeights
from workers import weight_files
from workers.weight_files import fetch_file, fetch_weights

CONTENT = b"the weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Site:
    """What the server says of each path, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.gets: list[str] = []
        self.cut = 0  # so many answers to come end in the middle
        self.commit = "0" * 40


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            state.gets.append(self.path)
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            content = state.files.get(self.path.partition("?")[0])
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", state.commit)
            self.end_headers()
            if body and state.cut > 0:
                state.cut -= 1
                content = content[: len(content) // 2]
                self.close_connection = True
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOXMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_files, "wait_a_little", lambda attempt: None)
    return tmp_path / "cache"


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file()} - {"lock"}


def test_a_url_with_its_digest_is_fetched_once(site: Site, cache: Path) -> None:
    site.files["/w.pth"] = CONTENT
    address = f"{site.url}/w.pth#sha256={DIGEST[:8]}"
    path = fetch_file(address)
    assert path.read_bytes() == CONTENT and path.name == "w.pth"
    site.files.clear()  # the cache needs no server
    assert fetch_file(address) == path
    assert site.gets == ["/w.pth"] and left_in(cache) == {"w.pth", "w.pth.sha256"}


def test_without_a_digest_new_content_is_fetched_and_old_content_is_not(site: Site) -> None:
    site.files["/w.pth"] = CONTENT
    path = fetch_file(f"{site.url}/w.pth")
    assert fetch_file(f"{site.url}/w.pth") == path and len(site.gets) == 1
    assert Path(f"{path}.sha256").read_text() == DIGEST, "taken down when it first arrived"
    site.files["/w.pth"] = CONTENT + b"more"
    assert fetch_file(f"{site.url}/w.pth").read_bytes() == CONTENT + b"more"


def test_a_damaged_copy_in_the_cache_is_fetched_again(site: Site) -> None:
    site.files["/w.pth"] = CONTENT
    for address in (f"{site.url}/w.pth", f"{site.url}/w.pth#sha256={DIGEST}"):
        path = fetch_file(address)
        path.write_bytes(CONTENT[:-1] + b"?")
        assert fetch_file(address).read_bytes() == CONTENT
    assert len(site.gets) == 4


def test_content_that_is_not_what_its_digest_says_is_refused_and_removed(site: Site, cache: Path) -> None:
    site.files["/w.pth"] = CONTENT[:-1]
    with pytest.raises(ValueError, match=rf"127.0.0.1:\d+/w.pth has the sha256 \w{{64}}, not {DIGEST}.*give its path"):
        fetch_file(f"{site.url}/w.pth#sha256={DIGEST}")
    assert left_in(cache) == set()
    site.files["/w.pth"] = CONTENT
    assert fetch_file(f"{site.url}/w.pth#sha256={DIGEST}").read_bytes() == CONTENT


def test_a_body_that_is_cut_is_fetched_again_and_in_the_end_refused(site: Site, cache: Path) -> None:
    site.files["/w.pth"] = CONTENT
    site.cut = 2
    assert fetch_file(f"{site.url}/w.pth").read_bytes() == CONTENT
    assert len(site.gets) == 3
    site.cut = 100
    with pytest.raises(ValueError, match=r"cannot fetch the weights .*/w.pth: .*give its path"):
        fetch_file(f"{site.url}/w.pth#sha256={DIGEST}")
    assert left_in(cache) == {"w.pth", "w.pth.sha256"}, "of the first call alone"


def test_several_that_fetch_at_once_fetch_once(site: Site) -> None:
    site.files["/w.pth"] = CONTENT
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetch_file, [f"{site.url}/w.pth#sha256={DIGEST}"] * 8))
    assert len(paths) == 1 and len(site.gets) == 1


def test_what_is_not_there_or_cannot_be_reached_is_told(site: Site) -> None:
    for address in (f"{site.url}/none.pth", f"{site.url}/none.pth#sha256={DIGEST}", "memory://none/none.pth"):
        with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.pth"):
            fetch_file(address)
    with pytest.raises(ValueError, match=r"cannot fetch the weights http://127.0.0.1:1/w.pth: .*give its path"):
        fetch_file("http://127.0.0.1:1/w.pth?key=secret")
    with pytest.raises(ValueError, match=r"cannot open nosuch://x/w.pth"):
        fetch_file("nosuch://x/w.pth")


def test_a_signed_query_is_sent_but_not_told(site: Site) -> None:
    site.files["/w.pth"] = CONTENT
    assert fetch_file(f"{site.url}/w.pth?key=secret").name == "w.pth"
    assert site.gets == ["/w.pth?key=secret"]


def test_a_local_file_is_used_where_it_lies_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(CONTENT)
    assert fetch_file(str(file)) == file == fetch_file(f"{file}#sha256={DIGEST}")
    with pytest.raises(ValueError, match=rf"w\.pth has the sha256 {DIGEST}, not 00000000.*right digest"):
        fetch_file(f"{file}#sha256=00000000")
    assert file.exists(), "the user's own file stays"
    with pytest.raises(FileNotFoundError, match=r"no weights file .*none\.pth"):
        fetch_file(str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match="write 8 to 64 hexadecimal digits"):
        fetch_file(f"{file}#sha256=xyz")


def test_any_fsspec_url() -> None:
    fsspec.filesystem("memory").pipe_file("/weights/w.pth", CONTENT)
    assert fetch_file("memory://weights/w.pth").read_bytes() == CONTENT
    assert fetch_file(f"memory://weights/w.pth#sha256={DIGEST}").read_bytes() == CONTENT


def test_from_s3(s3_server, cache: Path) -> None:
    import boto3

    boto3.client("s3").put_object(Bucket=s3_server.bucket, Key="weights/w.pth", Body=CONTENT)
    assert fetch_file(s3_server.uri(f"weights/w.pth#sha256={DIGEST[:12]}")).read_bytes() == CONTENT
    assert fetch_file(s3_server.uri("weights/w.pth")).read_bytes() == CONTENT
    with pytest.raises(ValueError, match=r"s3://.*w\.pth has the sha256"):
        fetch_file(s3_server.uri("weights/w.pth#sha256=0123456789"))
    with pytest.raises(FileNotFoundError, match=r"no weights at s3://.*none\.pth"):
        fetch_file(s3_server.uri("weights/none.pth"))


def test_from_a_model_hub(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    site.files["/timm/tiny.in1k/resolve/main/pytorch_model.bin"] = CONTENT
    site.files["/own/net/resolve/v2/w.pth"] = CONTENT[:-1]
    assert fetch_file(f"timm/tiny.in1k#sha256={DIGEST[:8]}").read_bytes() == CONTENT
    assert fetch_file("hf://own/net@v2/w.pth").read_bytes() == CONTENT[:-1]
    with pytest.raises(ValueError, match=r"has the sha256 .*, not 00000000"):
        fetch_file("hf://timm/tiny.in1k#sha256=00000000")
    with pytest.raises(FileNotFoundError, match=r"own/net has no model.safetensors or pytorch_model.bin"):
        fetch_file("hf://own/net")


def test_known_weights_go_by_name_and_only_with_their_digest(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownWeights(
        name="small_coco",
        url=f"{site.url}/small-{DIGEST[:8]}.pth",
        sha256=DIGEST[:8],
        licence="BSD-3-Clause",
        trained_on="coco",
        key_map="torchvision_retinanet",
        fits=("retinanet_lite0",),
    )
    monkeypatch.setattr("detectors.weights.KNOWN_WEIGHTS", (known,))
    site.files[f"/small-{DIGEST[:8]}.pth"] = CONTENT
    for name in ("coco", "small_coco"):
        assert fetch_weights(name, "retinanet_lite0", None).read_bytes() == CONTENT
    assert len(site.gets) == 1
    with pytest.raises(ValueError, match=r"no coco weights for retinanet_r18_fpn .* known are: none\. Give the path"):
        fetch_weights("coco", "retinanet_r18_fpn", "resnet18")
    assert fetch_weights(None, "retinanet_lite0", None) is None


def test_imagenet_weights_of_lite0_come_from_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_weights("imagenet", "retinanet_lite0", "tf_efficientnet_lite0")
    assert path.suffix == ".pth" and weight_files.file_digest(path).startswith("57934424")
    asked = []
    monkeypatch.setattr(weight_files.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(weight_files, "fetch_file", asked.append)
    fetch_weights("imagenet", "retinanet_lite0", "tf_efficientnet_lite0")
    assert asked == [f"{weight_files_url()}#sha256=0aa007d2"], "without the package they are fetched"


def weight_files_url() -> str:
    from detectors.weights import TIMM

    return f"{TIMM}/tf_efficientnet_lite0-0aa007d2.pth"
