"""Columns read straight from label files are those of the annotations, of every kind of mask and frame of ids."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.metrics.coco import evaluate, evaluate_columns
from pipelines.metrics.columns import ObjectColumns, detection_columns, truth_columns
from pipelines.metrics.pairing import pair
from pipelines.metrics.reading import read_columns
from pipelines.metrics.settings import IouType, coco_settings
from pipelines.records import Annotations, ImageRecord, LabelMap, Rle
from tests.evaluated import Evaluated, guessed_rows, synthetic_records, write_dataset, write_guesses

SPLITS = ("val",)


def masked(objects: Annotations, height: int, width: int, kind: str) -> Annotations:
    """Every box as a mask: a polygon, a list of runs or a compressed RLE."""
    from pycocotools import mask as coco_mask

    polygons, rles = [], []
    for box in objects.boxes_xywh.tolist():
        x, y, w, h = np.clip(box, 0, [width - 2, height - 2, width, height]).tolist()
        outline = (x, y, x + w, y, x + w, y + h, x, y + h)
        dense = coco_mask.decode(coco_mask.frPyObjects([list(outline)], height, width))[..., 0]
        flat = np.concatenate([[0], dense.ravel(order="F"), [2]]).astype(int)
        runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat[:-1])), [height * width]]))
        polygons.append((outline,) if kind == "polygons" else None)
        counts = tuple(int(run) for run in runs)
        if kind == "compressed":
            made = coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
            rles.append(Rle(size=(height, width), counts=made["counts"].decode()))
        else:
            rles.append(Rle(size=(height, width), counts=counts) if kind == "runs" else None)
    return replace(objects, polygons=tuple(polygons), rles=tuple(rles))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Images in another order than their ids, one of them never looked at, and an image without predictions."""
    records, label_map = synthetic_records(3, 14)
    kinds = ("polygons", "runs", "compressed")

    def with_masks(at: int, record: ImageRecord) -> ImageRecord:
        assert record.annotations is not None
        objects = masked(record.annotations, record.height, record.width, kinds[at % 3])
        return replace(record, annotations=None if at == 7 else objects, coco_image_id=100 - at)

    records = [with_masks(at, record) for at, record in enumerate(records)]
    dataset = write_dataset(tmp_path_factory.mktemp("reading"), records, label_map)
    rows = []
    for at, row in enumerate(guessed_rows(records)[:-1]):
        assert row.annotations is not None
        rows.append(replace(row, annotations=masked(row.annotations, row.height, row.width, kinds[(at + 1) % 3])))
    other = LabelMap.from_json([{**c, "id": c["id"] + 40} for c in reversed(label_map.to_json())])
    shift = [
        replace(r, annotations=shifted(r.annotations, label_map, other)) for r in rows if r.annotations is not None
    ]
    return Evaluated(dataset=dataset, predictions=write_guesses(dataset, shift, other))


def shifted(objects: Annotations, own: LabelMap, other: LabelMap) -> Annotations:
    ids = {c.name: c.category_id for c in other.categories}
    names = [own.names[label] for label in own.to_labels(objects.category_ids)]
    return replace(objects, category_ids=np.array([ids[name] for name in names], np.int64))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("splits", [None, SPLITS])
def test_equal_to_the_annotations(made: Evaluated, iou_type: IouType, splits: tuple[str, ...] | None) -> None:
    images = pair(made.dataset, made.predictions, splits).images
    sizes = {i.image_id: (i.height, i.width) for i in images}
    label_map = made.dataset.label_map
    truth = truth_columns([(i.image_id, i.truth) for i in images], label_map, iou_type=iou_type, sizes=sizes)
    found = detection_columns([(i.image_id, i.found) for i in images], label_map, truth, iou_type=iou_type, sizes=sizes)
    assert len(images) == (16 if splits is None else 13)
    assert len(found) > 10
    read = read_columns(made.dataset, made.predictions, splits, iou_type=iou_type)
    for ours, theirs in zip(read, (truth, found), strict=True):
        assert_same(ours, theirs)
    metrics = evaluate_columns(*read, label_map, coco_settings(iou_type))
    other = evaluate(
        [(i.image_id, i.truth) for i in images],
        [(i.image_id, i.found) for i in images],
        label_map,
        iou_type=iou_type,
        sizes=sizes,
    )
    np.testing.assert_array_equal(metrics.precision, other.precision)
    assert metrics.stats["AP"] > 0.2


def assert_same(ours: ObjectColumns, theirs: ObjectColumns) -> None:
    for field in fields(ours):
        one, two = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == two.dtype, field.name
            np.testing.assert_array_equal(one, two, err_msg=field.name)
        else:
            assert (one and list(one)) == (two and list(two)), field.name


def test_masks_that_are_missing_broken_or_of_another_size(tmp_path: Path) -> None:
    records, label_map = synthetic_records(0, 2)
    first, second = (r.annotations for r in records)
    assert first is not None and second is not None
    height, width = records[0].height, records[0].width
    wrong = masked(first, height, width, "compressed")
    wrong = replace(wrong, rles=tuple(replace(rle, size=(height + 1, width)) for rle in wrong.rles if rle))
    dataset = write_dataset(tmp_path / "a", [replace(records[0], annotations=wrong)], label_map)
    guesses = write_guesses(dataset, guessed_rows(records)[:1], label_map)
    with pytest.raises(ValueError, match=rf"its RLE is {height + 1} x {width}, the image is {height} x {width}"):
        read_columns(dataset, guesses, iou_type="segm")

    long = masked(first, height, width, "compressed")
    long = replace(long, rles=tuple(replace(rle, counts=f"{rle.counts}55") for rle in long.rles if rle))  # type: ignore[arg-type]
    dataset = write_dataset(tmp_path / "b", [replace(records[0], annotations=long)], label_map)
    guesses = write_guesses(dataset, guessed_rows(records)[:1], label_map)
    with pytest.raises(ValueError, match=r"a mask of image 'val/000000.jpg': invalid RLE: total counts"):
        read_columns(dataset, guesses, iou_type="segm")

    whole = replace(records[0], annotations=masked(first, height, width, "compressed"))
    dataset = write_dataset(tmp_path / "c", [whole], label_map)
    guesses = write_guesses(dataset, guessed_rows(records)[:1], label_map)
    with pytest.raises(ValueError, match="has no mask; measure boxes"):
        read_columns(dataset, guesses, iou_type="segm")
