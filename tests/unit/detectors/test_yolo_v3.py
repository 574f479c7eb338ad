"""YOLOv3: sizes known from the literature, losses by hand, predictions, two images by heart."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors.blocks.cell_matching import cell_priors
from detectors.blocks.darknet import DarkNet53
from detectors.blocks.heads import DenseOutputs
from detectors.models.yolo_v3 import YOLO_V3S, YoloV3, YoloV3Options, cell_box_loss
from detectors.structures import Batch, Target

LN2 = math.log(2)
# 64 x 64 pixels: a 4 x 4 map of stride 16 and a 2 x 2 map of stride 32, three anchors each: 60 places.
OPTIONS = replace(
    YOLO_V3S["yolo_v3_tiny"], image_size=64, norm="gn", anchors=(8, 8, 16, 16, 12, 24, 32, 32, 48, 24, 24, 48)
)
BATCH = Batch(
    images=torch.zeros(1, 3, 64, 64), sizes=torch.tensor([[64, 64]]), original_sizes=torch.tensor([[128, 64]])
)
# 16 x 16 with its centre at (16, 16), and 32 x 32 with its centre at (32, 36).
TARGET = Target(
    boxes=torch.tensor([[8.0, 8, 24, 24], [16, 20, 48, 52]]),
    labels=torch.tensor([1, 0]),
    iscrowd=torch.tensor([False, False]),
)
FIRST, SECOND = (1 * 4 + 1) * 3 + 1, 48 + (1 * 2 + 1) * 3


class Saying(YoloV3):
    """Says zero of everything, but for what it is told to say."""

    def __init__(self, **options: Any) -> None:
        super().__init__(2, replace(OPTIONS, **options))
        self.said = torch.zeros(1, 60, 7)  # tx ty tw th, objectness, classes

    def dense(self, images: Tensor) -> DenseOutputs:
        levels = self.said.split([48, 12], 1)
        return DenseOutputs(
            logits=[x[..., 5:] for x in levels],
            deltas=[x[..., :4] for x in levels],
            objectness=[x[..., 4] for x in levels],
            shapes=((4, 4), (2, 2)),
        )


def values(model: YoloV3, targets: list[Target] | None = None) -> dict[str, float]:
    return {name: loss.item() for name, loss in model.losses(BATCH, targets or [TARGET]).items()}


@pytest.mark.parametrize(
    ("name", "parameters", "in_file"),
    [("yolo_v3_darknet53", 61_949_149, 62_001_757), ("yolo_v3_tiny", 8_852_366, 8_858_734)],
)
def test_as_many_parameters_as_the_released_networks(name: str, parameters: int, in_file: int) -> None:
    """yolov3.weights is 248,007,048 bytes, yolov3-tiny.weights 35,434,956; both begin with 20 bytes of header."""
    with torch.device("meta"):
        model = YoloV3(80, YOLO_V3S[name])
    assert sum(p.numel() for p in model.parameters()) == parameters
    stored = sum(t.numel() for key, t in model.state_dict().items() if not key.endswith("num_batches_tracked"))
    assert stored == in_file == {"yolo_v3_tiny": 35_434_956 - 20}.get(name, 248_007_048 - 20) // 4


def test_darknet53_has_41_6_million_with_its_classifier() -> None:
    with torch.device("meta"):
        features = sum(p.numel() for p in DarkNet53().parameters())
    assert features + 1024 * 1000 + 1000 == 41_609_928
    # The paper's table 2: 18.7 billion operations (multiplications and additions) at 256 x 256.


def test_losses_by_hand() -> None:
    found = values(Saying())
    assert found["objectness"] == pytest.approx(60 * LN2, rel=1e-5)  # no other anchor overlaps by more than half
    assert found["classification"] == pytest.approx(2 * 2 * LN2, rel=1e-5)
    # The first centre is its cell's corner: places 0, 0. The second is at 0, 1/8, which costs less by its entropy.
    entropy = -(0.125 * math.log(0.125) + 0.875 * math.log(0.875))
    small, large = 2 - 16 * 16 / 64**2, 2 - 32 * 32 / 64**2
    assert found["box_regression"] == pytest.approx(small * 2 * LN2 + large * (2 * LN2 - entropy), rel=1e-5)


def test_box_loss_of_sizes_by_hand() -> None:
    prior = torch.tensor([[24.0, 24, 16, 10, 20]])
    box = torch.tensor([[19.0, 14, 29, 34]])  # the anchor itself, in the middle of its cell
    wrong = torch.tensor([[0.0, 0, 0.5, -1]])
    assert cell_box_loss(wrong, box, prior).item() == pytest.approx(0.5 * 0.25 + 0.5)
    assert cell_box_loss(wrong * 0, box, prior).item() == pytest.approx(0, abs=1e-6)


def test_what_overlaps_an_object_is_not_told_to_be_background() -> None:
    # The anchor of 12 x 24 lies in the second object, 288 / 1024, at two cells: centres (24, 40) and (40, 40).
    assert values(Saying(ignore_iou=0.26))["objectness"] == pytest.approx(58 * LN2, rel=1e-5)
    model = Saying(ignore_by="prediction")
    assert values(model)["objectness"] == pytest.approx(60 * LN2, rel=1e-5)
    # The third anchor of the first object's cell now predicts 24 x 24 around (24, 16): an IoU of 192 / 640.
    model.said[0, FIRST + 1, :4] = torch.tensor([0.0, -20, math.log(2), 0])
    assert values(model)["objectness"] == pytest.approx(60 * LN2, rel=1e-5)
    model.options = replace(model.options, ignore_iou=0.29)
    assert values(model)["objectness"] == pytest.approx(59 * LN2, rel=1e-5)


def test_the_loss_of_objectness_is_a_choice() -> None:
    focal = values(Saying(loss="focal"))["objectness"]
    assert focal == pytest.approx((58 * 0.75 + 2 * 0.25) * 0.25 * LN2, rel=1e-5)
    balanced = values(Saying(loss="alpha_ce", ce_alpha=0.75))["objectness"]
    assert balanced == pytest.approx((58 * 0.25 + 2 * 0.75) * LN2, rel=1e-5)
    assert values(Saying(loss="hard_negative"))["objectness"] == pytest.approx((2 + 6) * LN2, rel=1e-5)


@pytest.mark.parametrize(("normalize_by", "divisor"), [("none", 1), ("image", 2), ("batch", 2)])
def test_what_losses_are_divided_by(normalize_by: str, divisor: int) -> None:
    found, plain = values(Saying(normalize_by=normalize_by)), values(Saying())
    assert found == pytest.approx({name: value / divisor for name, value in plain.items()})


def test_empty_and_crowded_images() -> None:
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), iscrowd=torch.zeros(0).bool())
    found = values(Saying(), [nothing])
    assert found == pytest.approx({"objectness": 60 * LN2, "classification": 0, "box_regression": 0})
    crowd = Target(boxes=torch.tensor([[-64.0, -64, 128, 128]]), labels=torch.tensor([0]), iscrowd=torch.tensor([True]))
    assert values(Saying(), [crowd]) == {"objectness": 0, "classification": 0, "box_regression": 0}


def test_prediction_by_hand() -> None:
    model = Saying()
    model.said[..., 4] = -10
    model.said[0, SECOND] = torch.tensor([0.0, 0, math.log(0.5), 0, 2, -3, 1])
    (found,) = model.predict(BATCH)
    # The middle of its cell is (48, 48); 16 x 32 there, and the image was twice as high.
    torch.testing.assert_close(found.boxes, torch.tensor([[40.0, 64, 56, 128]]))
    assert found.labels.tolist() == [1]
    objectness, of_class = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    assert found.scores.item() == pytest.approx(objectness * of_class, rel=1e-6)


def test_the_network_gives_places_in_the_order_of_the_priors() -> None:
    """A place's numbers are those that a loop over map, row, column and anchor reads."""
    torch.manual_seed(0)
    model = YoloV3(2, OPTIONS).eval()
    with torch.no_grad():
        for scale in model.scales:
            scale.predict.weight.normal_(std=0.1)
        images = torch.randn(1, 3, 64, 96)
        outputs = model.dense(images)
        maps = []
        hook = [s.predict.register_forward_hook(lambda _m, _x, y: maps.append(y)) for s in model.scales]
        model.dense(images)
        for h in hook:
            h.remove()
    assert outputs.shapes == ((4, 6), (2, 3)) and outputs.objectness is not None
    coarse, fine = maps
    for of_level, raw in ((0, fine), (1, coarse)):
        columns = outputs.shapes[of_level][1]
        for row, column, anchor in ((0, 1, 2), (1, 2, 0)):
            place = (row * columns + column) * 3 + anchor
            expected = raw[0, anchor * 7 : (anchor + 1) * 7, row, column]
            assert torch.equal(outputs.deltas[of_level][0, place], expected[:4])
            assert torch.equal(outputs.objectness[of_level][0, place], expected[4])
            assert torch.equal(outputs.logits[of_level][0, place], expected[5:])
    priors = cell_priors(model.sizes, model.strides, outputs.shapes, images.device)
    assert priors[(0 * 6 + 1) * 3 + 2].tolist() == [24, 8, 16, 12, 24]


