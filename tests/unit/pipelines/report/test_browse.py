"""What a gallery's files say: which images, upright, from datasets and from archives; and routing of the latter."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import archive_images
from pipelines.ledger import Ledger
from pipelines.predictions import ArchivePlace, PredictionSet, commit_predictions, open_predictions, write_predictions
from pipelines.references import EmptyDataset
from pipelines.report.browse import write_gallery
from pipelines.report.gallery import read_thumbnails
from pipelines.route_rules import RouteRules
from pipelines.routing import route
from pipelines.schema import LabelRow
from pipelines.shard_writing import label_rows
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.archived import label_archive, one_box, write_archive
from tests.evaluated import make_evaluated, write_guesses
from tests.making import LABEL_MAP, commit_records, encoded, record
from tests.sharded import Sets


def read(folder: Path, name: str) -> Any:
    """What a data file gives to the page."""
    text = (folder / f"data/{name}.js").read_text("ascii")
    assert text.endswith(");\n")
    call, _, value = text.removesuffix(");\n").partition("(")
    if call == "boxmillShard":
        number, _, value = value.partition(",")
        assert number == name
    return json.loads(value)


@pytest.fixture
def archive(tmp_path: Path) -> PredictionSet:
    """Predictions of a folder of five images that lie elsewhere; one was cut and could not be labelled."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows, places = [], []
    for number in range(5):
        name = f"{number}.jpg"
        (folder / name).write_bytes(encoded(seed=number)[: 60 if number == 4 else None])
        failed = number == 4
        rows.append(
            LabelRow(
                image_id=name,
                row=number,
                row_group=0,
                split="",
                coco_image_id=number,
                width=24,
                height=16,
                annotations=None if failed else one_box((0.95, 0.5, 0.4, 0.1)[number]),
                status="failed" if failed else "ok",
                error="decode: cut" if failed else None,
            )
        )
        places.append(ArchivePlace(source=str(folder), member=name, format="jpeg", exif_orientation=1))
    uri = str(tmp_path / "out")
    made = commit_predictions(
        uri,
        "pred",
        [write_predictions(Store.open(uri), "pred", "archive-1", rows, places)],
        plan_id="p",
        label_map=LABEL_MAP,
        images_version=None,
        ledger=Ledger(),
        provenance={"input": {"kind": "archive", "uri": str(folder)}},
    )
    return open_predictions(made.reference)


def test_an_archive_is_routed_and_looked_through_where_it_lies(archive: PredictionSet, tmp_path: Path) -> None:
    made = route(archive.reference, RouteRules(accept=0.9, reject=0.2))
    assert {one: version.num_images for one, version in made.sets.items()} == {"accept": 1, "review": 2, "reject": 2}
    review = open_predictions(made.sets["review"].reference)
    assert review.is_archive and [r.image for r in review.records()] == [encoded(seed=1), encoded(seed=2)]
    report = write_gallery(str(tmp_path / "g"), review.labels)
    assert (report.num_images, report.unreadable, report.files) == (2, 0, 7)
    index = read(tmp_path / "g", "index")
    assert index["images"]["id"] == ["1.jpg", "2.jpg"] and index["images"]["u"] == [1.0, 0.8]
    assert index["images"]["why"] == ["a score between the thresholds"] * 2
    assert read(tmp_path / "g", "0")[0]["o"] == [{"b": [2.0, 3.0, 10.0, 4.0]}]


@pytest.mark.parametrize("kind", ["photos", "photos.tar", "photos.tar.gz", "photos.zip"])
@pytest.mark.parametrize("choose", ["first", "random", "uncertain"])
def test_of_an_archive_the_chosen_images_alone_are_read(
    tmp_path: Path, kind: str, choose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"{number}.jpg": encoded(seed=number) for number in range(8)}
    images["1.jpg"] = images["1.jpg"][:60]
    write_archive(tmp_path / kind, images)
    predictions = label_archive(str(tmp_path / kind), str(tmp_path / "out"))
    read_digests: list[bytes] = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(
        archive_images, "hashlib", SimpleNamespace(sha256=lambda b: read_digests.append(b) or sha256(b))
    )
    report = write_gallery(str(tmp_path / "g"), predictions.labels, most=2, choose=choose, size=24)
    shown = read(tmp_path / "g", "index")["images"]
    assert (report.num_images, report.total, len(shown["id"])) == (2, 8, 2)
    # Of a deflated member the digest of what is stored is asked for too.
    assert set(read_digests) & set(images.values()) == {images[name] for name in shown["id"]}
    assert len(read_digests) <= 4
    assert report.unreadable == ("1.jpg" in shown["id"])
    if choose == "first":
        assert shown["id"] == ["0.jpg", "1.jpg"] and shown["thumb"] == [True, False]
        assert shown["why"][1].startswith("decode: BadImage: ")


def test_images_of_an_archive_that_cannot_be_shown_say_why(archive: PredictionSet, tmp_path: Path) -> None:
    (tmp_path / "photos/2.jpg").unlink()
    report = write_gallery(str(tmp_path / "g"), archive.labels, size=24)
    shown = read(tmp_path / "g", "index")["images"]
    assert (report.num_images, report.unreadable, report.num_objects) == (5, 2, 4)
    assert shown["id"] == [f"{number}.jpg" for number in range(5)]
    assert shown["thumb"] == [True, True, False, True, False]
    assert "2.jpg is no file of" in shown["why"][2] and shown["why"][4] == "decode: cut"
    assert shown["looked"] == [True, True, True, True, False]


