"""A slice is measured as if the rest were not there."""

from __future__ import annotations

import json

import pytest

from pipelines.metrics.coco import evaluate_boxes, number_or_none
from pipelines.metrics.matches import match_images
from pipelines.metrics.settings import MatchSettings
from pipelines.metrics.slices import NO_GROUP, measure_sizes, measure_slices
from tests.matched import crowded_images, label_map

LABELS = label_map(5)  # of which the last has no object


def test_slices_are_evaluations_of_their_own() -> None:
    truths, found = crowded_images(6, crowds=0.1)
    table = match_images(truths, found, LABELS)
    groups = {name: ("day", "night", None)[at % 3] for at, (name, _) in enumerate(truths)}
    slices = measure_slices(table, groups, by="light")
    assert list(slices.parts) == ["day", "night", NO_GROUP]
    for part, (name, of_part) in enumerate(slices.parts.items()):
        own = evaluate_boxes(truths[part::3], found[part::3], LABELS)
        assert of_part.num_images == len(truths[part::3])
        assert of_part.num_truths == own.truths_per_class.sum()
        for statistic in ("AP", "AP50", "AP75"):
            assert getattr(of_part, statistic) == pytest.approx(own.stats[statistic], abs=1e-12)
        assert pytest.approx(own.stats["AR_100"], abs=1e-12) == of_part.AR
        assert of_part.AP_per_class["class 4"] is None
        for label, value in of_part.AP_per_class.items():
            assert value == pytest.approx(number_or_none(own.per_class[label].AP), abs=1e-12), name
    assert sum(part.num_detections for part in slices.parts.values()) == (table.outcomes[:, 0] != 2).any(1).sum()
    assert json.loads(json.dumps(slices.to_json(), allow_nan=False))["by"] == "light"
    medium = measure_slices(table, groups, by="light", area="medium")
    own = evaluate_boxes(truths[::3], found[::3], LABELS)
    assert pytest.approx(own.stats["AP_medium"], abs=1e-12) == medium.parts["day"].AP


def test_sizes_are_coco_s() -> None:
    truths, found = crowded_images(6, crowds=0.1)
    stats = evaluate_boxes(truths, found, LABELS).stats
    sizes = measure_sizes(match_images(truths, found, LABELS))
    assert list(sizes.parts) == ["all", "small", "medium", "large"]
    for size in ("small", "medium", "large"):
        assert pytest.approx(stats[f"AP_{size}"], abs=1e-12) == sizes.parts[size].AP
        assert pytest.approx(stats[f"AR_{size}"], abs=1e-12) == sizes.parts[size].AR
    assert sizes.parts["all"].num_truths == sum(sizes.parts[s].num_truths for s in ("small", "medium", "large"))


def test_what_is_not_there_has_no_number() -> None:
    assert measure_slices(match_images([], [], LABELS), {}, by="split").parts == {}
    truths, found = crowded_images(6)
    table = match_images(truths, found, LABELS, settings=MatchSettings(iou_thresholds=(0.5, 0.6)))
    part = measure_slices(table, {}, by="split").parts[NO_GROUP]
    assert part.AP75 is None and part.AP50 > part.AP > 0
    assert measure_sizes(match_images([], [], LABELS)).parts["all"].AP is None
    with pytest.raises(ValueError, match="no area range 'tiny'"):
        measure_slices(table, {}, by="split", area="tiny")
