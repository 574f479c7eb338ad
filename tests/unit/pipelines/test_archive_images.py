"""Images of an archive read from the places that the rows of their predictions name."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from pipelines import archive_images
from pipelines.archive_images import ArchiveImage, read_archive_images, read_places
from pipelines.checks import BadImage
from pipelines.predictions import ArchivePlace, PredictionSet, archive_image
from pipelines.shards import read_labels
from pipelines.sources.url_list import UrlListSource
from pipelines.storage import Store
from tests.archived import commit_rows, label_archive, row_of, write_archive
from tests.making import encoded

IMAGES = {f"in/{number}.png": encoded(seed=number, format="PNG") for number in range(7)}
KINDS = ["photos", "photos.tar", "photos.tar.gz", "photos.zip"]


def made(folder: Path, kind: str) -> PredictionSet:
    write_archive(folder / kind, IMAGES)
    return label_archive(str(folder / kind), str(folder / "out"))


def read_all(predictions: PredictionSet) -> dict[str, bytes | str]:
    """Bytes, or what is wrong."""
    rows = [
        (row.image_id, archive_image(row, place))
        for shard in predictions.labels.shards
        for row, place in zip(read_labels(shard), read_places(shard), strict=True)
    ]
    where = predictions.provenance["input"]
    found = read_archive_images(where["kind"], where["uri"], rows)
    return {key: str(content) if isinstance(content, BadImage) else content for key, content in found}


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_as_it_lies_there(tmp_path: Path, kind: str) -> None:
    predictions = made(tmp_path, kind)
    assert read_all(predictions) == IMAGES
    records = list(predictions.records())
    assert {r.image_id: r.image for r in records} == IMAGES
    assert [r.coco_image_id for r in records] == list(range(1, 8))
    separator = "/" if kind == "photos" else "!/"
    assert records[2].source == f"{tmp_path / kind}{separator}in/2.png"


@pytest.mark.parametrize("kind", KINDS)
def test_another_image_in_its_place_is_told_and_costs_no_other(tmp_path: Path, kind: str) -> None:
    predictions = made(tmp_path, kind)
    write_archive(tmp_path / kind, {**IMAGES, "in/6.png": encoded(30, 8, seed=1, format="PNG")})
    found = read_all(predictions)
    assert isinstance(found["in/6.png"], str) and "in/6.png" in found["in/6.png"]
    assert {name: found[name] for name in list(IMAGES)[:6]} == dict(list(IMAGES.items())[:6])
    with pytest.raises(BadImage, match=r"in/6\.png"):
        list(predictions.records())


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_cut_archive_gives_what_lies_before_the_cut(tmp_path: Path, kind: str) -> None:
    predictions = made(tmp_path, kind)
    whole = (tmp_path / kind).read_bytes()
    (tmp_path / kind).write_bytes(whole[: len(whole) // 2])
    found = read_all(predictions)
    good = [name for name, content in found.items() if content == IMAGES[name]]
    assert 1 <= len(good) < 6 and good == list(IMAGES)[: len(good)]
    assert all(isinstance(found[name], str) for name in IMAGES if name not in good)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    predictions = made(tmp_path, "photos")
    (tmp_path / "photos/in/3.png").unlink()
    found = read_all(predictions)
    assert "in/3.png is no file of" in str(found.pop("in/3.png"))
    assert found == {name: image for name, image in IMAGES.items() if name != "in/3.png"}


def test_a_folder_that_is_gone_is_an_error_of_all(tmp_path: Path) -> None:
    predictions = made(tmp_path, "photos")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        read_all(predictions)


def test_a_store_that_refuses_is_no_fault_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Store, "read_bytes", refuse)
    here = ArchiveImage(place=ArchivePlace(source=str(tmp_path), member="a.jpg"))
    ((_, told),) = read_archive_images("archive", str(tmp_path), [("a", here)])
    assert str(told) == "a.jpg cannot be read: Permission denied"
    fsspec.filesystem("memory").pipe_file("/photos/a.jpg", b"")
    there = ArchiveImage(place=ArchivePlace(source="memory://photos", member="a.jpg"))
    with pytest.raises(PermissionError):
        list(read_archive_images("archive", "memory://photos", [("a", there)]))


def test_what_could_not_be_read_is_not_tried_again(tmp_path: Path) -> None:
    write_archive(tmp_path / "photos", {"a.jpg": encoded()})
    image = ArchiveImage(place=ArchivePlace(source=str(tmp_path / "photos"), member="a.jpg"), failed=True)
    ((_, told),) = read_archive_images("archive", str(tmp_path / "photos"), [("a", image)])
    assert isinstance(told, BadImage) and "could not be read when it was labelled" in str(told)


@pytest.mark.parametrize("kind", ["photos", "photos.tar"])
def test_only_a_few_are_read_ahead(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {f"{number:03d}.jpg": encoded(seed=number) for number in range(60)}
    write_archive(tmp_path / kind, images)
    predictions = label_archive(str(tmp_path / kind), str(tmp_path / "out"))
    asked: list[bytes] = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(archive_images, "hashlib", SimpleNamespace(sha256=lambda b: asked.append(b) or sha256(b)))
    taken = list(itertools.islice(predictions.records(), 3))
    assert [r.image for r in taken] == list(images.values())[:3]
    assert 3 <= len(asked) <= 3 + 2 * archive_images._READERS


def test_a_list_of_urls_is_matched_by_name(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    images = {f"listed/{number}.jpg": encoded(seed=number) for number in range(4)}
    for name, image in images.items():
        files.pipe_file(f"/{name}", image)
    lines = [f"memory://{name}" for name in images]
    path = tmp_path / "images.txt"
    path.write_text("\n".join([*lines, lines[1], "# end"]))
    items = list(UrlListSource.open(uri=str(path)).scan())[:4]
    rows = [row_of(at, item.image_id, image) for at, (item, image) in enumerate(zip(items, images.values()))]
    places = [ArchivePlace(source=item.uri, member=item.image_id, length=1) for item in items]
    predictions = commit_rows(str(tmp_path / "out"), rows, places, {"kind": "url_list", "uri": str(path)})
    files.rm_file("/listed/2.jpg")
    path.write_text("\n".join([*lines[:3], lines[1]]))
    found = list(read_all(predictions).values())
    assert found[:2] == list(images.values())[:2]
    assert found[2] == "memory://listed/2.jpg is gone" and "does not name it any more" in str(found[3])
