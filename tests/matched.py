"""Truth and detections with all kinds of matches, and match tables of a detector whose behaviour is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.metrics.matches import FALSE, TRUE, MatchTable
from pipelines.metrics.settings import ALL_AREAS, MatchSettings
from pipelines.records import Annotations, LabelMap

Rows = list[tuple[str, Annotations]]


def label_map(num_classes: int) -> LabelMap:
    return LabelMap.from_json([{"id": k + 1, "name": f"class {k}"} for k in range(num_classes)])


def crowded_images(
    seed: int, *, num_images: int = 40, num_classes: int = 4, crowds: float = 0.0, tied: bool = True
) -> tuple[Rows, Rows]:
    """Truths, and detections around them: moved, of other classes, several of one truth, many of equal scores."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for at in range(num_images):
        n, m = int(rng.integers(0, 5)), int(rng.integers(0, 12))
        boxes = np.column_stack([rng.uniform(0, 150, (n, 2)), rng.uniform(15, 120, (n, 2))])
        categories = rng.integers(1, num_classes + 1, n)
        truth = Annotations.from_boxes(boxes, categories)
        truth.iscrowd[:] = rng.random(n) < crowds
        truths.append((f"image {at:03}", truth))
        guesses, of = rng.integers(1, num_classes + 1, m), rng.integers(0, max(n, 1), m)
        near = np.column_stack([rng.uniform(0, 150, (m, 2)), rng.uniform(15, 120, (m, 2))])
        if n:
            near = boxes[of] + rng.normal(0, 0.15, (m, 4)) * np.tile(boxes[of][:, 2:], 2)
            near[:, 2:] = np.maximum(near[:, 2:], 3)
            guesses = np.where(rng.random(m) < 0.7, categories[of], guesses)
        scores = np.round(rng.random(m), 1) if tied else rng.random(m)
        found.append((f"image {at:03}", Annotations.from_boxes(near, guesses, scores=scores)))
    return truths, found


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedDetector:
    """Finds an object if it is not too hard, and is misled by images more or less; scores tell how easy it was.

    Attributes:
        skill: shifts what is found, and its scores.
        num_classes: the second has more objects than the first, and so on.
    """

    skill: float = 0.0
    num_classes: int = 2

    def table(self, rng: np.random.Generator, num_images: int, *, of: MatchTable | None = None) -> MatchTable:
        """Matches on images drawn at random, or anew on those of another table."""
        columns: dict[str, list[np.ndarray]] = {"images": [], "labels": [], "scores": [], "matched": []}
        truth_images, truth_labels = [], []
        hard = rng.normal(0, 0.6, num_images)
        start = 0
        for label in range(self.num_classes):
            if of is None:
                own = np.repeat(np.arange(num_images), rng.poisson(1.0 + 0.5 * label, num_images))
            else:
                own = of.truth_images[of.truth_labels == label]
            ease = rng.normal(self.skill, 1, len(own)) - hard[own]
            taken = np.flatnonzero(ease > -0.8)
            misled = np.repeat(np.arange(num_images), rng.poisson(1.2 * np.exp(hard - 0.2)))
            logits = np.concatenate([ease[taken] + 0.5, rng.normal(-0.8, 1, len(misled))])
            columns["images"].append(np.concatenate([own[taken], misled]))
            columns["labels"].append(np.full(len(logits), label))
            columns["scores"].append(1 / (1 + np.exp(-logits)))
            columns["matched"].append(np.concatenate([start + taken, np.full(len(misled), -1)]))
            truth_images.append(own)
            truth_labels.append(np.full(len(own), label))
            start += len(own)
        flat = {name: np.concatenate(parts) for name, parts in columns.items()}
        return _table(num_images, label_map(self.num_classes), flat, truth_images, truth_labels)


def _table(
    num_images: int,
    labels: LabelMap,
    flat: dict[str, np.ndarray],
    truth_images: list[np.ndarray],
    truth_labels: list[np.ndarray],
) -> MatchTable:
    n, m = len(flat["labels"]), sum(map(len, truth_images))
    taken = flat["matched"]
    return MatchTable(
        settings=MatchSettings(iou_thresholds=(0.5,), areas=(ALL_AREAS,), max_detections=(100,)),
        label_map=labels,
        image_ids=tuple(map(str, range(num_images))),
        image_numbers=np.arange(num_images),
        images=flat["images"],
        labels=flat["labels"],
        scores=flat["scores"],
        det_index=np.arange(n),
        rank=np.zeros(n, np.int64),
        area=np.full(n, 1e4),
        best_iou=np.where(taken >= 0, 0.8, 0.0),
        best_truth=taken,
        best_iou_any=np.where(taken >= 0, 0.8, 0.0),
        best_truth_any=taken,
        best_iou_other=np.zeros(n),
        best_truth_other=np.full(n, -1),
        matched=taken[:, None].astype(np.int32),
        outcomes=np.where(taken >= 0, TRUE, FALSE).astype(np.uint8)[:, None, None],
        truth_images=np.concatenate(truth_images),
        truth_labels=np.concatenate(truth_labels),
        truth_ids=np.arange(1, m + 1),
        truth_area=np.full(m, 1e4),
        truth_iscrowd=np.zeros(m, np.bool_),
        truth_ignored=np.zeros((m, 1), np.bool_),
    )
