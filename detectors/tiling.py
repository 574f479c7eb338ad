"""Large images by overlapping tiles: small objects are found at the size that the model was made for.

Predictions of all tiles come back into the image's own pixels. An object is then there once for each tile that saw it,
and in pieces where tiles cut it; these are made one again:

1. Whole detections (those that no border inside the image cuts) suppress each other by class-wise NMS.
2. A cut piece is the object of a whole detection of another tile if both agree where both tiles look; the whole one
   gets the better score. Or it lies almost entirely in a better one.
3. Pieces of different tiles that agree where both tiles look are one object, larger than the tiles' overlap: their
   hull is its box.

Shape legend: N detections of an image, K keypoints, M x M cells of a mask's crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detectors.blocks.nms import batched_nms
from detectors.joining import join_keypoints, join_masks
from detectors.predicting import Predict
from detectors.structures import Prediction

Tile = tuple[int, int, int, int]
"""xyxy in pixels of the image."""

_COVERED = 0.8  # part of a piece that lies in a better detection
_NEAR_BORDER = 0.01  # part of a tile's side: boxes of cut objects end this near to the border


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a large image is cut.

    Attributes:
        size: the side of a tile, pixels of the image. The model's own size leaves objects as large as they are;
            half of it enlarges them twice. An image of this size or less is not cut.
        overlap: part of a tile's side that neighbours share, at least: objects up to this size are whole in one of
            them.
        whole: the image as a whole goes through the model too, for what is larger than a tile.
        iou_threshold: detections of one class whose IoU exceeds this are one object.
    """

    size: int
    overlap: float = 0.2
    whole: bool = True
    iou_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least one pixel")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"overlap={self.overlap} must lie in 0..0.9")
        if not 0 < self.iou_threshold < 1:
            raise ValueError(f"iou_threshold={self.iou_threshold} must lie between 0 and 1")


def predict_tiled(
    predict: Predict, image: Tensor, tiling: Tiling, *, max_detections: int = 300, tiles_at_once: int = 8
) -> Prediction:
    """What a detector finds in a large image, tile by tile.

    Memory beside the image: ``tiles_at_once`` tiles, and the detections of all.

    Args:
        predict: of a detector, see ``detectors.predicting.predictor``.
        image: (3, H, W) uint8.
        tiling: how to cut it.
        max_detections: most that are given back, the best ones.
        tiles_at_once: given to ``predict`` together.
    Returns:
        In pixels of the image, by descending score.
    """
    height, width = int(image.shape[1]), int(image.shape[2])
    tiles = cut_tiles(height, width, tiling)
    predictions: list[Prediction] = []
    for first in range(0, len(tiles), tiles_at_once):
        # The whole image is a tile as well: views, no copies.
        predictions += predict([image[:, y1:y2, x1:x2] for x1, y1, x2, y2 in tiles[first : first + tiles_at_once]])
    return merge_tiles(tiles, predictions, (height, width), tiling, max_detections=max_detections)


def cut_tiles(height: int, width: int, tiling: Tiling) -> list[Tile]:
    """Tiles of one size that cover an image, evenly spread, row by row; the whole image, where wanted, comes last.

    They overlap by ``tiling.overlap`` or more. An image that is no larger than a tile is one tile.
    """
    tiles = [
        (x, y, min(x + tiling.size, width), min(y + tiling.size, height))
        for y in _starts(height, tiling)
        for x in _starts(width, tiling)
    ]
    if tiling.whole and len(tiles) > 1:
        tiles.append((0, 0, width, height))
    return tiles


