"""What is wrong with truth or detections is said in words: the image, the object, the way out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.metrics.coco import evaluate
from pipelines.metrics.matches import match_images
from pipelines.metrics.settings import IOU_TYPES, AreaRange, IouType, MatchSettings, coco_settings
from pipelines.records import Annotations, LabelMap, Rle

NAMES = [f"k{i}" for i in range(17)]
LABELS = LabelMap.from_json([{"id": 0, "name": "person", "keypoints": NAMES}])
SIZES = {"a": (40, 60), "b": (40, 60)}
OUTLINE = ((5.0, 5.0, 25.0, 5.0, 25.0, 30.0, 5.0, 30.0),)
RUNS = (0, 500, 40 * 60 - 500)


def one(*, scores: list[float] | None = None, rle: Rle | None = None, number: int = 17) -> Annotations:
    """A person with a polygon (or an RLE) and keypoints."""
    made = Annotations.from_boxes(
        np.array([[5.0, 5, 20, 25]]), np.array([0]), scores=None if scores is None else np.array(scores)
    )
    points = np.column_stack([np.linspace(6, 24, number), np.linspace(6, 29, number), np.full(number, 2.0)])
    return replace(made, polygons=(None if rle else OUTLINE,), rles=(rle,), keypoints=(points,))


def measure(truth: Annotations, found: Annotations, iou_type: IouType, settings: MatchSettings | None = None) -> float:
    metrics = evaluate([("a", truth)], [("a", found)], LABELS, iou_type=iou_type, sizes=SIZES, settings=settings)
    return metrics.stats["AP"]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_category_0_and_ids_0_are_as_good_as_any(iou_type: IouType) -> None:
    truth = replace(one(), ids=np.array([0]))
    assert measure(truth, replace(one(scores=[0.5]), ids=np.array([0])), iou_type) == pytest.approx(1.0)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_nothing_found_is_0_and_no_truth_is_minus_1(iou_type: IouType) -> None:
    empty = Annotations.empty(with_scores=True)
    for engine in ("boxmill", "pycocotools"):
        found = evaluate([("a", one())], [], LABELS, iou_type=iou_type, sizes=SIZES, engine=engine)  # type: ignore[arg-type]
        assert found.stats["AP"] == 0.0
    assert measure(one(), empty, iou_type) == 0.0
    assert measure(Annotations.empty(), one(scores=[0.5]), iou_type) == -1.0
    assert measure(Annotations.empty(), empty, iou_type) == -1.0
    nothing = match_images([], [], LABELS, settings=coco_settings(iou_type))
    assert (nothing.num_images, nothing.num_truths, nothing.num_detections) == (0, 0, 0)
    assert evaluate([], [], LABELS, iou_type=iou_type).stats["AP"] == -1.0


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([("b", one(scores=[0.5]))], "'b', which has no truth; leave out images"),
        ([("a", one(scores=[float("nan")]))], "detections of image 'a' hold a box or a score that is not finite"),
        ([("a", one(scores=[float("inf")]))], "not finite"),
        ([("a", one())], "have no scores; is this a truth label set"),
        (
            [("a", replace(one(scores=[0.5]), category_ids=np.array([3])))],
            "category id 3 is not among the 1 known ones",
        ),
    ],
)
def test_detections_that_cannot_be_measured(
    found: list[tuple[str, Annotations]], message: str, iou_type: IouType
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate([("a", one())], found, LABELS, iou_type=iou_type, sizes=SIZES)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (Rle(size=(60, 40), counts=RUNS), r"detection 1 of image 'a': its RLE is 60 x 40, the image is 40 x 60"),
        (Rle(size=(40, 60), counts=(0, 40 * 60 + 1)), "fill 2401 pixels, not 40 x 60 = 2400"),
        (Rle(size=(40, 60), counts="0ooooo"), "detection 1 of image 'a': "),
        (Rle(size=(40, 60), counts="\u20ac"), "detection 1 of image 'a': "),
    ],
)
def test_masks_that_are_no_masks(rle: Rle, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(one(), one(scores=[0.5], rle=rle), "segm")


def test_a_mask_whose_runs_fall_short_has_background_there() -> None:
    full, short = Rle(size=(40, 60), counts=RUNS), Rle(size=(40, 60), counts=RUNS[:2])
    assert measure(one(rle=full), one(scores=[0.5], rle=short), "segm") == pytest.approx(1.0)


def test_what_masks_and_keypoints_need() -> None:
    found = one(scores=[0.5])
    with pytest.raises(ValueError, match="truth 1 of image 'a': it has no mask; measure boxes"):
        measure(replace(one(), polygons=(None,)), found, "segm")
    with pytest.raises(ValueError, match="a polygon of 2 points"):
        measure(replace(one(), polygons=(((1.0, 1.0, 5.0, 5.0),),)), found, "segm")
    with pytest.raises(ValueError, match="polygons need it: give sizes"):
        evaluate([("a", one())], [], LABELS, iou_type="segm")
    with pytest.raises(ValueError, match="detection 1 of image 'a' has no keypoints, its category 'person' has"):
        measure(one(), replace(found, keypoints=(None,)), "keypoints")
    with pytest.raises(ValueError, match="has 16 keypoints, truth 1 of its category 'person' has 17"):
        measure(one(), one(scores=[0.5], number=16), "keypoints")
    with pytest.raises(ValueError, match="'person' has 5 keypoints and no OKS sigmas; give oks_sigmas"):
        measure(one(number=5), one(scores=[0.5], number=5), "keypoints")
    with pytest.raises(ValueError, match="17 OKS sigmas for the 5 keypoints"):
        sigmas = replace(coco_settings("keypoints"), oks_sigmas={"person": (0.1,) * 17})
        measure(one(number=5), one(scores=[0.5], number=5), "keypoints", sigmas)
    own = replace(coco_settings("keypoints"), oks_sigmas={"person": (0.1,) * 5})
    assert measure(one(number=5), one(scores=[0.5], number=5), "keypoints", own) == pytest.approx(1.0)
    # A truth without keypoints is a region where nothing counts.
    assert measure(replace(one(), keypoints=(None,)), found, "keypoints") == -1.0


def test_image_numbers_must_be_there_and_differ() -> None:
    images = [("a", one()), ("b", one())]
    with pytest.raises(ValueError, match="image 'b' has no number"):
        evaluate(images, [], LABELS, numbers={"a": 1})
    with pytest.raises(ValueError, match="images 'a' and 'b' both have the number 1"):
        evaluate(images, [], LABELS, numbers={"a": 1, "b": 1})


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="unknown iou type 'box'; choose one of bbox, segm, keypoints"):
        MatchSettings(iou_type="box")  # type: ignore[arg-type]
    for thresholds in ((), (0.5, 0.5), (0.9, 0.5), (0.0,), (1.1,)):
        with pytest.raises(ValueError, match=r"IoU thresholds must ascend and lie in \(0, 1\]"):
            MatchSettings(iou_thresholds=thresholds)
    with pytest.raises(ValueError, match="numbers of detections must ascend"):
        MatchSettings(max_detections=(0, 10))
    with pytest.raises(ValueError, match="area ranges need names of their own"):
        MatchSettings(areas=())
    with pytest.raises(ValueError, match="area range 'tiny' goes from 5 to 1"):
        AreaRange(name="tiny", low=5, high=1)
    with pytest.raises(ValueError, match="OKS sigmas of 'person' must be positive"):
        MatchSettings(oks_sigmas={"person": (0.0,)})
