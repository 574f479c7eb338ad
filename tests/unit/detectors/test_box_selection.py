"""The second stage's detections beside decoding every candidate and looking at all pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detectors.blocks import box_heads
from detectors.blocks.box_heads import SMALLEST_DETECTION, BoxSelection, Detected, select_boxes
from detectors.blocks.codecs import decode_boxes
from detectors.blocks.postprocess import clip_boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
CLASSES = 4
SIZES = torch.tensor([[90, 120], [128, 64], [40, 40]])


def outputs(counts: list[int], *, spots: int, seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits, deltas and proposals; the fewer spots, the more boxes meet."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    corners = (100 * torch.rand(spots, 2, generator=generator))[torch.randint(spots, (total,), generator=generator)]
    corners = corners + torch.rand(total, 2, generator=generator)
    boxes = torch.cat([corners, corners + 20 + 10 * torch.rand(total, 2, generator=generator)], 1)
    logits = 3 * torch.randn(total, 1 + CLASSES, generator=generator)
    return logits, 0.3 * torch.randn(total, 4, CLASSES, generator=generator), list(boxes.split(counts))


def naive(
    logits: Tensor, deltas: Tensor, proposals: list[Tensor], sizes: Tensor, selection: BoxSelection
) -> list[Detected]:
    found, first = [], 0
    for of_image, size in zip(proposals, sizes.tolist()):
        scores = logits[first : first + len(of_image)].softmax(1)[:, 1:]
        least = torch.tensor(selection.class_thresholds or (0.0,) * CLASSES).clamp(min=selection.score_threshold)
        row, label = (scores > least).nonzero(as_tuple=True)
        boxes = decode_boxes(deltas[first + row, :, label], of_image[row], WEIGHTS)
        boxes = clip_boxes(boxes, (size[0], size[1]))
        large = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= SMALLEST_DETECTION
        boxes, label, score = boxes[large], label[large], scores[row, label][large]
        kept = batched_nms(boxes, score, label, selection.nms_iou)[: selection.max_detections]
        found.append(Detected(boxes=boxes[kept], labels=label[kept], scores=score[kept]))
        first += len(of_image)
    return found


@pytest.mark.parametrize(
    ("counts", "spots", "limit"),
    [
        ([300, 200, 250], 400, 100),  # most survive
        ([400, 90, 300], 9, 100),  # few do: more and more are tried, and then there are not as many as are wanted
        ([300, 0, 1], 30, 20),
        ([0, 0, 0], 5, 100),
    ],
)
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5])
def test_as_if_all_were_decoded(counts: list[int], spots: int, limit: int, threshold: float) -> None:
    logits, deltas, proposals = outputs(counts, spots=spots, seed=limit)
    selection = BoxSelection(score_threshold=threshold, max_detections=limit)
    found = select_boxes(logits, deltas, proposals, SIZES, selection, codec_weights=WEIGHTS)
    for ours, expected in zip(found, naive(logits, deltas, proposals, SIZES, selection), strict=True):
        assert torch.equal(ours.labels, expected.labels)
        torch.testing.assert_close(ours.scores, expected.scores)
        torch.testing.assert_close(ours.boxes, expected.boxes)


def test_what_its_class_refuses_takes_no_place_among_the_best() -> None:
    logits, deltas, proposals = outputs([300, 200, 250], spots=400, seed=3)
    selection = BoxSelection(max_detections=20, class_thresholds=(0.99, 0.05, 0.99, 0.05))
    found = select_boxes(logits, deltas, proposals, SIZES, selection, codec_weights=WEIGHTS)
    for ours, expected in zip(found, naive(logits, deltas, proposals, SIZES, selection), strict=True):
        assert torch.equal(ours.labels, expected.labels)
        torch.testing.assert_close(ours.boxes, expected.boxes)
        assert len(ours.labels) == 20 and {1, 3} <= set(ours.labels.tolist())


def test_boxes_that_clipping_leaves_nothing_of() -> None:
    logits, deltas, proposals = outputs([200, 200, 200], spots=50, seed=1)
    proposals[0][::2] += 1000  # beside the image; the best of them are tried in vain
    logits[:200:2, 0] -= 5
    selection = BoxSelection(max_detections=50)
    found = select_boxes(logits, deltas, proposals, SIZES, selection, codec_weights=WEIGHTS)
    assert len(found[0].scores) == 50
    for ours, expected in zip(found, naive(logits, deltas, proposals, SIZES, selection), strict=True):
        assert torch.equal(ours.labels, expected.labels)
        torch.testing.assert_close(ours.boxes, expected.boxes)


def test_only_the_best_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def counted(deltas: Tensor, *rest: object) -> Tensor:
        decoded.append(len(deltas))
        return decode_boxes(deltas, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(box_heads, "decode_boxes", counted)
    logits, deltas, proposals = outputs([400, 400, 400], spots=1000, seed=2)
    sizes = torch.full((3, 2), 200)
    select_boxes(logits, deltas, proposals, sizes, BoxSelection(max_detections=50), codec_weights=WEIGHTS)
    assert decoded == [3 * 128]
