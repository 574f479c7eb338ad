"""Colour alone must not find the synthetic objects: a threshold baseline, given every honest chance, stays low."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.metrics.coco import evaluate_boxes
from pipelines.records import Annotations, ImageRecord
from pipelines.sources.synthetic import SyntheticSource

BINS = 8  # a colour channel
SIDE = 192


def colours(record: ImageRecord) -> np.ndarray:
    """(H, W) number of each pixel's colour bin."""
    pixels = np.asarray(Image.open(io.BytesIO(record.image))).astype(np.int64) * BINS // 256
    return (pixels[..., 0] * BINS + pixels[..., 1]) * BINS + pixels[..., 2]


def components(mask: np.ndarray) -> list[np.ndarray]:
    """(M, 4) xywh boxes of the 4-connected parts of at least 40 pixels."""
    number = np.where(mask, np.arange(mask.size).reshape(mask.shape), -1)
    while True:
        spread = number.copy()
        for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:])):
            spread[a] = np.where(mask[a], np.maximum(spread[a], number[b]), -1)
            spread[:, a] = np.where(mask[:, a], np.maximum(spread[:, a], spread[:, b]), -1)
        if (spread == number).all():
            break
        number = spread
    ids, sizes = np.unique(number[mask], return_counts=True)
    boxes = []
    for part in ids[sizes >= 40]:
        y, x = np.nonzero(number == part)
        boxes.append(np.array([x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()], np.float64))
    return boxes


def learn(records: list[ImageRecord], num_classes: int) -> np.ndarray:
    """(num_classes + 1, bins) how often each colour is a class's; the last row is the background's."""
    counts = np.ones((num_classes + 1, BINS**3))
    for record in records:
        canvas = np.full((record.height, record.width), num_classes)
        assert record.annotations is not None
        for (x0, y0, x1, y1), category in zip(
            record.annotations.boxes.astype(int), record.annotations.category_ids, strict=True
        ):
            canvas[y0:y1, x0:x1] = category - 1
        np.add.at(counts, (canvas, colours(record)), 1)
    return counts


def find(record: ImageRecord, counts: np.ndarray) -> Annotations:
    """Components of pixels likelier of a class than of the background, and components of one colour."""
    shares = counts / counts.sum(0)
    bins = colours(record)
    best = shares[:-1].argmax(0)
    boxes, classes, scores = [], [], []
    for c in range(len(counts) - 1):
        lift = shares[c] / (counts[c].sum() / counts.sum())
        mask = (best[bins] == c) & (lift[bins] > 1)
        for x, y, w, h in components(mask):
            boxes.append((x, y, w, h))
            classes.append(c + 1)
            inside = bins[int(y) : int(y + h), int(x) : int(x + w)]
            scores.append(float(shares[c][inside].mean()))
    # Objects that stand off from the image's own ground colour, whichever colours they have.
    pixels = np.asarray(Image.open(io.BytesIO(record.image))).astype(np.float64)
    off = np.abs(pixels - np.median(pixels, (0, 1))).max(-1) > 60
    for x, y, w, h in components(off):
        inside = bins[int(y) : int(y + h), int(x) : int(x + w)]
        per_class = shares[:-1][:, inside].mean((1, 2))
        for c in range(len(per_class)):
            boxes.append((x, y, w, h))
            classes.append(c + 1)
            scores.append(float(per_class[c]))
    return Annotations.from_boxes(
        np.array(boxes).reshape(-1, 4), np.array(classes, np.int64), scores=np.array(scores).clip(0, 1)
    )


def test_colour_thresholds_stay_below_ap50_of_0_4() -> None:
    source = SyntheticSource(seed=11, num_train=40, num_val=20, size=(SIDE, SIDE))
    records = [source.load(item) for item in source.scan()]
    counts = learn([r for r in records if r.split == "train"], len(source.label_map))
    val = [r for r in records if r.split == "val"]
    truths = [(r.image_id, r.annotations) for r in val if r.annotations is not None]
    metrics = evaluate_boxes(truths, [(r.image_id, find(r, counts)) for r in val], source.label_map)
    assert metrics.detections_per_class.min() > 20, "the baseline must have tried"
    assert metrics.stats["AP50"] < 0.4
    print(f"colour threshold baseline: AP50 {metrics.stats['AP50']:.3f}")


def test_the_baseline_solves_what_colour_can_solve() -> None:
    """So that its failure says something: objects of one colour a class on a plain ground."""
    tints = {1: (230, 20, 20), 2: (20, 200, 20), 3: (20, 20, 230)}
    rng = np.random.default_rng(0)
    source = SyntheticSource(seed=0, num_train=1, num_val=0, size=(SIDE, SIDE))
    template = source.load(next(iter(source.scan())))
    records = []
    for index in range(12):
        pixels = np.full((SIDE, SIDE, 3), 110, np.uint8)
        boxes = []
        for column in range(3):
            w, h = rng.integers(15, 50, 2)
            x, y = 5 + 60 * column, int(rng.integers(5, 120))
            pixels[y : y + h, x : x + w] = tints[column + 1]
            boxes.append((x, y, w, h))
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        truth = Annotations.from_boxes(np.array(boxes, np.float64), np.array([1, 2, 3]))
        fields = {name: getattr(template, name) for name in template.__slots__}
        records.append(ImageRecord(**{**fields, "image": png.getvalue(), "annotations": truth, "image_id": str(index)}))
    counts = learn(records[:8], 6)
    truths = [(r.image_id, r.annotations) for r in records[8:] if r.annotations is not None]
    metrics = evaluate_boxes(truths, [(r.image_id, find(r, counts)) for r in records[8:]], source.label_map)
    assert metrics.stats["AP50"] > 0.9
