"""All arrays against pycocotools: boxes, masks and keypoints, by every engine and however the images are sharded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from pycocotools.cocoeval import COCOeval

from pipelines.metrics.coco import CocoMetrics, evaluate, metrics_of, stat_names
from pipelines.metrics.counting import Counts, counts_of, merge_counts
from pipelines.metrics.matches import match_images
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
    run_cocotools,
)
from tests.parity.test_matches import cases

ENGINES = ("boxmill", "hotcoco", "pycocotools")
ARRAYS = ("precision", "recall", "scores")
CUSTOM = {
    "bbox": MatchSettings(
        iou_thresholds=(0.3, 0.5, 0.75, 1.0),
        areas=(ALL_AREAS, AreaRange(name="tiny", low=0, high=500), AreaRange(name="huge", low=50_000, high=1e9)),
        max_detections=(2, 50),
    ),
    "segm": MatchSettings(iou_type="segm", iou_thresholds=(0.4, 0.8), areas=(ALL_AREAS,), max_detections=(3,)),
    "keypoints": MatchSettings(
        iou_type="keypoints", areas=(ALL_AREAS,), max_detections=(1, 5), oks_sigmas={"person": (0.05,) * 17}
    ),
}


EXPECTED: dict[str, COCOeval] = {}  # of the real images


def measure(truth: Document, results: Results, wanted: MatchSettings, engine: str) -> CocoMetrics:
    return evaluate(
        as_truths(truth),
        as_detections(results),
        as_label_map(truth),
        settings=wanted,
        sizes=as_sizes(truth),
        numbers=as_numbers(truth),
        engine=engine,  # type: ignore[arg-type]
    )


def document(folder: Path, iou_type: str) -> tuple[Document, Results]:
    kind = "person_keypoints" if iou_type == "keypoints" else "instances"
    truth: Document = json.loads((folder / f"coco-mini/annotations/{kind}_val2017.json").read_text())
    results = jittered(truth, 5, masks=iou_type == "segm")
    if iou_type == "keypoints":
        for result in results:
            del result["bbox"]
    return truth, results


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_real_images_with_crowds(boxmill_data: Path, iou_type: IouType) -> None:
    truth, results = document(boxmill_data, iou_type)
    for wanted in (coco_settings(iou_type), CUSTOM[iou_type]):
        expected = run_cocotools(truth, results, wanted)
        for engine in ENGINES:
            found = measure(truth, results, wanted, engine)
            for name in ARRAYS:
                np.testing.assert_array_equal(getattr(found, name), expected.eval[name], err_msg=f"{engine} {name}")
            if wanted == coco_settings(iou_type):
                expected.summarize()
                assert len(found.stats) == len(expected.stats) == (10 if iou_type == "keypoints" else 12)
                np.testing.assert_allclose(list(found.stats.values()), expected.stats, rtol=0, atol=1e-15)
    assert 0.1 < found.stats["AP"] < 0.9


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_corner_cases(case: tuple[Document, Results]) -> None:
    expected = run_cocotools(*case, coco_settings("bbox"))
    for engine in ("boxmill", "hotcoco"):
        found = measure(*case, coco_settings("bbox"), engine)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), expected.eval[name], err_msg=f"{engine} {name}")


def counts_of_shard(truth: Document, results: Results, images: list[int], wanted: MatchSettings) -> Counts:
    own = {**truth, "images": [i for i in truth["images"] if i["id"] in images]}
    own["annotations"] = [a for a in truth["annotations"] if a["image_id"] in images]
    table = match_images(
        as_truths(own),
        as_detections([r for r in results if r["image_id"] in images]),
        as_label_map(truth),
        settings=wanted,
        sizes=as_sizes(own),
        numbers=as_numbers(own),
    )
    return counts_of(table)


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("shards", [1, 2, 4, 7])
def test_shards_in_any_order(boxmill_data: Path, iou_type: IouType, shards: int) -> None:
    """Also shards that interleave: equal scores are decided by image id, not by shard."""
    truth, results = document(boxmill_data, iou_type)
    wanted = coco_settings(iou_type)
    expected = EXPECTED.get(iou_type) or EXPECTED.setdefault(iou_type, run_cocotools(truth, results, wanted))
    rng = np.random.default_rng(shards)
    ids = rng.permutation([image["id"] for image in truth["images"]])
    parts = [counts_of_shard(truth, results, part.tolist(), wanted) for part in np.array_split(ids, shards)]
    for order in (range(shards), rng.permutation(shards)):
        found = metrics_of(merge_counts([parts[at] for at in order]), as_label_map(truth), wanted)
        assert found.num_images == len(truth["images"])
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), expected.eval[name], err_msg=name)
    if shards > 1:
        with pytest.raises(ValueError, match="shards must not overlap"):
            merge_counts([*parts, parts[0]])


def test_names_of_custom_numbers() -> None:
    assert stat_names(CUSTOM["bbox"]) == (
        "AP",
        "AP50",
        "AP75",
        "AP_tiny",
        "AP_huge",
        "AR_2",
        "AR_50",
        "AR_tiny",
        "AR_huge",
    )
    assert stat_names(coco_settings("keypoints")) == (
        *("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large"),
    )