def test_pictures_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    picture = Image.new("RGB", (24, 16), (0, 0, 0))
    picture.paste((255, 255, 255), (2, 3, 12, 7))
    picture.save(sink, "JPEG", exif=exif, quality=95)
    turned = replace(
        record(1), image=sink.getvalue(), sha256=hashlib.sha256(sink.getvalue()).hexdigest(), exif_orientation=6
    )
    uri = str(tmp_path / "d")
    commit_records(uri, [turned], plan_id="p")
    rows = [replace(row, annotations=one_box(0.5), status="ok") for row in label_rows([turned])]
    predictions = write_guesses(open_dataset(uri), rows, LABEL_MAP)
    write_gallery(str(tmp_path / "g"), predictions.labels, size=24)
    images = read(tmp_path / "g", "index")["images"]
    assert (images["w"], images["h"]) == ([16], [24])
    x, y, w, h = read(tmp_path / "g", "0")[0]["o"][0]["b"]
    assert (w, h) == (4.0, 10.0)
    shown = np.asarray(Image.open(tmp_path / "g/thumbs/0.jpg").convert("L"))
    assert shown.shape == (24, 16)
    inside = shown[int(y) + 1 : int(y + h) - 1, int(x) + 1 : int(x + w) - 1]
    assert inside.min() > 150 > np.median(shown)


@pytest.mark.parametrize("choose", ["first", "random", "uncertain"])
def test_at_most_so_many_images(tmp_path: Path, choose: Any) -> None:
    made = make_evaluated(tmp_path / "d", num_train=2, num_val=12)
    report = write_gallery(
        str(tmp_path / "g"), made.dataset, made.predictions, most=5, choose=choose, size=32, measure="least_confident"
    )
    assert (report.num_images, report.total, len(list((tmp_path / "g/thumbs").iterdir()))) == (5, 12, 5)
    images = read(tmp_path / "g", "index")["images"]
    rows = {row.image_id: row for row in made.predictions.rows()}
    unsure = {i: max((1 - s for s in row.annotations.scores), default=0.0) for i, row in rows.items()}
    if choose == "uncertain":
        assert set(images["id"]) == set(sorted(unsure, key=unsure.__getitem__)[-5:])
    elif choose == "first":
        assert images["id"] == list(rows)[:5]
    for image_id, u, scores in zip(images["id"], images["u"], images["s"], strict=True):
        assert u == round(unsure[image_id], 4)
        assert scores == [round(s, 4) for s in rows[image_id].annotations.scores.tolist()]


def flip(path: Path, image: bytes) -> None:
    """One bit in the middle of an image that lies in a file."""
    content = bytearray(path.read_bytes())
    content[content.find(image) + len(image) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_image_is_shown_with_its_reason_and_costs_no_other(tmp_path: Path) -> None:
    uri = tmp_path / "d"
    commit_records(uri, [record(number) for number in range(4)], plan_id="p")
    (shard,) = open_dataset(str(uri)).shards
    flip(uri / shard.image_path, record(1).image)
    report = write_gallery(str(tmp_path / "g"), open_dataset(str(uri)), size=24)
    assert (report.num_images, report.unreadable, report.total) == (4, 1, 4)
    images = read(tmp_path / "g", "index")["images"]
    assert images["thumb"] == [True, False, True, True]
    assert "'a/1.jpg' differ from their sha256" in images["why"][1]
    assert [bool(why) for why in images["why"]] == [False, True, False, False]
    assert sorted(path.name for path in (tmp_path / "g/thumbs").iterdir()) == ["0.jpg", "2.jpg", "3.jpg"]
    assert sorted(read_thumbnails(open_dataset(str(uri)), ["a/0.jpg", "a/1.jpg"], 20_000)) == ["a/0.jpg"]


@pytest.mark.parametrize(("keep", "why"), [(400, "ends before byte"), (None, "is missing")])
def test_a_shard_that_is_cut_or_gone_costs_its_own_images_alone(tmp_path: Path, keep: int | None, why: str) -> None:
    dataset = Sets(tmp_path / "d").dataset
    path = tmp_path / "d" / dataset.shards[0].image_path
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    report = write_gallery(str(tmp_path / "g"), dataset, size=24)
    images = read(tmp_path / "g", "index")["images"]
    assert (report.num_images, report.unreadable) == (20, 5)
    assert images["thumb"] == [False] * 5 + [True] * 15
    assert all(why in text for text in images["why"][:5])


def test_what_concerns_every_image_ends_the_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_records(tmp_path / "d", [record(1)], plan_id="p")

    def refuse(*_: object) -> bytes:
        raise PermissionError("ExpiredToken")

    monkeypatch.setattr(Store, "read_range", refuse)
    with pytest.raises(PermissionError, match="ExpiredToken"):
        write_gallery(str(tmp_path / "g"), open_dataset(str(tmp_path / "d")), size=24)
    assert not (tmp_path / "g/index.html").exists()


def test_what_makes_no_gallery_is_refused(tmp_path: Path) -> None:
    commit_records(tmp_path / "d", [record(1)], plan_id="p")
    dataset = open_dataset(str(tmp_path / "d"))
    with pytest.raises(ValueError, match="size=8"):
        write_gallery(str(tmp_path / "g"), dataset, size=8)
    with pytest.raises(EmptyDataset, match="in the splits test"):
        write_gallery(str(tmp_path / "g"), dataset, splits=["test"])
    assert not (tmp_path / "g").exists()