def test_every_norm_and_a_timm_backbone_learn() -> None:
    boxes = Target(boxes=torch.tensor([[8.0, 8, 24, 24]]), labels=torch.tensor([1]), iscrowd=torch.tensor([False]))
    batch = Batch(
        images=torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        sizes=torch.tensor([[64, 64]] * 2),
        original_sizes=torch.tensor([[64, 64]] * 2),
    )
    resnet = {"backbone": "resnet18", "anchors": YoloV3Options().anchors}
    for changes in ({"norm": "gn"}, {"norm": "bn"}, {"norm": "frozen_bn"}, {"norm": "frozen_bn", **resnet}):
        torch.manual_seed(0)
        model = YoloV3(2, replace(OPTIONS, **changes))
        torch.stack(list(model(batch, [boxes, boxes]).values())).sum().backward()
        still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # Weights of the coarse map's own layers only get what its objectness gives, but all get something.
        assert still == [], changes
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"anchors": (10, 13, 16)}, "anchors has 3 numbers; darknet53 has 3 maps"),
        ({"anchors": (10, 13, 16, 30)}, "anchors has 4 numbers"),
        ({"anchors": (10, 13, 16, 30, 33, -1)}, "must be numbers above 0"),
        ({"anchors": ([10, 13], [16, 30], [1, 2], [1, 2], [1, 2], [1, 2])}, "must be numbers above 0"),
        ({"loss": "bce"}, "loss is 'bce'"),
        ({"ignore_by": "cell"}, "ignore_by is 'cell'"),
        ({"image_size": 16}, "image_size is 16"),
        ({"prior": 1.0}, "prior=1.0"),
    ],
)
def test_bad_options_are_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        YoloV3Options(**wrong)
