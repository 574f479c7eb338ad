"""Is one model better than another, or were its images luckier? Paired tests on the same images.

Two questions, two ways: how large the difference is, by drawing the images again, the same for both models; and whether
it could be chance, by swapping the models' detections on images at random, as if it did not matter whose they are.

Legend: C classes, B samples, I images, T thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipelines.metrics.bootstrap import bounds, check_resampling, draw_images
from pipelines.metrics.matches import MatchTable
from pipelines.metrics.ranking import Ranking, average_precisions, make_ranking, mean_over_classes, rankings
from pipelines.metrics.slices import iou_rows
from pipelines.records import FloatArray

_ROUNDING = 1e-12  # differences below it are equal: sums of other orders


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One number of both models.

    Attributes:
        first, second: 0..1; None, as all others, without truth.
        difference: second less first.
        low, high: the bootstrap interval of the difference.
        p_value: how often swapping at random makes a difference as large or larger, in either direction.
        p_adjusted: the same, raised for there being many classes (Holm); equal to it for the headline numbers.
    """

    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_adjusted: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        confidence: of the intervals.
        resamples, permutations, seed, num_images: what they were made of.
        overall: by statistic.
        per_class: by class name, then by statistic.
    """

    confidence: float
    resamples: int
    permutations: int
    seed: int
    num_images: int
    overall: Mapping[str, Difference]
    per_class: Mapping[str, Mapping[str, Difference]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_models(
    first: MatchTable,
    second: MatchTable,
    *,
    statistics: Sequence[str] = ("AP", "AP50"),
    resamples: int = 1000,
    permutations: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    area: str = "all",
) -> Comparison:
    """Compare two models by matches with the same truth.

    A p-value is at least 1 / (permutations + 1). What is tested is that on every image either model's detections
    might as well be the other's, scores included: models whose scores mean different things differ in that too.

    Args:
        first, second: match tables of the same images, classes, truth and settings.
        statistics: ``AP`` (the mean over all IoU thresholds), ``AP50`` and the like; ``AP50`` alone is much faster.
        resamples: of the interval.
        permutations: of the test.
        confidence: in (0, 1).
        seed: of both.
        area: a range of the tables' settings.
    Raises:
        ValueError: the tables are not of the same truth; fewer than 2 resamples or permutations, a confidence outside
            (0, 1), an unknown statistic or area.
    """
    _check_comparable(first, second)
    check_resampling(resamples, confidence)
    if permutations < 2:
        raise ValueError(f"permutations must be 2 or more, got {permutations}")
    rows = {name: iou_rows(first.settings, name) for name in statistics}
    used = sorted({at for some in rows.values() for at in some})
    rankings_of = [[ranking.at(used) for ranking in rankings(table, area)] for table in (first, second)]
    observed, drawn, swapped = _sample(rankings_of, first.num_images, resamples, permutations, seed)
    names = first.label_map.names
    overall: dict[str, Difference] = {}
    per_class: dict[str, dict[str, Difference]] = {name: {} for name in names}
    for statistic, some in rows.items():
        at = [used.index(threshold) for threshold in some]
        seen, resampled, permuted = (values[..., at].mean(-1) for values in (observed, drawn, swapped))
        overall[statistic] = _difference(_of_all(seen), _of_all(resampled), _of_all(permuted), confidence)
        found = {
            name: _difference(seen[:, k], resampled[:, k], permuted[:, k], confidence) for k, name in enumerate(names)
        }
        for name, difference in _adjusted(found).items():
            per_class[name][statistic] = difference
    return Comparison(
        confidence=confidence,
        resamples=resamples,
        permutations=permutations,
        seed=seed,
        num_images=first.num_images,
        overall=overall,
        per_class=per_class,
    )


def _check_comparable(first: MatchTable, second: MatchTable) -> None:
    if first.image_ids != second.image_ids:
        ours, theirs = set(first.image_ids), set(second.image_ids)
        strange = sorted(ours ^ theirs)
        which = f"{strange[0]!r} is in one alone" if strange else "their order differs"
        raise ValueError(f"the two evaluations are of different images ({which}); evaluate both on the same images")
    if first.label_map.names != second.label_map.names:
        raise ValueError("the two evaluations are of different classes; evaluate both against the same dataset")
    if first.settings != second.settings:
        raise ValueError("the two evaluations were matched with different settings; use the same for both")
    same = all(
        np.array_equal(getattr(first, column), getattr(second, column))
        for column in ("truth_images", "truth_labels", "truth_ids", "truth_ignored")
    )
    if not same:
        raise ValueError("the two evaluations are of different truth; evaluate both on the same version of the dataset")


def _sample(
    rankings_of: list[list[Ranking]], num_images: int, resamples: int, permutations: int, seed: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(2, C, 1, T) of the models as they are, (2, C, B, T) of drawn images, (2, C, B, T) of swapped detections."""
    num_classes, num_thresholds = len(rankings_of[0]), len(rankings_of[0][0].is_true) if rankings_of[0] else 0
    made = [np.full((2, num_classes, b, num_thresholds), np.nan) for b in (1, resamples, permutations)]
    observed, drawn, swapped = made
    if not num_images:
        return observed, drawn, swapped
    for model, ranked in enumerate(rankings_of):
        for k, ranking in enumerate(ranked):
            observed[model, k] = average_precisions(ranking, np.ones((1, num_images)))
    for rows, weights in draw_images(num_images, resamples, seed):
        for model, ranked in enumerate(rankings_of):
            for k, ranking in enumerate(ranked):
                drawn[model, k, rows] = average_precisions(ranking, weights)
    both = [_side_by_side(a, b, num_images) for a, b in zip(*rankings_of, strict=True)]
    for rows, swap in _swaps(num_images, permutations, seed):
        asked = np.ones((len(swap), num_images))
        for k, ranking in enumerate(both):
            swapped[0, k, rows] = average_precisions(ranking, np.hstack([1 - swap, swap]), asked)
            swapped[1, k, rows] = average_precisions(ranking, np.hstack([swap, 1 - swap]), asked)
    return observed, drawn, swapped


