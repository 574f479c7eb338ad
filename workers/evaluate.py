"""Measure predictions against a dataset's truth and write metrics and report. Runs where it is called, without Ray."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.metrics.coco import CocoMetrics, evaluate_boxes
from pipelines.metrics.pairing import Pairs, pair
from pipelines.predictions import open_predictions
from pipelines.report import write_report
from pipelines.storage import split_uri
from pipelines.versions import open_dataset
from workers.progress import Progress

_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        metrics: COCO's numbers.
        dataset_ref, predictions_ref: pinned to their versions.
        splits: what was measured.
        unknown_images: predicted images that the dataset does not have; not measured.
        images_without_row: images with truth but no prediction; counted as nothing found.
        failed_images: images that the model could not read; likewise.
        report_uri, metrics_uri: None where none was asked for.
    """

    metrics: CocoMetrics
    dataset_ref: str
    predictions_ref: str
    splits: tuple[str, ...]
    unknown_images: tuple[str, ...]
    images_without_row: tuple[str, ...]
    failed_images: tuple[str, ...]
    report_uri: str | None = None
    metrics_uri: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; what is written to ``metrics_uri``."""
        named = ("dataset_ref", "predictions_ref", "splits", "unknown_images", "images_without_row", "failed_images")
        return {**{name: getattr(self, name) for name in named}, **self.metrics.to_json()}


def evaluate(
    dataset_ref: str,
    predictions_ref: str,
    splits: Collection[str] | None = None,
    report_uri: str | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    *,
    metrics_uri: str | None = None,
    baseline: Mapping[str, float] | None = None,
    title: str = "Detection report",
    progress: Progress | None = None,
) -> EvaluationResult:
    """COCO box metrics of predictions against truth.

    Categories are matched by name; their ids may differ. Images are matched by ``image_id``.

    Args:
        dataset_ref: the truth, ``URI[@labels/<set>[:<version>]]``.
        predictions_ref: ``URI@labels/<set>[:<version>]``.
        splits: of the truth; None for all.
        report_uri: where to write the HTML report, any fsspec URL; None for none.
        history: the training's history for the report's curves.
        metrics_uri: where to write the numbers as JSON; None for none.
        baseline: an untrained model's numbers by name, shown beside these in the report.
        title: of the report.
    Raises:
        DatasetNotFound: of either reference.
        CategoryMismatch: a predicted category that the truth does not have.
        ValueError: a split that the dataset has not, or nothing to measure.
    """
    steps = 2 + (report_uri is not None)
    tell = progress or _silent
    tell("evaluate", 0, steps)
    dataset, predictions = open_dataset(dataset_ref), open_predictions(predictions_ref)
    pairs = pair(dataset, predictions, splits)
    tell("evaluate", 1, steps)
    metrics = evaluate_boxes(
        ((image.image_id, image.truth) for image in pairs.images),
        ((image.image_id, image.found) for image in pairs.images),
        pairs.label_map,
    )
    tell("evaluate", 2, steps, AP=metrics.stats["AP"], AP50=metrics.stats["AP50"])
    if report_uri is not None:
        report_uri = write_report(
            report_uri,
            dataset=dataset,
            predictions=predictions,
            metrics=metrics,
            history=history,
            title=title,
            baseline=baseline,
            splits=splits,
            pairs=pairs,
            notes=notes(pairs),
        )
        tell("evaluate", 3, steps)
    result = EvaluationResult(
        metrics=metrics,
        dataset_ref=dataset.reference,
        predictions_ref=predictions.reference,
        splits=tuple(sorted(splits if splits is not None else dataset.splits)),
        unknown_images=pairs.unknown,
        images_without_row=pairs.without_row,
        failed_images=tuple(image_id for image_id, _ in pairs.failed),
        report_uri=report_uri,
        metrics_uri=metrics_uri,
    )
    if metrics_uri is not None:
        store, name = split_uri(metrics_uri)
        store.write_bytes(name, json.dumps(result.to_json(), indent=2).encode())
    return result


def notes(pairs: Pairs) -> list[str]:
    """What did not fit, one sentence each, with the first names."""
    found = (
        (pairs.unknown, "predicted image{s} {are} not in the dataset and {are} not measured"),
        (pairs.without_row, "image{s} with truth {have} no prediction and count as nothing found"),
        ([image_id for image_id, _ in pairs.failed], "image{s} could not be read and count as nothing found"),
    )
    sentences = []
    for names, sentence in found:
        if names:
            one = len(names) == 1
            words = sentence.format(s="" if one else "s", are="is" if one else "are", have="has" if one else "have")
            listed = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
            sentences.append(f"{len(names):,} {words}: {listed}")
    return sentences


def _silent(stage: str, done: int, total: int, **numbers: float) -> None:
    """Nobody listens."""
