"""Hugging Face's `datasets` turns a picture upright when it decodes it: boxes in its tables lie there."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipelines.exports import find_export
from pipelines.sources import open_source
from pipelines.sources.drawn import Drawn, gather
from pipelines.sources.frames import stored_to_upright, upright_size, upright_to_stored
from tests.scenes import HEIGHT, WIDTH, box_object, commit, read_source, record
from tests.unit.pipelines.sources.test_tables import parquet

ORIENTATIONS = range(1, 9)
BOX = (3, 5, 10, 6)  # of the bright pixels, in the stored frame


def bright(orientation: int) -> tuple[bytes, list[int]]:
    """A PNG and the box of its bright pixels as Pillow shows it upright."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[BOX[1] : BOX[1] + BOX[3], BOX[0] : BOX[0] + BOX[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", exif=exif)
    ys, xs = np.nonzero(np.asarray(ImageOps.exif_transpose(Image.open(sink))))
    return sink.getvalue(), [int(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)]


def row(orientation: int, box: list[float], **more: int) -> dict:
    image = {"bytes": bright(orientation)[0], "path": f"{orientation}.png"}
    return {"image": image, "objects": {"bbox": [box], "category": [0]}, **more}


def test_boxes_on_the_upright_picture_come_to_lie_in_the_stored_one(tmp_path):
    rows = [row(o, list(map(float, bright(o)[1]))) for o in ORIENTATIONS]
    _, records, entries = read_source("hf_parquet", uri=parquet(tmp_path / "a.parquet", rows, ["cat"]))
    assert not entries
    for orientation in ORIENTATIONS:
        found = records[f"{orientation}.png"]
        assert (found.width, found.height, found.exif_orientation) == (WIDTH, HEIGHT, orientation)
        assert found.annotations.boxes_xywh.tolist() == [list(BOX)]


def test_fractions_are_of_the_upright_picture_too(tmp_path):
    rows = []
    for orientation in ORIENTATIONS:
        width, height = upright_size(WIDTH, HEIGHT, orientation)
        x, y, w, h = bright(orientation)[1]
        rows.append(row(orientation, [x / width, y / height, w / width, h / height]))
    uri = parquet(tmp_path / "a.parquet", rows, ["cat"])
    _, records, _ = read_source("hf_parquet", uri=uri, bbox_format="xywh_relative")
    for found in records.values():
        np.testing.assert_allclose(found.annotations.boxes_xywh, [BOX], atol=1e-9)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_row_with_the_stored_size_has_its_boxes_there(tmp_path, orientation):
    rows = [row(orientation, list(map(float, BOX)), width=WIDTH, height=HEIGHT)]
    source = open_source("hf_parquet", uri=parquet(tmp_path / "a.parquet", rows, ["cat"]))
    (item,) = source.scan()
    found = source.load(item)
    assert found.annotations.boxes_xywh.tolist() == [list(BOX)] and found.extra == {}


def test_out_and_in_again_is_the_same_for_every_orientation(tmp_path):
    scene = [record(f"{o}.jpg", [box_object(o), box_object(o + 9)], seed=o, orientation=o) for o in ORIENTATIONS]
    version = commit(tmp_path / "d", scene)
    report = find_export("hf_parquet")(version.reference, str(tmp_path / "out"))
    for before, written in zip(scene, pq.read_table(report.files["train"]).to_pylist(), strict=True):
        shown = ImageOps.exif_transpose(Image.open(io.BytesIO(written["image"]["bytes"])))
        assert (written["width"], written["height"]) == shown.size
        boxes = np.array(written["objects"]["bbox"])
        assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= shown.size).all()
        assert written["objects"]["area"] == pytest.approx(before.annotations.area.tolist())
    _, records, entries = read_source("hf_parquet", uri=str(tmp_path / "out"))
    assert not entries
    for before in scene:
        after = records[before.image_id].annotations
        np.testing.assert_allclose(after.boxes_xywh, before.annotations.boxes_xywh, atol=1e-9)


side = st.integers(1, 5000)
part = st.floats(0, 1)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@settings(max_examples=30, deadline=None)
@given(width=side, height=side, parts=st.tuples(part, part, part, part))
def test_a_turn_in_pixels_and_back_keeps_the_box(orientation, width, height, parts):
    box = (parts[0] * width, parts[1] * height, parts[2] * width, parts[3] * height)
    stored = gather([Drawn(category_id=1, box_xywh=box)])
    shown = stored_to_upright(stored, orientation, (width, height))
    back = upright_to_stored(shown, orientation, upright_size(width, height, orientation))
    np.testing.assert_allclose(back.boxes_xywh, stored.boxes_xywh, atol=1e-9)
    turned = box[2:] if orientation < 5 else box[:1:-1]
    assert shown.boxes_xywh[0, 2:].tolist() == list(turned)