def _starts(length: int, tiling: Tiling) -> list[int]:
    last = max(0, length - tiling.size)
    step = max(1, tiling.size - round(tiling.size * tiling.overlap))
    count = -(-last // step)
    return [0, *(round(i * last / count) for i in range(1, count + 1))]


def merge_tiles(
    tiles: Sequence[Tile],
    predictions: Sequence[Prediction],
    size: tuple[int, int],
    tiling: Tiling,
    *,
    max_detections: int = 300,
) -> Prediction:
    """One prediction of an image from those of its tiles; see the module.

    Args:
        tiles: as ``cut_tiles`` gave them.
        predictions: one a tile, in the tile's own pixels; masks and keypoints in all of them or in none.
        size: height and width of the image.
        tiling: what they were cut by.
        max_detections: most that are given back, the best ones.
    Returns:
        In pixels of the image, by descending score; on the CPU.
    Raises:
        ValueError: not as many predictions as tiles.
    """
    if len(tiles) != len(predictions) or not tiles:
        raise ValueError(f"{len(tiles)} tiles and {len(predictions)} predictions; there must be one prediction a tile")
    if len(tiles) == 1:
        return _in_image(predictions[0], tiles[0], size).take(torch.arange(min(len(predictions[0]), max_detections)))
    found = _concatenated([_in_image(p, tile, size) for p, tile in zip(predictions, tiles)], size)
    frames = torch.tensor(tiles, dtype=torch.float32)
    tile = torch.repeat_interleave(torch.tensor([len(p) for p in predictions]))
    cut = _is_cut(found.boxes, frames[tile], size)

    whole = (~cut).nonzero().squeeze(1)
    whole = whole[_nms(found.take(whole), tiling, len(whole))]
    pieces = cut.nonzero().squeeze(1)
    scores, left = _join_whole(found, frames, tile, whole, pieces, tiling.iou_threshold)
    found = replace(found, scores=scores)
    groups = _join_pieces(found, frames, tile, left, tiling.iou_threshold)
    merged = _concatenated([found.take(whole), *(_joined(found, group) for group in groups)], size)
    return merged.take(_nms(merged, tiling, max_detections))


def _in_image(prediction: Prediction, tile: Tile, size: tuple[int, int]) -> Prediction:
    x, y = tile[:2]
    keypoints = prediction.keypoints
    return Prediction(
        boxes=prediction.boxes.cpu() + torch.tensor([x, y, x, y], dtype=torch.float32),
        labels=prediction.labels.cpu(),
        scores=prediction.scores.cpu(),
        size=size,
        masks=None if prediction.masks is None else prediction.masks.cpu(),
        keypoints=None if keypoints is None else keypoints.cpu() + torch.tensor([x, y, 0], dtype=torch.float32),
    )


def _concatenated(predictions: Sequence[Prediction], size: tuple[int, int]) -> Prediction:
    masks = [p.masks for p in predictions if p.masks is not None]
    keypoints = [p.keypoints for p in predictions if p.keypoints is not None]
    return Prediction(
        boxes=torch.cat([p.boxes for p in predictions]),
        labels=torch.cat([p.labels for p in predictions]),
        scores=torch.cat([p.scores for p in predictions]),
        size=size,
        masks=torch.cat(masks) if masks else None,
        keypoints=torch.cat(keypoints) if keypoints else None,
    )


def _nms(found: Prediction, tiling: Tiling, limit: int) -> Tensor:
    return batched_nms(found.boxes, found.scores, found.labels, tiling.iou_threshold, limit)


def _is_cut(boxes: Tensor, frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(N,) bool: the box ends at a border of its tile that is inside the image."""
    near = 1 + _NEAR_BORDER * (frames[:, 2:] - frames[:, :2])
    end = torch.tensor([size[1], size[0]], dtype=torch.float32)
    first = (frames[:, :2] > 0) & (boxes[:, :2] - frames[:, :2] <= near)
    last = (frames[:, 2:] < end) & (frames[:, 2:] - boxes[:, 2:] <= near)
    return (first | last).any(1)


def _join_whole(
    found: Prediction, frames: Tensor, tile: Tensor, whole: Tensor, pieces: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """Scores, whole detections with the best of their pieces', and the pieces that belong to none."""
    scores = found.scores.clone()
    if not len(whole) or not len(pieces):
        return scores, pieces
    left = []
    for of_tile in _by_tile(pieces, tile):
        others = whole[tile[whole] != tile[of_tile[0]]]
        others = others[_meets(found.boxes[others], found.boxes[of_tile], frames[tile[of_tile[0]]])]
        agreement = _agreement(found, frames, tile, of_tile, others)
        covered = _covered(found, of_tile, others) & (found.scores[of_tile, None] <= found.scores[others])
        best, at = agreement.max(1) if len(others) else (torch.zeros(len(of_tile)), of_tile)
        same = best > iou_threshold
        owners = others[at[same]] if len(others) else at[same]
        scores.scatter_reduce_(0, owners, found.scores[of_tile[same]], "amax")
        left.append(of_tile[~same & ~covered.any(1)])
    return scores, torch.cat(left)


def _by_tile(pieces: Tensor, tile: Tensor) -> tuple[Tensor, ...]:
    return pieces.split(torch.unique_consecutive(tile[pieces], return_counts=True)[1].tolist()) if len(pieces) else ()


def _meets(boxes: Tensor, pieces: Tensor, frame: Tensor) -> Tensor:
    """(m,) bool: the box touches the tile or a piece of it. What does not has nothing to do with any of its pieces.

    Most of a large image is elsewhere: without this all pairs of its detections are looked at, minutes of them.
    """
    around = torch.cat([pieces, frame[None]])
    return (boxes[:, :2] <= around[:, 2:].amax(0)).all(1) & (boxes[:, 2:] >= around[:, :2].amin(0)).all(1)


def _join_pieces(
    found: Prediction, frames: Tensor, tile: Tensor, pieces: Tensor, iou_threshold: float
) -> list[list[int]]:
    """Groups of pieces of one object, at most one a tile; the best agreement joins first."""
    links: list[tuple[float, int, int]] = []
    for of_tile in _by_tile(pieces, tile):
        later = pieces[tile[pieces] > tile[of_tile[0]]]
        later = later[_meets(found.boxes[later], found.boxes[of_tile], frames[tile[of_tile[0]]])]
        agreement = _agreement(found, frames, tile, of_tile, later)
        one, other = (agreement > iou_threshold).nonzero(as_tuple=True)
        links += zip((-agreement[one, other]).tolist(), of_tile[one].tolist(), later[other].tolist(), strict=True)
    tile_of = tile.tolist()
    group_of = {piece: [piece] for piece in pieces.tolist()}
    for _, piece, partner in sorted(links):
        first, second = group_of[piece], group_of[partner]
        if {tile_of[i] for i in first}.isdisjoint(tile_of[i] for i in second):
            first += second
            group_of.update((i, first) for i in second)
    return list({id(group): group for group in group_of.values()}.values())


def _agreement(found: Prediction, frames: Tensor, tile: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """(n, m) IoU of two sets of detections, each pair cut to where both of their tiles look; 0 between classes."""
    seen = _intersection(frames[tile[one]][:, None], frames[tile[other]][None])
    a = _intersection(found.boxes[one][:, None], seen)
    b = _intersection(found.boxes[other][None], seen)
    both = _area(_intersection(a, b))
    union = _area(a) + _area(b) - both
    same_class = found.labels[one][:, None] == found.labels[other][None]
    return torch.where(same_class & (union > 0), both / union.clamp(min=1e-9), 0.0)


def _covered(found: Prediction, one: Tensor, other: Tensor) -> Tensor:
    """(n, m) bool: the first lies almost entirely in the second, which is of its class."""
    boxes = found.boxes[one][:, None]
    inside = _area(_intersection(boxes, found.boxes[other][None])) / _area(boxes).clamp(min=1e-9)
    return (found.labels[one][:, None] == found.labels[other][None]) & (inside >= _COVERED)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _joined(found: Prediction, group: Sequence[int]) -> Prediction:
    """One detection of the pieces of an object: their hull, the best score, what any of them sees of its mask."""
    parts = found.take(torch.tensor(group))
    if len(parts) == 1:
        return parts
    hull = torch.cat([parts.boxes[:, :2].amin(0), parts.boxes[:, 2:].amax(0)])[None]
    return Prediction(
        boxes=hull,
        labels=parts.labels[:1],
        scores=parts.scores.amax(0, keepdim=True),
        size=found.size,
        masks=None if parts.masks is None else join_masks(parts.masks, parts.boxes, hull[0])[None],
        keypoints=None if parts.keypoints is None else join_keypoints(parts.keypoints)[None],
    )
