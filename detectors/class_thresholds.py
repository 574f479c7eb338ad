"""Thresholds that differ from class to class, where a detector chooses what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from detectors.base import Detector
from detectors.blocks.box_heads import BoxSelection
from detectors.blocks.postprocess import DenseSelection


def set_class_thresholds(detector: Detector, thresholds: Sequence[float]) -> bool:
    """Let a detector report of each class only what scores above the class's own threshold.

    It acts on candidates, before any limit: what does not pass takes no place among the best candidates nor among the
    most detections of an image. So a class gets exactly what it would get if its threshold were that of all classes, as
    long as less than these limits passes. (NMS is within classes, and worse boxes suppress no better ones.)

    Args:
        detector: is changed. Every one of the catalog takes thresholds, one of a user's own that chooses by a
            ``selection`` does too.
        thresholds: (C,), each 0 to 1; ``score_threshold`` of the detector's options goes on to hold for all.
    Returns:
        Whether it takes them; if not it is as it was.
    Raises:
        ValueError: not one for each class.
    """
    if len(thresholds) != detector.num_classes:
        raise ValueError(f"{len(thresholds)} thresholds for {detector.num_classes} classes; give one each")
    if not isinstance(detector.selection, DenseSelection | BoxSelection):
        return False
    detector.selection = replace(detector.selection, class_thresholds=tuple(thresholds))
    return True
