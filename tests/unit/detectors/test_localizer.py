"""The localizer: which object a slot takes, losses and predictions by hand, two images by heart."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors import create
from detectors.batching import make_batch
from detectors.models.localizer import LOCALIZERS, Localizer, LocalizerOptions
from detectors.structures import Batch, Target
from tests.overfitting import assert_learns_by_heart, coloured_boxes

SMALL = replace(LOCALIZERS["localizer_resnet18"], image_size=64, norm="gn", pool=2, hidden=32, dropout=0.0)
BATCH = Batch(
    images=torch.zeros(1, 3, 64, 64), sizes=torch.tensor([[64, 64]]), original_sizes=torch.tensor([[32, 128]])
)


class Saying(Localizer):
    """Says what it is told to say: corners, class logits, and image logits where it has them."""

    def __init__(self, corners: list[list[float]], logits: list[list[float]], **options: Any) -> None:
        super().__init__(2, replace(SMALL, objects=len(corners), **options))
        self.said: tuple[Tensor, ...] = (torch.tensor([logits]), torch.tensor([corners]))
        if self.options.image_labels:
            self.said += (torch.tensor([[0.0, 2.0]]),)

    def dense(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.said


def target(boxes: list[list[float]], labels: list[int], crowds: tuple[int, ...] = ()) -> Target:
    return Target(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        iscrowd=torch.tensor([i in crowds for i in range(len(boxes))], dtype=torch.bool),
    )


def values(model: Localizer, of: Target) -> dict[str, float]:
    return {name: loss.item() for name, loss in model.losses(BATCH, [of]).items()}


TWO = target([[32.0, 16, 64, 48], [0, 0, 16, 32]], [1, 0])


def test_losses_of_one_object_by_hand() -> None:
    """The largest object counts: (0.5, 0.25, 1, 0.75) of the image."""
    said = ([[0.5, 0.5, 0.9, 0.75]], [[0.0, 1.0, 2.0]])
    cross_entropy = math.log(math.e + math.e**2 + 1) - 2
    assert values(Saying(*said), TWO) == pytest.approx({"classification": cross_entropy, "box_regression": 5 * 0.35})
    smooth = values(Saying(*said, box_loss="smooth_l1", smooth_l1_beta=0.2, box_loss_weight=2.0), TWO)
    assert smooth["box_regression"] == pytest.approx(2 * ((0.25 - 0.1) + 0.5 * 0.1**2 / 0.2), rel=1e-5)


def test_slots_take_objects_from_left_to_right_and_the_rest_is_background() -> None:
    corners = [[0.0, 0.0, 0.25, 0.5], [0.5, 0.25, 1.0, 0.75], [0.3, 0.3, 0.3, 0.3]]
    sure = [[0, 20.0, 0], [0, 0, 20], [20, 0, 0]]
    assert values(Saying(corners, sure), TWO) == pytest.approx({"classification": 0, "box_regression": 0}, abs=1e-6)
    classes, boxes = Saying(corners[:2], sure[:2])._slots(
        target([[0.0, 0, 9, 9], [40, 0, 60, 20], [20, 0, 50, 9]], [0, 1, 1])
    )
    assert classes.tolist() == [2, 2] and boxes.tolist() == [[20, 0, 50, 9], [40, 0, 60, 20]]


def test_no_objects_and_crowds() -> None:
    said = ([[0.5, 0.5, 0.9, 0.75]], [[0.0, 0.0, 0.0]])
    assert values(Saying(*said), target([], [])) == pytest.approx({"classification": math.log(3), "box_regression": 0})
    crowded = target([[0.0, 0, 64, 64]], [1], crowds=(0,))
    assert values(Saying(*said), crowded) == {"classification": 0, "box_regression": 0}


def test_image_labels_by_hand() -> None:
    model = Saying([[0.0, 0, 1, 1]], [[0.0, 0, 0]], image_labels=True)
    found = values(model, target([[0.0, 0, 8, 8], [8, 8, 16, 16]], [1, 1]))
    assert found["image_labels"] == pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2)
    torch.testing.assert_close(model.classify(BATCH), torch.tensor([[0.5, 1 / (1 + math.exp(-2))]]))
    with pytest.raises(ValueError, match="image_labels=True"):
        Saying([[0.0, 0, 1, 1]], [[0.0, 0, 0]]).classify(BATCH)


def test_prediction_by_hand() -> None:
    # The second slot's corners are the wrong way round; the third is background.
    model = Saying(
        [[0.0, 0.0, 0.25, 0.5], [1.0, 0.75, 0.5, 0.25], [0.1, 0.1, 0.9, 0.9]], [[0, 3.0, 0], [0, 0, 4], [9, 0, 0]]
    )
    (found,) = model.predict(BATCH)
    assert found.labels.tolist() == [1, 0]
    torch.testing.assert_close(found.boxes, torch.tensor([[64.0, 8, 128, 24], [0, 0, 32, 16]]))
    expected = [math.exp(x) / (math.exp(x) + 2) for x in (4, 3)]
    assert found.scores.tolist() == pytest.approx(expected)


LEARNING: dict[str, Any] = {"norm": "gn", "pool": 2, "hidden": 128, "dropout": 0.0}


@pytest.mark.slow
def test_two_objects_by_heart() -> None:
    detector = assert_learns_by_heart(
        "localizer_resnet18", side=64, steps=80, lr=2e-3, least_score=0.8, objects=2, image_labels=True, **LEARNING
    )
    assert isinstance(detector, Localizer)
    shown, _ = coloured_boxes([(0, [10, 12, 50, 60]), (1, [70, 64, 120, 100])], side=64)
    assert bool((detector.classify(make_batch([shown], detector.preprocessing)) > 0.5).all())


def test_one_object_by_heart_of_images_that_are_no_squares() -> None:
    torch.manual_seed(0)
    detector = create("localizer_resnet18", num_classes=2, image_size=64, **LEARNING)
    drawn = [coloured_boxes([(label, box)], side=128) for label, box in ((0, [10, 12, 60, 60]), (1, [60, 4, 124, 60]))]
    images = [image[:, :64] for image, _ in drawn]  # 128 x 64, stretched to 64 x 64
    stretched = torch.tensor([0.5, 1, 0.5, 1])
    targets = [replace(t, boxes=t.boxes * stretched) for _, t in drawn]
    batch = make_batch(images, detector.preprocessing)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=50)
    for _ in range(50):
        optimizer.zero_grad()
        torch.stack(list(detector(batch, targets).values())).sum().backward()
        optimizer.step()
        schedule.step()
    for prediction, (_, truth) in zip(detector.eval().predict(batch), drawn):
        assert prediction.labels.tolist() == truth.labels.tolist() and bool((prediction.scores > 0.8).all())
        assert float(box_iou(prediction.boxes, truth.boxes)) >= 0.8


def test_plain_boxes_may_leave_the_image_until_they_are_cut() -> None:
    model = Saying([[-0.5, -0.5, 0.5, 1.5]], [[0.0, 5, 0]], sigmoid_boxes=False)
    (found,) = model.predict(BATCH)
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 64, 32]]))
    torch.manual_seed(0)
    squashed, plain = (Localizer(2, replace(SMALL, sigmoid_boxes=s)) for s in (True, False))
    plain.load_state_dict(squashed.state_dict())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(squashed.dense(images)[1], plain.dense(images)[1].sigmoid())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"box_loss": "giou"}, "box_loss is 'giou'"),
        ({"objects": 0}, "objects is 0"),
        ({"image_size": 8}, "image_size is 8"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"smooth_l1_beta": 0.0}, r"smooth_l1_beta=0\.0"),
    ],
)
def test_bad_options_are_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LocalizerOptions(**wrong)
