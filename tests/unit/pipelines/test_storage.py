from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from pipelines import local_files, storage
from pipelines.storage import Store, absolute, read_uri, redact


def test_paths_are_relative_to_the_root(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a")
    store.write_bytes("b/c.bin", b"0123456789")
    assert store.read_bytes("b/c.bin") == b"0123456789"
    assert store.read_range("b/c.bin", 3, 4) == b"3456"
    assert [(f.path, f.size) for f in store.list_files()] == [("b/c.bin", 10)]
    assert store.sub("b").read_bytes("c.bin") == b"0123456789"
    assert store.children() == ["b"]
    assert store.children("nowhere") == [] == store.list_files("nowhere")
    assert read_uri(store.join("b/c.bin")) == b"0123456789"
    assert pickle.loads(pickle.dumps(store)).exists("b/c.bin")


def test_a_listing_is_what_fsspec_finds_and_passes_over_what_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "a")
    for name in ("b/c/d", "b/e", "f", "b c/g"):
        store.write_bytes(name, b"1")
    (tmp_path / "a" / "link").symlink_to("f")
    (tmp_path / "a" / "to-folder").symlink_to("b")
    (tmp_path / "a" / "nowhere").symlink_to("gone")
    listed = [f.path for f in store.list_files()]
    assert listed == sorted(path[len(store.root) + 1 :] for path in store.fs.find(store.root))
    info = local_files._info

    def gone(fs: object, entry: os.DirEntry[str]) -> dict[str, object]:
        if entry.name == "e":
            raise FileNotFoundError(entry.path)
        return info(fs, entry)

    monkeypatch.setattr(local_files, "_info", gone)
    assert [f.path for f in store.list_files()] == [path for path in listed if path != "b/e"]


def test_an_upload_replaces_the_file_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_CHUNK", 4)
    local = tmp_path / "local"
    store = Store.open(tmp_path / "store")
    for content in (b"0123456789", b""):
        local.write_bytes(content)
        store.upload(local, "a/b.bin")
        assert store.read_bytes("a/b.bin") == content
    assert [f.path for f in store.list_files()] == ["a/b.bin"]


def test_memory_is_a_store_too() -> None:
    store = Store.open("memory://boxmill-test")
    store.write_bytes("x", b"1")
    assert store.read_bytes("x") == b"1"
    with pytest.raises(ValueError, match="exclusively"):
        store.put_new("y", b"1")


@pytest.mark.parametrize("scheme", ["file", "memory"])
@pytest.mark.parametrize("path", ["../x", "a/../../x", "a/..", "/x"])
def test_nothing_is_written_or_removed_outside_the_root(scheme: str, path: str, tmp_path: Path) -> None:
    root = str(tmp_path / "root") if scheme == "file" else f"memory://{tmp_path.name}/root"
    store = Store.open(root)
    (tmp_path / "x").write_bytes(b"mine")
    (tmp_path / "local").write_bytes(b"theirs")
    writes = [
        lambda: store.write_bytes(path, b"theirs"),
        lambda: store.upload(tmp_path / "local", path),
        lambda: store.remove(path),
    ]
    if scheme == "file":
        writes.append(lambda: store.put_new(path, b"theirs"))
    for write in writes:
        with pytest.raises(ValueError, match=r"leads out of .*root"):
            write()
    assert (tmp_path / "x").read_bytes() == b"mine"
    assert store.list_files() == []
    store.write_bytes("a..b/..c", b"a name with dots is no way out")


def test_a_short_file_is_an_error(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.write_bytes("x", b"123")
    with pytest.raises(ValueError, match="ends before byte 5"):
        store.read_range("x", 1, 4)


def test_a_file_that_ends_before_the_first_byte_is_short_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 416 where a range begins behind the end, and s3fs makes an error without a kind of it."""
    store = Store.open("memory://short")

    def refuse(*_: object, **__: object) -> bytes:
        raise OSError(22, "The requested range is not satisfiable")

    monkeypatch.setattr(type(store.fs), "cat_file", refuse)
    with pytest.raises(ValueError, match="x ends before byte 14"):
        store.read_range("x", 10, 4)


def test_unknown_scheme_names_itself() -> None:
    with pytest.raises(ValueError, match="nope://bucket"):
        Store.open("nope://bucket/x")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://host/a?X-Amz-Signature=1", "https://host/a"),
        ("https://key@host/a", "https://host/a"),
        ("s3://bucket@labels/gt:3", "s3://bucket@labels/gt:3"),
        ("s3://key:secret@labels/a", "s3://labels/a"),
        ("/a/b@c?d", "/a/b@c?d"),
        ("s3://bucket/a@labels/gt:3", "s3://bucket/a@labels/gt:3"),
    ],
)
def test_redact_takes_out_credentials_only(uri: str, shown: str) -> None:
    assert redact(uri) == shown


def test_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("x/y/") == f"{tmp_path}/x/y"
    assert absolute("file:///x/y") == "/x/y"
    assert absolute("s3://b/x/") == "s3://b/x"


def _race(args: tuple[str, int]) -> int:
    root, me = args
    store = Store.open(root)
    return sum(store.put_new(f"{i}.json", f"{me} of {i}".encode() * 50) for i in range(60))


def test_put_new_has_one_winner_a_file(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        won = pool.map(_race, [(str(tmp_path), me) for me in range(4)], chunksize=1)
    assert sum(won) == 60
    store = Store.open(tmp_path)
    assert len(store.list_files()) == 60, "temporary files are left"
    for i in range(60):
        content = store.read_bytes(f"{i}.json")
        assert content == content[: len(content) // 50] * 50


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_file_is_removed_once(scheme: str, tmp_path: Path) -> None:
    """Two who tidy up at once do not trip over each other."""
    store = Store.open(tmp_path if scheme == "file" else f"memory://{tmp_path.name}")
    store.write_bytes("a/b", b"here")
    assert store.remove("a/b")
    assert not store.exists("a/b")
    assert not store.remove("a/b")
