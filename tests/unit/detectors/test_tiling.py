"""Tiling with a detector that sees exactly what lies in a tile: pixels tell where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detectors.structures import Prediction
from detectors.tiling import Tiling, cut_tiles, merge_tiles, predict_tiled

SIZE = (900, 1400)
TILING = Tiling(size=400, overlap=0.25, whole=False)


def canvas(size: tuple[int, int] = SIZE) -> Tensor:
    """Each pixel holds its own x and y: 12 bits of each in three bytes."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack([x % 256, y % 256, x // 256 * 16 + y // 256]).to(torch.uint8)


class Oracle:
    """Sees every object in a tile, cut at its borders; none of which it would see less than ``smallest`` pixels.

    ``model_size`` is the longer side that every image is shrunk to, which makes objects smaller.
    """

    def __init__(self, truth: Prediction, *, smallest: float = 4.0, model_size: int = 400) -> None:
        self.truth, self.smallest, self.model_size = truth, smallest, model_size
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: Sequence[Tensor]) -> list[Prediction]:
        return [self._see(image) for image in images]

    def _see(self, image: Tensor) -> Prediction:
        first = image[:, 0, 0].int()
        x, y = int(first[0] + 256 * (first[2] // 16)), int(first[1] + 256 * (first[2] % 16))
        height, width = image.shape[1:]
        self.seen.append((x, y, x + width, y + height))
        shift = torch.tensor([x, y, x, y])
        boxes = self.truth.boxes - shift
        inside = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], 2).reshape(-1, 4)
        sides = (inside[:, 2:] - inside[:, :2]).amin(1) * self.model_size / max(height, width)
        visible = (inside[:, 2:] - inside[:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
        there = (sides >= self.smallest).nonzero().squeeze(1)
        found = replace(self.truth, boxes=inside, scores=self.truth.scores * (0.5 + 0.5 * visible))
        found = found.take(there[found.scores[there].argsort(descending=True)])
        if found.keypoints is not None:
            found = replace(found, keypoints=self._keypoints(found.keypoints, x, y, width, height))
        return replace(found, size=(height, width))

    @staticmethod
    def _keypoints(keypoints: Tensor, x: int, y: int, width: int, height: int) -> Tensor:
        moved = keypoints - torch.tensor([x, y, 0])
        outside = (moved[..., :2] < 0).any(-1) | (moved[..., 0] > width) | (moved[..., 1] > height)
        moved[..., 2] = torch.where(outside, 0.1, moved[..., 2])
        return moved


def truth(boxes: Sequence[Sequence[float]], labels: Sequence[int] | None = None) -> Prediction:
    count = len(boxes)
    return Prediction(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels if labels is not None else [0] * count),
        scores=torch.linspace(0.9, 0.6, count),
        size=SIZE,
    )


def assert_same(found: Prediction, expected: Prediction) -> None:
    """The same objects, each once; any order."""
    assert len(found) == len(expected)
    by = [sorted((int(p.labels[i]), *p.boxes[i].tolist()) for i in range(len(p))) for p in (found, expected)]
    assert torch.allclose(torch.tensor(by[0]), torch.tensor(by[1]), atol=1e-3)
    assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("size", [(900, 1400), (400, 400), (401, 399), (2000, 30), (1, 1), (1201, 407)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
def test_tiles_cover_the_image_and_overlap(size: tuple[int, int], overlap: float) -> None:
    tiling = Tiling(size=400, overlap=overlap, whole=False)
    tiles = cut_tiles(*size, tiling)
    covered = torch.zeros(size, dtype=torch.bool)
    for x1, y1, x2, y2 in tiles:
        covered[y1:y2, x1:x2] = True
        assert (y2 - y1, x2 - x1) == (min(400, size[0]), min(400, size[1]))
        assert 0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0]
    assert covered.all()
    for axis in (0, 1):
        starts = sorted({tile[axis] for tile in tiles})
        assert all(400 - (b - a) >= round(400 * overlap) for a, b in pairwise(starts))
    assert len(set(tiles)) == len(tiles)


def test_an_image_of_a_tile_is_not_cut() -> None:
    assert cut_tiles(300, 400, Tiling(size=400)) == [(0, 0, 400, 300)]
    assert cut_tiles(300, 401, Tiling(size=400, overlap=0.0)) == [(0, 0, 400, 300), (1, 0, 401, 300), (0, 0, 401, 300)]


def test_every_small_object_is_found_once_wherever_it_lies() -> None:
    # 90 px, less than the overlap of 100; steps of 37 and 53 px meet the borders of tiles at every offset.
    boxes = [[x, y, x + 90, y + 60] for y in range(0, 840, 211) for x in range(0, 1300, 137)]
    expected = truth(boxes)
    assert_same(predict_tiled(Oracle(expected), canvas(), TILING), expected)
    for shift in range(0, 130, 26):
        moved = [[x1 + shift, y1 + shift // 4, x2 + shift, y2 + shift // 4] for x1, y1, x2, y2 in boxes]
        moved = [box for box in moved if box[2] <= SIZE[1] and box[3] <= SIZE[0]]
        assert_same(predict_tiled(Oracle(truth(moved)), canvas(), TILING), truth(moved))


@pytest.mark.parametrize(
    "box", [[10, 20, 1390, 120], [350, 5, 420, 890], [200, 100, 1300, 860], [0, 0, 1400, 900], [299, 299, 801, 410]]
)
def test_pieces_of_an_object_larger_than_a_tile_become_one(box: list[float]) -> None:
    expected = truth([box])
    found = predict_tiled(Oracle(expected), canvas(), TILING)
    assert_same(found, expected)


def test_neighbours_side_by_side_stay_apart() -> None:
    # All run through the same borders between tiles, 10 px apart.
    rows = [[250, y, 700, y + 80] for y in range(100, 500, 90)]
    assert_same(predict_tiled(Oracle(truth(rows)), canvas(), TILING), truth(rows))


def test_classes_do_not_meet() -> None:
    both = truth([[250, 100, 700, 180], [252, 101, 702, 183]], labels=[0, 3])
    assert_same(predict_tiled(Oracle(both), canvas(), TILING), both)


def test_the_whole_image_brings_what_tiles_cannot_and_tiles_what_it_cannot() -> None:
    # Without overlap the pieces have nothing in common, so that only the whole image knows they are one.
    tiling = Tiling(size=400, overlap=0.0, whole=True)
    expected = truth([[100, 100, 1100, 700], [20, 20, 32, 31]])
    found = predict_tiled(Oracle(expected, smallest=8), canvas(), tiling)
    ious = box_iou(found.boxes, expected.boxes)
    assert ious[:, 0].max() == 1 and ious[:, 1].max() == 1
    whole_alone = Oracle(expected, smallest=8)([canvas()])[0]
    assert whole_alone.boxes.tolist() == [[100, 100, 1100, 700]], "12 px are 3.4 in model pixels"
    assert len(found) == 2, "the pieces lie in the better whole one"


def test_the_whole_one_gets_the_best_score_of_its_pieces() -> None:
    whole = Prediction(
        boxes=torch.tensor([[310.0, 10, 380, 50]]), labels=torch.tensor([0]), scores=torch.tensor([0.3]), size=(60, 400)
    )
    piece = Prediction(
        boxes=torch.tensor([[0.0, 10, 80, 50]]), labels=torch.tensor([0]), scores=torch.tensor([0.8]), size=(60, 400)
    )
    tiles = [(0, 0, 400, 60), (300, 0, 700, 60)]
    merged = merge_tiles(tiles, [whole, piece], (60, 700), TILING)
    assert merged.boxes.tolist() == [[310, 10, 380, 50]]
    assert merged.scores.tolist() == pytest.approx([0.8])


def test_a_piece_of_another_object_is_kept() -> None:
    # The second tile sees something at the border that the first does not see at all.
    whole = truth([[310, 10, 380, 50]])
    piece = truth([[0, 10, 200, 300]])
    merged = merge_tiles([(0, 0, 400, 400), (300, 0, 700, 400)], [whole, piece], (400, 700), TILING)
    assert sorted(merged.boxes.tolist()) == [[300, 10, 500, 300], [310, 10, 380, 50]]


def test_masks_of_pieces_are_joined() -> None:
    """A disc cut in two: the merged mask is the disc's."""
    cells = 28
    centres = (torch.arange(cells) + 0.5) / cells

    def crop(box: Sequence[float]) -> Tensor:
        x = box[0] + centres * (box[2] - box[0])
        y = box[1] + centres * (box[3] - box[1])
        return (((x[None] - 400) ** 2 + (y[:, None] - 200) ** 2) <= 150**2).float()

    tiles = [(0, 0, 450, 400), (350, 0, 800, 400)]
    parts = [[250.0, 50, 450, 350], [350.0, 50, 550, 350]]
    predictions = [
        replace(truth([[x1 - t[0], y1, x2 - t[0], y2]]), size=(400, 450), masks=crop([x1, y1, x2, y2])[None])
        for t, (x1, y1, x2, y2) in zip(tiles, parts)
    ]
    merged = merge_tiles(tiles, predictions, (400, 800), Tiling(size=450, whole=False))
    assert merged.boxes.tolist() == [[250, 50, 550, 350]]
    assert merged.masks is not None
    wanted = crop([250, 50, 550, 350]) > 0.5
    got = merged.masks[0] > 0.5
    assert (got & wanted).sum() / (got | wanted).sum() > 0.96
    assert merged.size == (400, 800) and len(merged.rle()) == 1


def test_masks_and_keypoints_of_whole_objects_are_moved_not_changed() -> None:
    boxes = [[100, 100, 160, 170], [900, 500, 980, 580], [480, 300, 560, 390]]
    generator = torch.Generator().manual_seed(1)
    expected = replace(
        truth(boxes),
        masks=torch.rand(3, 28, 28, generator=generator),
        keypoints=torch.tensor([[[x1 + 5, y1 + 9, 0.9], [x2, y2, 0.7]] for x1, y1, x2, y2 in boxes]),
    )
    found = predict_tiled(Oracle(expected), canvas(), Tiling(size=400, overlap=0.3, whole=True))
    assert found.masks is not None and found.keypoints is not None and expected.masks is not None
    order = [expected.boxes.tolist().index(box) for box in found.boxes.tolist()]
    assert torch.equal(found.masks, expected.masks[order])
    assert torch.allclose(found.keypoints, expected.keypoints[order])


def test_keypoints_of_pieces_come_from_who_sees_them() -> None:
    expected = replace(
        truth([[250, 100, 720, 180]]), keypoints=torch.tensor([[[260.0, 140, 0.9], [710, 150, 0.8], [500, 120, 0.7]]])
    )
    found = predict_tiled(Oracle(expected), canvas(), TILING)
    assert_same(found, expected)
    assert torch.allclose(found.keypoints, expected.keypoints)


def test_the_best_are_given_back_and_no_more() -> None:
    boxes = [[x, 10, x + 30, 40] for x in range(0, 1300, 50)]
    found = predict_tiled(Oracle(truth(boxes)), canvas(), TILING, max_detections=5)
    assert found.boxes[:, 0].tolist() == [0, 50, 100, 150, 200]


def test_tiles_go_through_the_model_a_few_at_a_time() -> None:
    sizes = []

    def counting(images: Sequence[Tensor]) -> list[Prediction]:
        sizes.append(len(images))
        assert all(image.untyped_storage().data_ptr() == pixels.untyped_storage().data_ptr() for image in images)
        return Oracle(truth([]))(images)

    pixels = canvas()
    found = predict_tiled(counting, pixels, Tiling(size=400), tiles_at_once=5)
    assert len(found) == 0 and found.size == SIZE
    assert max(sizes) == 5 and sum(sizes) == len(cut_tiles(*SIZE, Tiling(size=400)))


def test_bad_settings_are_refused() -> None:
    for bad in ({"size": 0}, {"size": 4, "overlap": 0.95}, {"size": 4, "iou_threshold": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad)) if len(bad) == 1 else list(bad)[1]):
            Tiling(**bad)
    with pytest.raises(ValueError, match="one prediction a tile"):
        merge_tiles([(0, 0, 4, 4)], [], (4, 4), TILING)
