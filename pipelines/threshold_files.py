"""Score thresholds by the names of classes, as an evaluation finds them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pipelines.storage import read_uri, redact


def read_class_thresholds(uri: str) -> dict[str, float]:
    """Thresholds from a file.

    Args:
        uri: of the JSON that ``boxmill evaluate --metrics`` wrote, whose best threshold of each class is taken, or of
            JSON that maps names of classes to scores; any fsspec URL.
    Returns:
        Score by name, 0 to 1, above which detections are kept. Classes for which the evaluation found none (no truth,
        nothing found) are left out. The evaluation tells the lowest score that is worth keeping: of that the nearest
        smaller number is given, so that the detections which have it are kept.
    Raises:
        FileNotFoundError: no such file.
        ValueError: it is neither.
    """
    where = redact(uri)
    try:
        told: Any = json.loads(read_uri(uri))
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    if isinstance(told, dict) and "stats" in told:
        best = ((told.get("analysis") or {}).get("thresholds") or {}).get("per_class")
        if best is None:
            raise ValueError(
                f"{where} has an evaluation without thresholds; `boxmill evaluate` finds them where it writes a report"
            )
        told = {name: _just_below(of["score"]) for name, of in best.items() if of["score"] is not None}
    if not isinstance(told, dict) or not all(_is_score(score) for score in told.values()):
        raise ValueError(f'{where} must map names of classes to scores, as {{"cat": 0.4}}, or be what evaluate wrote')
    return {str(name): float(score) for name, score in told.items()}


def _just_below(score: float) -> float:
    """Of the numbers that models reckon with, which are of 32 bits, the next one towards 0."""
    return float(np.nextafter(np.float32(score), np.float32(0)))


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
