"""The match table against pycocotools's evalImgs: who takes whom, and what counts, to the last detection."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.metrics.match_files import read_matches, write_matches
from pipelines.metrics.matches import FALSE, IGNORED, TRUE, MatchTable, match_images
from pipelines.metrics.matching import best_first
from pipelines.metrics.settings import ALL_AREAS, AreaRange, IouType, MatchSettings, coco_settings
from tests.cocotools import (
    Document,
    Results,
    as_detections,
    as_label_map,
    as_numbers,
    as_sizes,
    as_truths,
    jittered,
    name_of,
    run_cocotools,
)


def table_of(truth: Document, results: Results, wanted: MatchSettings) -> MatchTable:
    return match_images(
        as_truths(truth),
        as_detections(results),
        as_label_map(truth),
        settings=wanted,
        sizes=as_sizes(truth),
        numbers=as_numbers(truth),
    )


def assert_matches_are_cocotools(truth: Document, results: Results, wanted: MatchSettings) -> MatchTable:
    table = table_of(truth, results, wanted)
    expected = run_cocotools(truth, results, wanted)
    labels = {c.category_id: label for label, c in enumerate(table.label_map.categories)}
    images = {name: at for at, name in enumerate(table.image_ids)}
    areas = {(area.low, area.high): a for a, area in enumerate(wanted.areas)}
    # A result's id is its place in the list, counted from 1; ours is its place in its image.
    places: dict[int, int] = {}
    seen: dict[int, int] = {}
    for at, result in enumerate(results):
        places[at + 1] = seen.get(result["image_id"], 0)
        seen[result["image_id"]] = places[at + 1] + 1
    rows = {
        (int(image), int(place)): row
        for row, (image, place) in enumerate(zip(table.images, table.det_index, strict=True))
    }
    checked = 0
    for one in expected.evalImgs:
        if one is None:
            continue
        image, label = images[name_of(one["image_id"])], labels[one["category_id"]]
        a = areas[tuple(one["aRng"])]
        own = [rows[image, places[d]] for d in one["dtIds"]]
        assert (table.labels[own] == label).all()
        np.testing.assert_array_equal(table.rank[own], np.arange(len(own)))
        outcomes = np.where(one["dtIgnore"], IGNORED, np.where(one["dtMatches"] > 0, TRUE, FALSE)).T
        np.testing.assert_array_equal(table.outcomes[own, a], outcomes.reshape(len(own), len(wanted.iou_thresholds)))
        if a == 0:
            matched = table.matched[own]
            ids = np.where(matched >= 0, table.truth_ids[matched] if table.num_truths else 0, 0)
            np.testing.assert_array_equal(ids, one["dtMatches"].T.reshape(ids.shape))
        truths = {int(i): row for row, i in enumerate(table.truth_ids)}
        ignored = table.truth_ignored[[truths[i] for i in one["gtIds"]], a]
        np.testing.assert_array_equal(ignored, np.array(one["gtIgnore"], bool))
        if a == 0:
            for d, row in enumerate(own):
                group = one["image_id"], one["category_id"]
                no_crowd = [at for at, truth in enumerate(expected._gts[group]) if not truth["iscrowd"]]
                assert table.best_iou[row] == (max(expected.ious[group][d, no_crowd]) if no_crowd else 0.0)
        checked += len(own)
    taking_part = int((table.rank < wanted.max_detections[-1]).sum())
    assert checked == len(wanted.areas) * taking_part
    assert (table.outcomes[table.rank >= wanted.max_detections[-1]] == IGNORED).all()
    assert (table.best_iou_any >= table.best_iou).all()
    return table


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_real_images_with_crowds(boxmill_data: Path, iou_type: IouType, tmp_path: Path) -> None:
    kind = "person_keypoints" if iou_type == "keypoints" else "instances"
    truth: Document = json.loads((boxmill_data / f"coco-mini/annotations/{kind}_val2017.json").read_text())
    assert any(a["iscrowd"] for a in truth["annotations"])
    results = jittered(truth, 3, masks=iou_type == "segm")
    if iou_type == "keypoints":
        for result in results:
            del result["bbox"]
    table = assert_matches_are_cocotools(truth, results, coco_settings(iou_type))
    assert (table.outcomes == TRUE).sum() > 100
    assert (table.best_iou_any > table.best_iou).any() or iou_type == "keypoints"  # which has one class
    again = read_matches(write_matches(table, str(tmp_path / "matches")))
    for field in fields(table):
        before, after = getattr(table, field.name), getattr(again, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after


# Few places and sizes, so that boxes coincide, overlaps are equal and areas lie on the bounds of ranges.
_BOXES = st.tuples(*[st.sampled_from([0.0, 4.0, 10.0])] * 2, *[st.sampled_from([8.0, 10.0, 32.0])] * 2)
_OBJECTS = st.fixed_dictionaries(
    {"image_id": st.integers(1, 3), "category_id": st.integers(0, 1), "bbox": _BOXES.map(list)}
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Document, Results]:
    truths = draw(st.lists(_OBJECTS, max_size=8))
    crowds = draw(st.lists(st.booleans(), min_size=len(truths), max_size=len(truths)))
    scores = st.sampled_from([0.2, 0.5, 0.9])
    results = [{**found, "score": draw(scores)} for found in draw(st.lists(_OBJECTS, max_size=12))]
    annotations: list[dict[str, Any]] = [
        {**one, "id": at + 1, "iscrowd": int(crowd), "area": one["bbox"][2] * one["bbox"][3]}
        for at, (one, crowd) in enumerate(zip(truths, crowds, strict=True))
    ]
    for one in annotations:
        x, y, w, h = one["bbox"]
        one["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    truth = {
        "images": [{"id": i, "width": 64, "height": 48} for i in (1, 2, 3)],
        "categories": [{"id": i, "name": f"c{i}"} for i in (0, 1)],
        "annotations": annotations,
    }
    return truth, results


_CUSTOM = MatchSettings(
    iou_thresholds=(0.25, 0.5, 1.0),
    areas=(ALL_AREAS, AreaRange(name="tiny", low=0, high=80), AreaRange(name="rest", low=80, high=1e9)),
    max_detections=(1, 3),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), custom=st.booleans())
def test_corner_cases(case: tuple[Document, Results], custom: bool) -> None:
    assert_matches_are_cocotools(*case, _CUSTOM if custom else coco_settings("bbox"))


@pytest.mark.parametrize("highest", [0, 79, 70_000, 2**40])
def test_sorting_by_digits_is_sorting(highest: int) -> None:
    rng = np.random.default_rng(highest)
    keys, scores = rng.integers(0, highest + 1, 5_000), rng.integers(-3, 9, 5_000) / 8
    keys[::2] = keys[0]
    np.testing.assert_array_equal(best_first(keys, scores), np.lexsort((-scores, keys)))
