"""Measure predictions against a dataset's truth and write metrics and report; without Ray unless workers are wanted."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.metrics.analysis import Analysis, analyse
from pipelines.metrics.coco import CocoMetrics, evaluate_columns, metrics_of
from pipelines.metrics.coco import evaluate as evaluate_coco
from pipelines.metrics.counting import counts_of
from pipelines.metrics.grouping import SIZE, image_groups
from pipelines.metrics.incremental import evaluate_incrementally
from pipelines.metrics.lvis import LvisMetrics
from pipelines.metrics.match_files import write_matches
from pipelines.metrics.matches import MatchTable, match_images
from pipelines.metrics.pairing import Pairs, pair, unpaired
from pipelines.metrics.reading import read_columns
from pipelines.metrics.settings import IouType, MatchSettings, coco_settings, with_sigmas
from pipelines.metrics.voc import VocMetrics
from pipelines.predictions import PredictionSet, open_predictions
from pipelines.records import Annotations
from pipelines.report import write_report
from pipelines.report.markdown import to_markdown
from pipelines.storage import split_uri
from pipelines.versions import Dataset, open_dataset
from workers.evaluate_protocols import Protocol, check_protocol, measure_lvis, measure_voc
from workers.progress import Progress

_NAMED = 5
_Rows = list[tuple[str, Annotations]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        metrics: COCO's numbers, whatever the protocol; for ``lvis`` of the detections that it judges.
        protocol: by which ``stats`` are measured.
        by_protocol: what the protocol found where it is not COCO's.
        analysis: None where nothing asked for it.
        dataset_ref, predictions_ref: pinned to their versions.
        compared_ref: of the predictions to compare with.
        splits: what was measured.
        unknown_images: predicted images that the dataset does not have; not measured.
        images_without_row: images with truth but no prediction; counted as nothing found.
        failed_images: images that the model could not read; likewise.
        report_uri, metrics_uri, markdown_uri, matches_uri: None where none was asked for.
        shards_matched, shards_known: of which shards detections were matched, and of which the matches were in the
            cache; None where neither a cache nor workers were used.
    """

    metrics: CocoMetrics
    dataset_ref: str
    predictions_ref: str
    splits: tuple[str, ...]
    unknown_images: tuple[str, ...]
    images_without_row: tuple[str, ...]
    failed_images: tuple[str, ...]
    protocol: Protocol = "coco"
    by_protocol: VocMetrics | LvisMetrics | None = None
    analysis: Analysis | None = None
    compared_ref: str | None = None
    report_uri: str | None = None
    metrics_uri: str | None = None
    markdown_uri: str | None = None
    matches_uri: str | None = None
    shards_matched: int | None = None
    shards_known: int | None = None

    @property
    def stats(self) -> dict[str, float]:
        """The protocol's headline numbers, 0..1, or -1 without truth."""
        return (self.by_protocol or self.metrics).stats

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; what is written to ``metrics_uri``."""
        named = ("dataset_ref", "predictions_ref", "splits", "unknown_images", "images_without_row", "failed_images")
        told = {name: getattr(self, name) for name in named}
        if self.compared_ref is not None:
            told["compared_ref"] = self.compared_ref
        numbers = self.metrics.to_json()
        if self.by_protocol is not None:
            # What only COCO has (curves, counts) stays beside what the protocol says.
            numbers = {**numbers, "coco_stats": numbers["stats"], **self.by_protocol.to_json()}
        analysis = {} if self.analysis is None else {"analysis": self.analysis.to_json()}
        return {**told, "protocol": self.protocol, **numbers, **analysis}


def evaluate(
    dataset_ref: str,
    predictions_ref: str,
    splits: Collection[str] | None = None,
    report_uri: str | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    *,
    metrics_uri: str | None = None,
    markdown_uri: str | None = None,
    matches_uri: str | None = None,
    iou_type: IouType = "bbox",
    protocol: Protocol = "coco",
    by: Sequence[str] = (),
    compare_ref: str | None = None,
    resamples: int = 1000,
    oks_sigmas: Mapping[str, Sequence[float]] | None = None,
    baseline: Mapping[str, float] | None = None,
    title: str = "Detection report",
    cache_uri: str | None = None,
    workers: int = 1,
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Metrics of predictions against truth, and what can be learnt from the mistakes.

    Categories are matched by name; their ids may differ. Images are matched by ``image_id``. Detections are matched
    with truth once, whatever is asked.

    Args:
        dataset_ref: the truth, ``URI[@labels/<set>[:<version>]]``.
        predictions_ref: ``URI@labels/<set>[:<version>]``.
        splits: of the truth; None for all.
        report_uri: where to write the HTML report, any fsspec URL; None for none.
        history: the training's history for the report's curves.
        metrics_uri: where to write the numbers as JSON; None for none.
        markdown_uri: where to write them as Markdown; None for none.
        matches_uri: folder to write the match table to, as Parquet; None for none.
        iou_type: what is compared: ``bbox``, ``segm`` or ``keypoints``.
        protocol: ``coco``, ``voc07``, ``voc10`` (boxes) or ``lvis`` (boxes and masks).
        by: columns to measure parts of the dataset by: ``split``, ``source``, ``size`` or another, see
            ``pipelines.metrics.grouping``.
        compare_ref: other predictions on the same dataset, which these are compared with.
        resamples: for confidence intervals and the comparison; 0 for no intervals.
        oks_sigmas: spreads of keypoints by category, where they are not COCO's 17.
        baseline: an untrained model's numbers by name, shown beside these in the report.
        title: of the report.
        cache_uri: folder that remembers what each shard's matches count, so that a later evaluation matches only
            shards that have changed. It serves COCO's numbers alone; whatever needs the matches themselves (a
            report, files, parts, a comparison) makes them anew.
        workers: how many Ray tasks match shards at once; 1 matches them here, without Ray. As the cache, for COCO's
            numbers alone.
        ray_address: of their cluster; None uses RAY_ADDRESS, or else a cluster of this machine's own.
    Raises:
        DatasetNotFound: of any reference.
        CategoryMismatch: a predicted category that the truth does not have.
        ValueError: a split or column that the dataset has not, nothing to measure, or what cannot be measured so.
    """
    check_protocol(protocol, iou_type)
    if workers < 1:
        raise ValueError(f"workers={workers}: give at least 1")
    steps = 2 + (report_uri is not None)
    tell = progress or _silent
    tell("evaluate", 0, steps)
    dataset, predictions = open_dataset(dataset_ref), open_predictions(predictions_ref)
    # All that needs the match table: without it only what can come to count is read and compared.
    wanted = bool(by) or any(u is not None for u in (report_uri, metrics_uri, markdown_uri, matches_uri, compare_ref))
    settings = with_sigmas(coco_settings(iou_type), oks_sigmas)
    if protocol == "coco" and not wanted:
        return _numbers(dataset, predictions, splits, settings, cache_uri, workers, ray_address, tell)
    if workers > 1:
        raise ValueError(
            f"workers={workers}: only COCO's numbers are counted by several; the report, files, parts, comparisons and "
            "other protocols need all matches in one process. Leave workers out, or ask for the numbers alone"
        )
    pairs = pair(dataset, predictions, splits)
    tell("evaluate", 1, steps)
    found: VocMetrics | LvisMetrics | None = None
    if protocol == "lvis":
        pairs, found = measure_lvis(dataset, pairs, iou_type)
    elif protocol != "coco":
        found = measure_voc(pairs, protocol)
    if isinstance(found, LvisMetrics):
        settings = with_sigmas(found.coco.settings, oks_sigmas)
    table = _match(pairs, settings) if wanted else None
    metrics = _coco_metrics(pairs, settings, table) if not isinstance(found, LvisMetrics) else found.coco
    tell("evaluate", 2, steps, AP=metrics.stats["AP"], AP50=metrics.stats["AP50"])

    compared = None if compare_ref is None else open_predictions(compare_ref)
    other = None
    if compared is not None:
        theirs = pair(dataset, compared, splits)
        other = _match(measure_lvis(dataset, theirs, iou_type)[0] if protocol == "lvis" else theirs, settings)
    analysis = None
    if table is not None:
        groups = [(name, image_groups(dataset, name, table.image_ids)) for name in dict.fromkeys(by) if name != SIZE]
        analysis = analyse(table, groups=groups, other=other, resamples=resamples)
        if matches_uri is not None:
            matches_uri = write_matches(table, matches_uri)
    if report_uri is not None:
        assert analysis is not None
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
            analysis=analysis,
            protocol=None if found is None else (protocol, found.stats),
            compared=None if compared is None else compared.reference,
        )
        tell("evaluate", 3, steps)
    result = EvaluationResult(
        metrics=metrics,
        protocol=protocol,
        by_protocol=found,
        analysis=analysis,
        dataset_ref=dataset.reference,
        predictions_ref=predictions.reference,
        compared_ref=None if compared is None else compared.reference,
        splits=tuple(sorted(splits if splits is not None else dataset.splits)),
        unknown_images=pairs.unknown,
        images_without_row=pairs.without_row,
        failed_images=tuple(image_id for image_id, _ in pairs.failed),
        report_uri=report_uri,
        metrics_uri=metrics_uri,
        markdown_uri=markdown_uri,
        matches_uri=matches_uri,
    )
    if metrics_uri is not None:
        _write(metrics_uri, json.dumps(result.to_json(), indent=2))
    if markdown_uri is not None:
        _write(markdown_uri, to_markdown(result.to_json(), title=title, notes=notes(pairs)))
    return result


