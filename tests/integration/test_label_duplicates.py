"""Pictures that are labelled once: every image has its row, copies carry their original's predictions and say so."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines import open_predictions
from pipelines.quarantine import read_quarantine
from pipelines.records import LabelMap
from pipelines.sources import open_source
from pipelines.sources.synthetic import SyntheticSource
from tests.integration.labelling import THRESHOLD, make_model, rows_by_image
from workers.ingest import ingest
from workers.label import LabelConfig, PredictionSetRef, label

pytestmark = pytest.mark.ray

SOURCE = SyntheticSource(seed=3, num_train=8, num_val=0, size=(160, 128))
FIRST = {f"a/{i:02d}.jpg": SOURCE.load(item).image for i, item in enumerate(SOURCE.scan())}


def saved(image: Image.Image, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, **({"format": "JPEG"} | options))
    return sink.getvalue()


def opened(name: str) -> Image.Image:
    return Image.open(io.BytesIO(FIRST[name]))


BROKEN = FIRST["a/05.jpg"][:-400]
WHITE, BLUE = (saved(Image.new("RGB", (160, 128), colour), format="PNG") for colour in ("white", "navy"))
FILES = {
    **FIRST,
    "b/same-0.jpg": FIRST["a/00.jpg"],
    "b/same-1.jpg": FIRST["a/01.jpg"],
    "b/poor-0.jpg": saved(opened("a/00.jpg"), quality=60),
    "b/poor-2.png": saved(opened("a/02.jpg"), format="PNG"),
    "c/same-0.jpg": FIRST["a/00.jpg"],
    "c/small-3.jpg": saved(opened("a/03.jpg").resize((80, 64))),
    "c/turned-4.jpg": saved(
        opened("a/04.jpg"), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
    "d/broken.jpg": BROKEN,
    "d/broken-too.jpg": BROKEN,
    "d/white.png": WHITE,
    "d/white2.png": WHITE,
    "d/navy.png": BLUE,
}
CARRIED = {
    "b/same-0.jpg": "a/00.jpg",
    "b/same-1.jpg": "a/01.jpg",
    "b/poor-0.jpg": "a/00.jpg",
    "b/poor-2.png": "a/02.jpg",
    "c/same-0.jpg": "a/00.jpg",
    "d/white2.png": "d/white.png",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_model(tmp_path_factory.mktemp("label") / "model", SOURCE.label_map)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for name, content in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def one_by_one(folder, model, tmp_path_factory, ray_cluster) -> dict[str, Any]:
    made = label(config(folder, tmp_path_factory.mktemp("one"), model, near_duplicates=False))
    return {row[0]: row for row in rows_by_image(made.reference)}


def config(folder: Path, out: Path, model: str, **changes: Any) -> LabelConfig:
    settings = {"score_threshold": THRESHOLD, "task_images": 4, "near_duplicates": True, "out": str(out)}
    return LabelConfig(**({"input": str(folder), "model": model} | settings | changes))


def carried(made: PredictionSetRef) -> dict[str, str]:
    rows = open_predictions(made.reference).rows()
    return {row.image_id: row.extra["predictions_of"] for row in rows if row.extra}


def test_of_a_folder_copies_carry_what_was_found_in_the_first(folder, model, tmp_path, one_by_one, ray_cluster):
    told = []
    made = label(config(folder, tmp_path, model), lambda stage, done, total, **_: told.append((stage, done, total)))
    rows = {row[0]: row for row in rows_by_image(made.reference)}
    assert Counter(row[0] for row in rows_by_image(made.reference)) == Counter(FILES.keys())
    assert carried(made) == CARRIED
    for name, row in rows.items():
        expected = one_by_one[CARRIED.get(name, name)]
        assert row[6] == expected[6], name  # boxes, categories, scores
        # Everything else is the image's own.
        assert row[:6] == one_by_one[name][:6], name
    assert all(rows[name][6][0] for name in CARRIED), "random weights find something everywhere"
    assert made.account is not None and made.account["copied"] == len(CARRIED)
    assert made.account["images"] == len(FILES) and made.num_quarantined == 2
    ledger = open_predictions(made.reference).metadata["plan_ledger"]
    reason = "image imported: carries the predictions of an image that shows the same"
    assert ledger["images"]["imported"] == len(FILES) - 2 and ledger["reasons"][reason] == len(CARRIED)
    assert ("compare", len(FILES), len(FILES)) in told and told[-1] == ("label", len(FILES), len(FILES))
    places = {r.image_id: r for r in open_predictions(made.reference).rows()}
    assert places["c/turned-4.jpg"].box_frame == "stored" and places["b/poor-2.png"].box_frame is None


@pytest.mark.long
def test_what_is_missing_is_made_again_as_it_was(folder, model, tmp_path, ray_cluster):
    settings = config(folder, tmp_path, model)
    made = label(settings)
    again = label(settings)
    assert again.found and again.reference == made.reference

    def undo(*receipts: int) -> None:
        """Back to before the commit, without these tasks' receipts."""
        for path in tmp_path.glob("labels/*/_delta_log"):
            shutil.rmtree(path)
        (done,) = [p for p in tmp_path.glob("_jobs/*/done") if "pred-" in (p / "000000.json").read_text()]
        assert (done / f"{max(receipts):06d}.json").exists()
        for number in receipts:
            (done / f"{number:06d}.json").unlink()

    labelled = 4  # of 14 images, 4 a task
    for receipts in ((0, labelled), (labelled + 1,)):
        undo(*receipts)
        resumed = label(settings)
        assert (resumed.digest, resumed.found) == (made.digest, False)
        assert resumed.resumed == resumed.tasks - len(receipts)


