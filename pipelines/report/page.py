"""One self-contained HTML page about a dataset, a model's predictions on it and how good they are."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from pipelines.metrics.analysis import Analysis, analyse
from pipelines.metrics.bootstrap import BootstrapIntervals
from pipelines.metrics.coco import NO_TRUTH, CocoMetrics
from pipelines.metrics.matches import MatchTable, match_images
from pipelines.metrics.pairing import Pairs, pair
from pipelines.predictions import PredictionSet
from pipelines.report import figures
from pipelines.report.charts import Series
from pipelines.report.findings import findings
from pipelines.report.gallery import gallery
from pipelines.report.mistakes import worst_mistakes
from pipelines.storage import redact, split_uri
from pipelines.summary import DatasetSummary, summarise
from pipelines.versions import Dataset

GALLERY_SIZE = 24
_HEADLINES = (
    "mAP",
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_100",
    "AR",
    "AR_300",
    "AP_r",
    "AP_f",
)
_MEANING = {
    "AP": "mean over IoU .50–.95",
    "AP50": "at IoU .50",
    "AP75": "at IoU .75",
    "AP_small": "objects below 32² px",
    "AP_medium": "32² to 96² px",
    "AP_large": "above 96² px",
    "AR_1": "recall, 1 detection an image",
    "AR_10": "recall, 10 detections an image",
    "AR_100": "recall, 100 detections an image",
    "AR_small": "recall, small objects",
    "AR_medium": "recall, medium objects",
    "AR_large": "recall, large objects",
    "AR_300": "recall, 300 detections an image",
    "AR": "recall, mean over IoU .50–.95",
    "AR50": "recall at IoU .50",
    "AR75": "recall at IoU .75",
    "AP_r": "rare classes",
    "AP_c": "common classes",
    "AP_f": "frequent classes",
    "mAP": "mean over classes at IoU .50",
}
_MEASURED = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
_PROTOCOLS = {"coco": "COCO", "voc07": "PASCAL VOC 2007", "voc10": "PASCAL VOC 2010", "lvis": "LVIS"}
_PARTS = ("macros.html.j2", "analysis.html.j2", "parts.html.j2", "dataset.html.j2")


def write_report(
    out_uri: str,
    *,
    dataset: Dataset,
    predictions: PredictionSet,
    metrics: CocoMetrics,
    history: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Detection report",
    baseline: Mapping[str, float] | None = None,
    splits: Collection[str] | None = None,
    pairs: Pairs | None = None,
    notes: Sequence[str] = (),
    gallery_size: int = GALLERY_SIZE,
    analysis: Analysis | None = None,
    protocol: tuple[str, Mapping[str, float]] | None = None,
    compared: str | None = None,
) -> str:
    """Write the report.

    Args:
        out_uri: of the HTML file, any fsspec URL.
        history: one mapping an epoch with ``epoch``, ``loss``, ``loss_*``, ``AP``, ``AP50``, ...; for the curves.
        baseline: the untrained model's numbers by name (``AP``, ``AP50``, ...), shown beside the trained one's.
        splits: what was measured; None for every split.
        pairs: truth and predictions if they are joined already.
        notes: what the reader must know first, one sentence each.
        gallery_size: at most this many images.
        analysis: of the same truth and predictions; made here, without intervals, where it is None.
        protocol: name and headline numbers of a protocol other than COCO, shown first.
        compared: reference of the predictions that the analysis compares with.
    Returns:
        The URI.
    """
    pairs = pairs or pair(dataset, predictions, splits)
    summary = summarise(dataset)
    if analysis is None:
        analysis = analyse(_matched(pairs, metrics), resamples=0)
    threshold = analysis.score_threshold
    pictures = gallery(dataset, pairs.images, pairs.label_map, analysis.table, threshold=threshold, count=gallery_size)
    mistakes = worst_mistakes(
        dataset,
        pairs.images,
        pairs.label_map,
        analysis.table,
        analysis.mistakes,
        analysis.errors,
        threshold=threshold,
    )
    page = render(
        {
            "title": title,
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "splits": sorted(splits) if splits else sorted(dataset.splits),
            "notes": list(notes),
            "threshold": threshold,
            "pictures": pictures,
            "provenance": _provenance(dataset, predictions, metrics),
            **_numbers(metrics, baseline, protocol, analysis.intervals),
            **findings(analysis, mistakes, None if compared is None else redact(compared)),
            **_charts(metrics, history or (), summary),
            "summary": summary,
        }
    )
    store, name = split_uri(out_uri)
    store.write_bytes(name, page.encode())
    return store.join(name)


def _matched(pairs: Pairs, metrics: CocoMetrics) -> MatchTable:
    return match_images(
        ((image.image_id, image.truth) for image in pairs.images),
        ((image.image_id, image.found) for image in pairs.images),
        pairs.label_map,
        settings=metrics.settings,
        sizes={image.image_id: (image.height, image.width) for image in pairs.images},
    )


def render(values: Mapping[str, Any]) -> str:
    """The page from its values; everything is escaped but what is ``Markup`` already."""
    here = files("pipelines.report")
    parts = DictLoader({name: (here / name).read_text("utf-8") for name in _PARTS})
    environment = Environment(
        loader=parts, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    environment.filters["delta"] = lambda value: f"{value:+.3f}"
    template = environment.from_string((here / "report.html.j2").read_text("utf-8"))
    # Our own files: the only text that goes into the page unescaped.
    style = Markup((here / "report.css").read_text("utf-8"))
    script = Markup((here / "report.js").read_text("utf-8"))
    return template.render(style=style, script=script, **values)


def _number(value: float | None) -> str:
    return "n/a" if value is None or value == NO_TRUTH else f"{value:.3f}"


def _numbers(
    metrics: CocoMetrics,
    baseline: Mapping[str, float] | None,
    protocol: tuple[str, Mapping[str, float]] | None,
    intervals: BootstrapIntervals | None,
) -> dict[str, Any]:
    """The protocol's numbers, then COCO's where they are others."""
    before, name = baseline or {}, "coco" if protocol is None else protocol[0]
    stats = {**(protocol[1] if protocol is not None else {}), **metrics.stats}
    between = {} if intervals is None else intervals.overall
    rows = []
    for key, value in stats.items():
        interval = between.get(key)
        rows.append(
            {
                "name": key,
                "value": value,
                "before": before.get(key),
                "meaning": _MEANING.get(key, ""),
                "interval": None if interval is None or interval.low is None else interval,
            }
        )
    return {
        "headlines": [row for row in rows if row["name"] in _HEADLINES],
        "stats": rows,
        "has_baseline": any(row["before"] is not None for row in rows),
        "measured": f"{_PROTOCOLS[name]} {_MEASURED[metrics.settings.iou_type]}",
        "confidence": "" if intervals is None else f"{intervals.confidence:.0%}",
        "classes": [{"name": name, **c.to_json()} for name, c in metrics.per_class.items()],
        "num_images": metrics.num_images,
        "num_truths": int(metrics.truths_per_class.sum()),
        "num_detections": int(metrics.detections_per_class.sum()),
    }


def _charts(metrics: CocoMetrics, history: Sequence[Mapping[str, Any]], summary: DatasetSummary) -> dict[str, Any]:
    def chart(heading: str, svg: Markup, legend: Sequence[Series], note: str = "") -> dict[str, Any]:
        return {"heading": heading, "svg": svg, "legend": legend, "note": note}

    pr_lines = figures.pr_series(metrics)
    few = len(pr_lines) - 2 < sum(1 for c in metrics.per_class.values() if c.AP != NO_TRUTH) > 1
    note = "the most frequent classes at IoU .50 and the mean of all" if few else ""
    curves = [chart("Precision and recall", figures.pr_chart(metrics), pr_lines, note)]
    curves += [
        chart("Training loss", figures.loss_chart(history), figures.loss_series(history)),
        chart("Validation while training", figures.ap_chart(history), figures.ap_series(history)),
    ]
    sizes = "small below 32² px, large from 96² px"
    if len(summary.classes) > figures.MOST_CLASSES:
        sizes += f"; the {figures.MOST_CLASSES} most frequent of {len(summary.classes)} classes"
    about = [
        chart("Objects by class and size", figures.class_chart(summary), (), sizes),
        chart("Objects an image", figures.objects_chart(summary), ()),
        chart("Box sizes", figures.side_chart(summary), ()),
    ]
    return {"curves": [c for c in curves if c["svg"]], "about": [c for c in about if c["svg"]]}


def _provenance(dataset: Dataset, predictions: PredictionSet, metrics: CocoMetrics) -> list[dict[str, str]]:
    def entry(name: str, reference: str, digest: str, detail: Any) -> dict[str, str]:
        text = json.dumps(detail, indent=2, ensure_ascii=False, default=str)
        return {"name": name, "reference": redact(reference), "digest": digest, "detail": text}

    told = predictions.provenance
    entries = [
        entry("Dataset", dataset.reference, dataset.digest, dict(dataset.metadata.get("provenance") or {})),
        entry("Predictions", predictions.reference, predictions.digest, told),
        entry("Metrics", f"COCO {_MEASURED[metrics.settings.iou_type]}", metrics.engine, metrics.to_json()["stats"]),
    ]
    model = told.get("model")
    if isinstance(model, Mapping):
        entries.insert(1, entry("Model", str(model.get("uri", "")), str(model.get("digest", "")), dict(model)))
    return entries
