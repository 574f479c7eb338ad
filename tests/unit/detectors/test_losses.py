"""Box losses by hand; what a RetinaNet makes of its losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detectors import create
from detectors.blocks.class_losses import CLASS_LOSSES, ClassLossOptions, dense_class_loss
from detectors.blocks.losses import box_regression_loss
from detectors.structures import Batch, Target


def test_box_losses_by_hand() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10]])  # deltas (0,0,0,0) and (0.5,0,0,0)
    deltas = torch.tensor([[0.5, -2.0, 0, 0], [0.5, 0, 0, 0]])

    def loss(kind: str, beta: float = 1.0) -> list[float]:
        values: list[float] = box_regression_loss(deltas, boxes, anchors, kind=kind, beta=beta).tolist()  # type: ignore[arg-type]
        return values

    assert loss("l1") == pytest.approx([2.5, 0.0])
    assert loss("smooth_l1") == pytest.approx([0.5 * 0.25 + 1.5, 0.0])
    assert loss("smooth_l1", beta=0.5) == pytest.approx([0.25 + 1.75, 0.0])
    # The first box decodes to (5, -20) .. (15, -10): no overlap; hull 15 x 30, union 200.
    assert loss("giou") == pytest.approx([1 + (450 - 200) / 450, 0.0], abs=1e-6)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return create("retinanet_lite0", num_classes=2, norm="gn", image_size=64)


def batch_of(n: int) -> Batch:
    sizes = torch.tensor([[64, 64]] * n)
    return Batch(
        images=torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(n)),
        sizes=sizes,
        original_sizes=sizes,
    )


def target(boxes: list[list[float]], crowds: tuple[int, ...] = ()) -> Target:
    return Target(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        iscrowd=torch.tensor([i in crowds for i in range(len(boxes))], dtype=torch.bool),
    )


def test_an_untrained_head_gives_the_prior(model: torch.nn.Module) -> None:
    with torch.no_grad():
        logits = torch.cat(model.dense(batch_of(1).images).logits, 1)
    assert float(logits.sigmoid().mean()) == pytest.approx(0.01, rel=0.2)


def test_empty_targets_give_a_finite_loss_no_box_loss_and_gradients(model: torch.nn.Module) -> None:
    losses = model(batch_of(2), [target([]), target([])])
    box, classification = losses["box_regression"].item(), losses["classification"].item()
    assert box == 0 and math.isfinite(classification) and classification > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)


def test_a_crowd_over_everything_leaves_nothing_to_learn(model: torch.nn.Module) -> None:
    everywhere = target([[-500.0, -500, 500, 500]], crowds=(0,))
    losses = model(batch_of(1), [everywhere])
    assert losses["classification"] == 0 and losses["box_regression"] == 0


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_every_class_loss_trains_with_and_without_objects(loss: str) -> None:
    torch.manual_seed(0)
    model = create("retinanet_lite0", num_classes=2, norm="gn", image_size=64, loss=loss, min_negatives=2)
    losses = model(batch_of(2), [target([[5.0, 5, 30, 40]]), target([])])
    torch.stack(list(losses.values())).sum().backward()
    bias = model.get_parameter("head.class_logits.bias").grad
    assert bias is not None and bool(bias.isfinite().all()) and float(bias.abs().max()) > 0
    # The same sums by hand: the only image with objects has one set of anchors that match it.
    with torch.no_grad():
        outputs = model.dense(batch_of(2).images)
        anchors = model.anchors(outputs, batch_of(2).images)
        box = torch.tensor([[5.0, 5, 30, 40]])
        matched = torch.stack(
            [model.matcher.match(boxes, torch.zeros(len(boxes), dtype=torch.bool), anchors) for boxes in (box, box[:0])]
        )
        positives = int((matched >= 0).sum())
        options = ClassLossOptions(loss=loss, min_negatives=2)  # type: ignore[arg-type]
        sums = dense_class_loss(
            outputs.logits, matched, torch.zeros(positives, dtype=torch.int64), options, anchors=anchors
        )
    assert positives > 0 and bool((sums > 0).all())
    torch.testing.assert_close(losses["classification"].detach(), sums.sum() / positives)


def test_class_loss_options_are_checked() -> None:
    with pytest.raises(ValueError, match="loss is 'bce'; choose one of focal"):
        create("retinanet_lite0", num_classes=2, loss="bce")


@pytest.mark.parametrize("normalize_by", ["image", "batch"])
def test_losses_do_not_depend_on_the_order_of_images(normalize_by: str) -> None:
    torch.manual_seed(0)
    model = create("retinanet_lite0", num_classes=2, norm="gn", image_size=64, normalize_by=normalize_by)
    batch, targets = batch_of(2), [target([[5.0, 5, 30, 40]]), target([[1.0, 1, 60, 60], [20, 20, 50, 50]])]
    turned = Batch(images=batch.images.flip(0), sizes=batch.sizes, original_sizes=batch.original_sizes)
    for a, b in zip(_values(model(batch, targets)), _values(model(turned, targets[::-1]))):
        torch.testing.assert_close(a, b)


def test_by_image_each_image_counts_alike_as_in_the_paper() -> None:
    torch.manual_seed(0)
    model = create("retinanet_lite0", num_classes=2, norm="gn", image_size=64, normalize_by="image")
    batch, targets = batch_of(2), [target([[5.0, 5, 30, 40]]), target([[1.0, 1, 60, 60], [20, 20, 50, 50]])]
    alone = [
        _values(model(Batch(images=batch.images[i : i + 1], sizes=batch.sizes, original_sizes=batch.sizes), [t]))
        for i, t in enumerate(targets)
    ]
    for together, first, second in zip(_values(model(batch, targets)), *alone):
        torch.testing.assert_close(together, (first + second) / 2)


def _values(losses: dict[str, Tensor]) -> list[Tensor]:
    return [losses["classification"].detach(), losses["box_regression"].detach()]
