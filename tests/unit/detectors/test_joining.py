"""Predictions of one image fused, with their masks and keypoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detectors.joining import fuse_predictions, masks_onto
from detectors.structures import Prediction


def prediction(boxes, scores, **more) -> Prediction:
    return Prediction(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(scores), dtype=torch.int64),
        scores=torch.tensor(scores),
        size=(100, 120),
        **more,
    )


def test_masks_and_keypoints_are_averaged() -> None:
    mask = torch.zeros(28, 28)
    mask[:, :14] = 1
    one = prediction([[0, 0, 28, 28]], [0.9], masks=mask[None], keypoints=torch.tensor([[[10.0, 10, 0.5]]]))
    two = prediction([[0, 0, 28, 28]], [0.3], masks=1 - mask[None], keypoints=torch.tensor([[[14.0, 10, 1.0]]]))
    fused = fuse_predictions([one, two])
    assert fused.masks is not None and fused.keypoints is not None
    torch.testing.assert_close(fused.masks[0], 0.75 * mask + 0.25 * (1 - mask))
    # x: (0.9 * 0.5 * 10 + 0.3 * 1 * 14) / (0.45 + 0.3); score: (0.9 * 0.5 + 0.3 * 1) / 1.2
    torch.testing.assert_close(fused.keypoints, torch.tensor([[[11.6, 10.0, 0.625]]]))


def test_one_prediction_stays_what_it_is() -> None:
    generator = torch.Generator().manual_seed(3)
    one = prediction(
        [[10, 10, 50, 60], [60, 10, 99, 90]],
        [0.9, 0.4],
        masks=torch.rand(2, 28, 28, generator=generator),
        keypoints=torch.rand(2, 5, 3, generator=generator) + 0.1,
    )
    fused = fuse_predictions([one])
    for name in ("boxes", "scores", "labels", "masks", "keypoints"):
        torch.testing.assert_close(getattr(fused, name), getattr(one, name), atol=1e-5, rtol=1e-5)
    empty = one.take(torch.zeros(0, dtype=torch.int64))
    both = fuse_predictions([empty, empty])
    assert len(both) == 0 and both.masks.shape == (0, 28, 28) and both.keypoints.shape == (0, 5, 3)


def test_a_mask_on_another_box_keeps_its_place() -> None:
    cells = torch.arange(8.0)
    ramp = (cells[None] + 0.5).expand(8, 8).clone()  # the value is x in the box (0, 0, 8, 8)
    onto = masks_onto(ramp[None], torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([2.0, 0, 10, 8]))[0]
    torch.testing.assert_close(onto[0, :5], torch.tensor([2.5, 3.5, 4.5, 5.5, 6.5]))
    assert onto[:, 6:].eq(0).all(), "outside of its box"


def test_unlike_predictions_are_refused() -> None:
    plain = prediction([[0, 0, 9, 9]], [0.5])
    with pytest.raises(ValueError, match="nothing to fuse"):
        fuse_predictions([])
    with pytest.raises(ValueError, match=r"\(100, 120\), \(3, 4\)|\(3, 4\), \(100, 120\)"):
        fuse_predictions([plain, replace(plain, size=(3, 4))])
    with pytest.raises(ValueError, match="some have none"):
        fuse_predictions([plain, replace(plain, masks=torch.zeros(1, 28, 28))])
    with pytest.raises(ValueError, match="1 weights for 2"):
        fuse_predictions([plain, plain], weights=[1.0])


def test_the_best_are_given_back_and_no_more() -> None:
    many = prediction([[x, 0, x + 8, 9] for x in range(0, 100, 10)], torch.linspace(0.2, 0.9, 10).tolist())
    fused = fuse_predictions([many, many], max_detections=3)
    assert fused.boxes[:, 0].tolist() == [90, 80, 70]
    assert torch.equal(fused.scores, many.scores.flip(0)[:3])