def _numbers(
    dataset: Dataset,
    predictions: PredictionSet,
    splits: Collection[str] | None,
    settings: MatchSettings,
    cache_uri: str | None,
    workers: int,
    ray_address: str | None,
    tell: Progress,
) -> EvaluationResult:
    """COCO's numbers alone, from columns, or shard by shard where a cache knows them or others count them."""
    others = unpaired(dataset, predictions, splits)
    tell("evaluate", 1, 2)
    matched = known = None
    if cache_uri is not None or workers > 1:
        count = None
        if workers > 1:
            from workers.evaluate_shards import CountOnRay

            count = CountOnRay(
                dataset=dataset,
                predictions=predictions,
                splits=splits,
                settings=settings,
                workers=workers,
                ray_address=ray_address,
            )
        done = evaluate_incrementally(
            dataset,
            predictions,
            splits,
            settings=settings,
            cache_uri=cache_uri,
            cached=cache_uri is not None,
            count=count,
            threads=min(workers, os.cpu_count() or 1),
        )
        metrics, matched, known = done.metrics, done.matched, done.known
    else:
        truth, found = read_columns(dataset, predictions, splits, iou_type=settings.iou_type)
        metrics = evaluate_columns(truth, found, dataset.label_map, settings)
    tell("evaluate", 2, 2, AP=metrics.stats["AP"], AP50=metrics.stats["AP50"])
    return EvaluationResult(
        metrics=metrics,
        dataset_ref=dataset.reference,
        predictions_ref=predictions.reference,
        splits=tuple(sorted(splits if splits is not None else dataset.splits)),
        unknown_images=others.unknown,
        images_without_row=others.without_row,
        failed_images=tuple(image_id for image_id, _ in others.failed),
        shards_matched=matched,
        shards_known=known,
    )


def _match(pairs: Pairs, settings: MatchSettings) -> MatchTable:
    truths, found, sizes = _columns(pairs)
    return match_images(truths, found, pairs.label_map, settings=settings, sizes=sizes)


def _coco_metrics(pairs: Pairs, settings: MatchSettings, table: MatchTable | None) -> CocoMetrics:
    if table is not None:
        return metrics_of(counts_of(table), pairs.label_map, settings)
    truths, found, sizes = _columns(pairs)
    return evaluate_coco(truths, found, pairs.label_map, settings=settings, sizes=sizes)


def _columns(pairs: Pairs) -> tuple[_Rows, _Rows, dict[str, tuple[int, int]]]:
    """Truth, detections and sizes, the images in their order."""
    truths = [(image.image_id, image.truth) for image in pairs.images]
    found = [(image.image_id, image.found) for image in pairs.images]
    return truths, found, {image.image_id: (image.height, image.width) for image in pairs.images}


def _write(uri: str, text: str) -> None:
    store, name = split_uri(uri)
    store.write_bytes(name, text.encode())


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