def _side_by_side(first: Ranking, second: Ranking, num_images: int) -> Ranking:
    """Detections of both; those of the second are on images of their own, I further on."""
    return make_ranking(
        np.concatenate([first.images, second.images + num_images]),
        np.concatenate([first.scores, second.scores]),
        np.hstack([first.is_true, second.is_true]),
        np.hstack([first.ignored, second.ignored]),
        first.truth_images,
    )


def _swaps(num_images: int, permutations: int, seed: int) -> Iterator[tuple[slice, FloatArray]]:
    """Blocks of samples: which of them they are, and (b, I) ones where the models change places."""
    generator = np.random.default_rng([seed, 1])  # not the numbers that images are drawn by
    step = max(1, (1 << 22) // num_images)
    for start in range(0, permutations, step):
        size = min(step, permutations - start)
        yield slice(start, start + size), generator.integers(0, 2, (size, num_images)).astype(np.float64)


def _of_all(values: FloatArray) -> FloatArray:
    """(2, B) the means of (2, C, B) over the classes."""
    return np.stack([mean_over_classes(of_model) for of_model in values])


def _difference(seen: FloatArray, resampled: FloatArray, permuted: FloatArray, confidence: float) -> Difference:
    first, second = float(seen[0, 0]), float(seen[1, 0])
    by_drawing = resampled[1] - resampled[0]
    if np.isnan(first) or np.isnan(by_drawing).all():
        return Difference(first=None, second=None, difference=None, low=None, high=None, p_value=None, p_adjusted=None)
    low, high, _ = bounds(by_drawing, confidence)
    by_swapping = np.abs(permuted[1] - permuted[0])
    # The models as they are count as one of the ways to swap, so that no p-value is zero.
    as_large = 1 + int((by_swapping >= abs(second - first) - _ROUNDING).sum())
    p_value = as_large / (len(by_swapping) + 1)
    return Difference(
        first=first,
        second=second,
        difference=second - first,
        low=low,
        high=high,
        p_value=p_value,
        p_adjusted=p_value,
    )


def _adjusted(found: Mapping[str, Difference]) -> dict[str, Difference]:
    """Holm's step-down: the least p-value times the number of tests, the next times one less, never falling."""
    tested = sorted((d.p_value, name) for name, d in found.items() if d.p_value is not None)
    adjusted, least = {}, 0.0
    for at, (p_value, name) in enumerate(tested):
        least = max(least, min(1.0, p_value * (len(tested) - at)))
        adjusted[name] = least
    return {name: replace(d, p_adjusted=adjusted.get(name)) for name, d in found.items()}
