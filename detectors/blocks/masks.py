"""Run lengths of masks, straight from their crops: what is more than a threshold once it is pasted.

Across, crops are interpolated, but not down: between two cells of a column probability rises or falls evenly, so that
the pixel where it passes the threshold is computed. That rounds otherwise than interpolation does, so the two pixels
on either side of that place are asked for what interpolation says of them; where rounding could decide about one of
them, the mask is interpolated.

Shape legend: N masks of an image, M x M cells of a crop with its border, P columns of pixels of some masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from detectors.blocks.pasting import Place, padded, places_of, stretched

THRESHOLD = 0.5
"""A pixel belongs to a mask whose probability there exceeds this."""

_ROUNDING = 5e-7  # more than two sums of the same four products of 0..1 in another order can differ by
_AT_ONCE = 16  # masks whose columns stay in a processor's cache

Changes = NDArray[np.int64]
"""(2R,) the pixels, down the columns of the image, where each of R runs of mask begins and where it has ended."""


def mask_rles(
    crops: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = THRESHOLD
) -> list[NDArray[np.int64]]:
    """Run lengths of each pasted mask, without pasting it.

    Args:
        crops: (N, M, M) probabilities, without a border.
        boxes: (N, 4) xyxy, pixels of the image.
        size: height and width of the image.
        threshold: in 0..1 (1 excluded); a pixel is mask where the pasted probability exceeds it.
    Returns:
        For each mask COCO's uncompressed counts: lengths of runs of 0, 1, 0, ... down the columns, one column after
        the other; the first may be 0, they sum to H * W.
    Raises:
        ValueError: crops and boxes are not as many, or a threshold or size out of range.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"the mask threshold is {threshold}; it must be in 0..1 (1 excluded)")
    # Run lengths are on this side of any device anyway.
    crops, boxes = crops.detach().cpu(), boxes.detach().cpu()
    places = places_of(crops, boxes, size)
    whole = padded(crops)
    found: list[Changes | None] = [None] * len(crops)
    if crops.dtype == torch.float32:
        cells = whole.numpy()
        with np.errstate(invalid="ignore"):  # a mask with values that are no numbers is interpolated
            for start in range(0, len(crops), _AT_ONCE):
                some = slice(start, start + _AT_ONCE)
                found[some] = _Columns.of(cells[some], places[some], threshold).changes(size[0])
    return [
        _counts(_exact_changes(crop, place, threshold, size[0]) if changes is None else changes, size[0] * size[1])
        for crop, place, changes in zip(whole, places, found)
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Neighbours:
    """Between which two cells each of L pixels lies, and what they give.

    Attributes:
        first, second: (L,) int64 the cells.
        of_first, of_second: (L,) float32 their shares.
        behind, share: (L + 2,) ``first`` and ``of_second``, with a pixel in front of all cells and one behind them.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    of_first: NDArray[np.float32]
    of_second: NDArray[np.float32]
    behind: NDArray[np.int64]
    share: NDArray[np.float32]


@lru_cache(maxsize=1024)
def _neighbours(cells: int, pixels: int) -> _Neighbours:
    """As interpolation has them, from itself."""
    line = F.interpolate(torch.eye(cells)[None], size=pixels, mode="linear", align_corners=False)
    weights = line[0].T.contiguous().numpy()
    first = (weights != 0).argmax(1)
    second = np.minimum(first + 1, cells - 1)
    of_first, of_second = (np.take_along_axis(weights, at[:, None], 1)[:, 0] for at in (first, second))
    of_second[second == first] = 0
    nothing = np.zeros(1, np.float32)
    return _Neighbours(
        first=first,
        second=second,
        of_first=of_first,
        of_second=of_second,
        behind=np.concatenate([[-1], first, [cells]]),
        share=np.concatenate([nothing, of_second, nothing]),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Columns:
    """The columns of some masks that are inside the image, one mask after the other.

    Attributes:
        above: (P, M) by how much each cell of a column exceeds the threshold, float32.
        mask: (P,) which mask a column belongs to.
        places: of the masks.
    """

    above: NDArray[np.float32]
    mask: NDArray[np.int64]
    places: Sequence[Place]

    @classmethod
    def of(cls, crops: NDArray[np.float32], places: Sequence[Place], threshold: float) -> _Columns:
        """Of (n, M, M) crops with their borders."""
        size = crops.shape[-1]
        columns = np.ascontiguousarray(crops.transpose(0, 2, 1)).reshape(-1, size)
        across = [_neighbours(size, place.width) for place in places]
        mask = np.repeat(np.arange(len(places)), [place.right - place.left for place in places])

        inside = [place.columns for place in places]
        first = np.concatenate([of.first[some] for of, some in zip(across, inside)])
        second = np.concatenate([of.second[some] for of, some in zip(across, inside)])
        of_first = np.concatenate([of.of_first[some] for of, some in zip(across, inside)])
        of_second = np.concatenate([of.of_second[some] for of, some in zip(across, inside)])
        above = columns[first + mask * size]
        above *= of_first[:, None]
        other = columns[second + mask * size]
        other *= of_second[:, None]
        above += other
        above -= np.float32(threshold)
        return cls(above=above, mask=mask, places=places)

    def changes(self, height: int) -> list[Changes | None]:
        """Of each mask in an image of ``height`` pixels; None where rounding could decide."""
        size = self.above.shape[1]
        magnitude = np.abs(self.above)
        unsure = np.zeros(len(self.places), np.bool_)
        if magnitude.size and not (magnitude.min() > _ROUNDING and magnitude.max() < np.inf):
            sure = (magnitude > _ROUNDING) & (magnitude < np.inf)  # neither is true of what is no number
            unsure[self.mask[~sure.all(1)]] = True
        is_above = self.above > 0
        at = np.flatnonzero(is_above[:, 1:] != is_above[:, :-1])
        column, cell = np.divmod(at, size - 1)
        before = self.above.ravel()[at + column]
        step = self.above.ravel()[at + column + 1] - before
        mask = self.mask[column]
        part = np.nan_to_num(before / step)  # of a mask that is unsure
        scale = np.array([place.height / size for place in self.places])[mask]
        row = np.ceil((cell - part + 0.5) * scale - 0.5).astype(np.int64)

        down = [_neighbours(size, place.height) for place in self.places]
        behind, share = np.concatenate([of.behind for of in down]), np.concatenate([of.share for of in down])
        lengths = np.array([len(of.behind) for of in down])
        pixel = row + (np.cumsum(lengths) - lengths)[mask]  # the one before the place, of those of ``behind``
        rising = np.sign(step)
        for beyond, side in ((pixel, -1), (pixel + 1, 1)):
            apart = (behind[beyond] - cell) * side
            value = (before + step * share[beyond]) * rising * side
            sure = (apart > 0) | ((apart == 0) & (value > _ROUNDING))
            unsure[mask[~sure]] = True

        x, y, top, bottom = np.array([(p.left, p.y, p.top, p.bottom) for p in self.places]).T
        in_mask = np.arange(len(self.mask)) - np.searchsorted(self.mask, self.mask)
        line = (in_mask[column] + x[mask]) * height + np.clip(row + y[mask], top[mask], bottom[mask])
        ends = np.searchsorted(mask, np.arange(len(self.places) + 1))
        return [None if no else line[a:b] for no, a, b in zip(unsure.tolist(), ends[:-1], ends[1:])]


def _exact_changes(crop: Tensor, place: Place, threshold: float, height: int) -> Changes:
    """Of one mask in an image of ``height`` pixels, by interpolation."""
    columns = np.greater(stretched(crop, place).numpy().T, threshold)
    # Columns one after the other, with a 0 between them: what lies between two changes is a run.
    tall = columns.shape[1] + 1
    flat = np.zeros(1 + len(columns) * tall, dtype=np.bool_)
    flat[1:].reshape(len(columns), tall)[:, :-1] = columns
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), tall)
    return (column + place.left) * height + row + place.top


def _counts(changes: Changes, total: int) -> NDArray[np.int64]:
    """Run lengths of an image of ``total`` pixels.

    A run without pixels is none: it lies outside the image, or between two pixels of a box with fewer than its crop has
    cells. One that reaches the foot of a column may go on at the head of the next.
    """
    edges = np.empty(len(changes) + 2, np.int64)
    edges[0], edges[1:-1], edges[-1] = 0, changes, total
    counts = np.diff(edges)
    inner = counts[1:-1]
    if not inner.all():
        # What is between two changes at the same pixel is nothing: both are none.
        places, times = np.unique(changes, return_counts=True)
        edges = np.concatenate([[0], places[times % 2 == 1], [total]])
        counts = np.diff(edges)
    return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts
