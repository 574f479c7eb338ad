"""How sure a number is: intervals from drawing the images again.

Images are drawn, not detections, since those of one image have much in common. Matches hold within an image, so that a
drawn sample is a weighting of the images and its average precision needs sums alone.

Source: Efron, Tibshirani: An Introduction to the Bootstrap (1993), the percentile interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.metrics.matches import MatchTable
from pipelines.metrics.ranking import average_precisions, mean_over_classes, rankings
from pipelines.metrics.slices import iou_rows
from pipelines.records import FloatArray

_WEIGHTS_AT_ONCE = 1 << 23  # 64 MB of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number and between which bounds it may lie.

    Attributes:
        value: on the images as they are; None, as all others, without truth.
        low, high: the bounds.
        std: standard error.
    """

    value: float | None
    low: float | None
    high: float | None
    std: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapIntervals:
    """Intervals of the headline numbers and of each class.

    Attributes:
        confidence: of the intervals, such as 0.95.
        resamples, seed, num_images: what they were made of.
        overall: by statistic.
        per_class: by class name, then by statistic.
    """

    confidence: float
    resamples: int
    seed: int
    num_images: int
    overall: Mapping[str, Interval]
    per_class: Mapping[str, Mapping[str, Interval]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bootstrap_intervals(
    table: MatchTable,
    *,
    statistics: Sequence[str] = ("AP", "AP50"),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    area: str = "all",
) -> BootstrapIntervals:
    """Draw as many images as there are, with replacement, again and again.

    The intervals are of what the detector would reach on ever more images of this kind. They are honest from about a
    hundred images; with fewer they are too narrow. A class without truth in a sample is left out of that sample's mean.

    Args:
        table: of matches.
        statistics: ``AP`` (the mean over all IoU thresholds), ``AP50`` and the like; ``AP50`` alone is much faster.
        resamples: how often; 1000 for bounds that are steady to about a tenth of the interval.
        confidence: in (0, 1).
        seed: of the draws; equal seeds draw the same images whatever the model.
        area: a range of the table's settings.
    Raises:
        ValueError: fewer than 2 resamples, a confidence outside (0, 1), an unknown statistic or area.
    """
    check_resampling(resamples, confidence)
    rows = {name: iou_rows(table.settings, name) for name in statistics}
    used = sorted({at for some in rows.values() for at in some})
    ranked = [ranking.at(used) for ranking in rankings(table, area)]
    names = table.label_map.names
    # (C, B, T) of the images as they are, which come first, and of all samples.
    found = np.full((len(names), resamples + 1, len(used)), np.nan)
    if table.num_images:
        for k, ranking in enumerate(ranked):
            found[k, :1] = average_precisions(ranking, np.ones((1, table.num_images)))
        for drawn, weights in draw_images(table.num_images, resamples, seed):
            for k, ranking in enumerate(ranked):
                found[k, drawn.start + 1 : drawn.stop + 1] = average_precisions(ranking, weights)
    values = {name: found[:, :, [used.index(at) for at in some]].mean(2) for name, some in rows.items()}
    return BootstrapIntervals(
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        num_images=table.num_images,
        overall={name: _interval(mean_over_classes(value), confidence) for name, value in values.items()},
        per_class={
            name: {statistic: _interval(value[k], confidence) for statistic, value in values.items()}
            for k, name in enumerate(names)
        },
    )


def draw_images(num_images: int, resamples: int, seed: int) -> Iterator[tuple[slice, FloatArray]]:
    """Blocks of samples: which of them they are, and (b, I) how often each image was drawn."""
    generator = np.random.default_rng(seed)
    step = max(1, _WEIGHTS_AT_ONCE // num_images)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, num_images, (size, num_images))
        drawn += np.arange(size)[:, None] * num_images
        counts = np.bincount(drawn.ravel(), minlength=size * num_images)
        yield slice(start, start + size), counts.reshape(size, num_images).astype(np.float64)


def check_resampling(resamples: int, confidence: float) -> None:
    """Raises: ValueError: too few resamples, or a confidence outside (0, 1)."""
    if resamples < 2:
        raise ValueError(f"resamples must be 2 or more, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")


def bounds(samples: FloatArray, confidence: float) -> tuple[float, float, float]:
    """Low, high and standard error of the samples that are not NaN, of which there is one at least."""
    known = samples[~np.isnan(samples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high), float(known.std(ddof=1)) if len(known) > 1 else 0.0


def _interval(values: FloatArray, confidence: float) -> Interval:
    if np.isnan(values[0]) or np.isnan(values[1:]).all():
        return Interval(value=None if np.isnan(values[0]) else float(values[0]), low=None, high=None, std=None)
    low, high, std = bounds(values[1:], confidence)
    return Interval(value=float(values[0]), low=low, high=high, std=std)
