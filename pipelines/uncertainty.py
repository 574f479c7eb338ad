"""How unsure a model is of an image, from the scores of its objects."""

from __future__ import annotations

from typing import Literal, assert_never, get_args

import numpy as np

from pipelines.records import FloatArray, IntArray

Measure = Literal["margin", "entropy", "least_confident"]
Aggregate = Literal["max", "mean", "sum"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)


def object_uncertainty(scores: FloatArray, measure: Measure = "margin") -> FloatArray:
    """Of single objects.

    Args:
        scores: (N,) in [0, 1].
        measure: ``margin`` 1 - |2s - 1|, how near the score is to a toss-up; ``entropy`` of the score in bits;
            ``least_confident`` 1 - s.
    Returns:
        (N,) in [0, 1]; the first two are 1 at a score of a half.
    Source: margin (1-vs-2 of two outcomes) as in Brust et al., Active Learning for Deep Object Detection, 2019.
    """
    scores = np.clip(np.asarray(scores, np.float64), 0.0, 1.0)
    match measure:
        case "margin":
            return 1.0 - np.abs(2.0 * scores - 1.0)
        case "entropy":
            both = np.stack([scores, 1.0 - scores])
            return -(both * np.log2(np.where(both > 0, both, 1.0))).sum(axis=0)
        case "least_confident":
            return 1.0 - scores
        case _:
            assert_never(measure)


def image_uncertainty(values: FloatArray, images: IntArray, count: int, aggregate: Aggregate = "max") -> FloatArray:
    """Of images, from that of their objects.

    Args:
        values: (N,) of the objects, at least 0.
        images: (N,) int64 in 0..count-1, whose object each is.
        count: number of images.
        aggregate: ``max`` asks for the most doubtful object, ``sum`` prefers images with many, ``mean`` does neither.
    Returns:
        (count,); 0 for images without objects.
    """
    found = np.zeros(count)
    match aggregate:
        case "max":
            np.maximum.at(found, images, values)
        case "sum" | "mean":
            found = np.bincount(images, weights=values, minlength=count).astype(np.float64)
            if aggregate == "mean":
                found /= np.maximum(np.bincount(images, minlength=count), 1)
        case _:
            assert_never(aggregate)
    return found