@pytest.mark.long
def test_another_model_takes_the_same_looks(folder, model, tmp_path, ray_cluster):
    other = make_model(tmp_path / "other", SOURCE.label_map, seed=1)
    label(config(folder, tmp_path / "out", model))
    looks = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/_jobs/*/looks/*.parquet")}
    assert looks
    told = []
    made = label(config(folder, tmp_path / "out", other), lambda stage, *_, **__: told.append(stage))
    assert carried(made) == CARRIED and "compare" not in told
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/_jobs/*/looks/*.parquet")} == looks


@pytest.mark.long
def test_a_dataset_takes_the_hashes_that_its_shards_keep(folder, model, tmp_path, ray_cluster):
    uri = str(tmp_path / "d")
    good = {name: content for name, content in FILES.items() if not name.startswith("d/broken")}
    for name, content in good.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    # Some labels, so that the dataset has the model's categories.
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(as_coco(good, SOURCE.label_map)))
    source = open_source("coco", annotations=str(truth), images=str(tmp_path / "in"), split="train")
    version = ingest(source, uri, near_duplicates=True)
    hashes = {path: path.stat().st_mtime_ns for path in tmp_path.glob("d/_hashes/*.parquet")}
    assert hashes
    made = label(config(tmp_path, Path("once"), model, input=version.reference))
    assert carried(made) == CARRIED
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("d/_hashes/*.parquet")} == hashes
    found = Counter(row[0] for row in rows_by_image(made.reference))
    assert found == Counter(good.keys())


def as_coco(files: dict[str, bytes], label_map: LabelMap) -> dict[str, Any]:
    images = []
    for number, (name, content) in enumerate(files.items(), 1):
        width, height = Image.open(io.BytesIO(content)).size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    categories = [{"id": c.category_id, "name": c.name} for c in label_map.categories]
    return {"images": images, "annotations": [one], "categories": categories}


@pytest.mark.long
def test_where_the_first_fails_the_copies_fail_and_are_tried_again_by_themselves(folder, model, tmp_path, ray_cluster):
    root = tmp_path / "in"
    shutil.copytree(folder, root)
    settings = config(root, tmp_path / "out", model)
    # Found to be readable, and gone when it is labelled: as behind a URL that ceases to answer.
    told = []

    def vanish(stage: str, done: int, total: int, **_: float) -> None:
        told.append(stage)
        if stage == "compare" and done == total:
            (root / "a" / "00.jpg").unlink()

    made = label(settings, vanish)
    rows = {row.image_id: row for row in open_predictions(made.reference).rows()}
    fallen = ["a/00.jpg", "b/poor-0.jpg", "b/same-0.jpg", "c/same-0.jpg"]
    assert sorted(rows) == sorted(FILES) and all(rows[name].status == "failed" for name in fallen)
    assert "as 'a/00.jpg', the same" in (rows["b/same-0.jpg"].error or "")
    assert made.num_quarantined == 6 and made.account is not None and made.account["copied"] == len(CARRIED) - 3
    listed = {row.image_id for row in read_quarantine(str(tmp_path / "out"))}
    assert listed >= set(fallen)
    # Back again, each is labelled by itself.
    (root / "a" / "00.jpg").write_bytes(FIRST["a/00.jpg"])
    mended = label(replace(settings, retry="quarantined"))
    rows = {row.image_id: row for row in open_predictions(mended.reference).rows()}
    assert sorted(rows) == sorted(FILES) and mended.num_quarantined == 2
    assert all(rows[name].status == "ok" and not rows[name].extra for name in fallen)
