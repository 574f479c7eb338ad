"""The keypoint branch: of each region a heat map a keypoint, which says where in the region's box it is.

Shape legend: R regions of all images, K keypoints, M x M cells of a heat map (four times the side of what is pooled).
Source: He et al. 2017, 1703.06870, section 5; torchvision.models.detection.roi_heads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.blocks.heads import subnet
from detectors.blocks.norms import Norm
from detectors.blocks.roi import SampledRois
from detectors.structures import Target

_CUBIC = -0.75
"""Of the cubic convolution kernel (Keys 1981): what torch and OpenCV take."""
_PIXELS_AT_ONCE = 1 << 22


class KeypointHead(nn.Module):
    """3x3 convolutions, a 4x4 transposed one that doubles the side, and a bilinear resize that doubles it again.

    Args:
        in_channels: of the pooled regions.
        channels: width of the convolutions; the paper has 512.
        convs: how many; the paper has 8.
        norm: behind each of them.
        num_keypoints: K.
    """

    def __init__(self, *, in_channels: int, channels: int, convs: int, norm: Norm, num_keypoints: int) -> None:
        super().__init__()
        self.convs = subnet(in_channels, channels, convs, norm)
        self.deconv = nn.ConvTranspose2d(channels if convs else in_channels, num_keypoints, 4, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, in_channels, M / 4, M / 4) to logits (R, K, M, M)."""
        coarse = self.deconv(self.convs(pooled))
        return F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)


def keypoint_regions(rois: list[SampledRois], targets: list[Target], limit: int) -> list[SampledRois]:
    """The regions that the branch learns from: objects with a labelled keypoint, at most ``limit`` of each image.

    Args:
        rois: all regions.
        targets: of the images, with keypoints.
        limit: where an image has more, so many are drawn by torch's global generator.
    Raises:
        ValueError: a target with objects has no keypoints.
    """
    chosen = []
    for image, (sampled, target) in enumerate(zip(rois, targets)):
        objects = sampled.matched_idxs >= 0
        if target.keypoints is None:
            if bool(objects.any()):
                raise ValueError(
                    f"image {image} of the batch has {len(target)} objects and no keypoints; keypoints are learnt here"
                )
            taught = objects.nonzero().squeeze(1)
        else:
            labelled = (target.keypoints[..., 2] > 0).any(1)
            taught = objects.nonzero().squeeze(1)
            taught = taught[labelled[sampled.matched_idxs[taught]]]
        if len(taught) > limit:
            taught = taught[torch.randperm(len(taught), device=taught.device)[:limit]]
        chosen.append(SampledRois(boxes=sampled.boxes[taught], matched_idxs=sampled.matched_idxs[taught]))
    return chosen


def keypoint_loss(logits: Tensor, rois: list[SampledRois], targets: list[Target]) -> Tensor:
    """Mean cross-entropy of the one cell that each keypoint lies in, of all cells of its map.

    Keypoints that are not labelled, or outside the region's box, do not count.

    Args:
        logits: (R, K, M, M) of the regions.
        rois: those of ``keypoint_regions``.
        targets: of the images.
    """
    cells, counted = [], []
    for sampled, target in zip(rois, targets):
        if target.keypoints is not None:
            cell, inside = _cells(target.keypoints[sampled.matched_idxs], sampled.boxes, logits.shape[-1])
            cells.append(cell)
            counted.append(inside)
    count = torch.cat(counted) if counted else torch.zeros(logits.shape[:2], dtype=torch.bool)
    if not bool(count.any()):
        return logits.sum() * 0  # connected, so that distributed training finds a gradient for each parameter
    return F.cross_entropy(logits.flatten(2)[count].float(), torch.cat(cells)[count])


def _cells(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(n, K) number of the cell that each of (n, K, 3) keypoints lies in, and whether it counts."""
    corner, sides = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    cell = ((keypoints[..., :2] - corner) * (size / sides)).floor().long()
    # What lies on the right or lower edge belongs to the last cell.
    cell = torch.where(keypoints[..., :2] == boxes[:, None, 2:], size - 1, cell)
    inside = ((cell >= 0) & (cell < size)).all(-1) & (keypoints[..., 2] > 0)
    return cell[..., 1] * size + cell[..., 0], inside


def locate_keypoints(logits: Tensor, boxes: Tensor) -> Tensor:
    """The highest point of each heat map, after a bicubic resize to the pixels of its box.

    Args:
        logits: (R, K, M, M).
        boxes: (R, 4) xyxy, pixels of the frame in which points are wanted.
    Returns:
        (R, K, 3) float32 x, y in that frame, and the score: the probability, among all cells of the heat map, of one
        as high as that point, in [0, 1].
    """
    logits = logits.float()
    sides = (boxes[:, 2:] - boxes[:, :2]).float().clamp(min=1)
    pixels = sides.ceil().long()
    found = logits.new_empty((*logits.shape[:2], 3))
    for part in _of_like_size(pixels, logits.shape[1]):
        peak, column, row = _peaks(logits[part], pixels[part])
        # From the middle of a pixel of the resized map to the box, which may end within its last pixel.
        place = (torch.stack([column, row], 2) + 0.5) * (sides[part] / pixels[part])[:, None] + boxes[part, None, :2]
        score = (peak - logits[part].flatten(2).logsumexp(2)).exp().clamp(max=1)
        found[part] = torch.cat([place, score[..., None]], 2)
    return found


def _of_like_size(pixels: Tensor, num_keypoints: int) -> Iterator[Tensor]:
    """Indices of boxes in groups, so that each is resized as far as the largest of its group at little waste.

    Args:
        pixels: (R, 2) width and height.
        num_keypoints: maps of each.
    """
    order = pixels.amax(1).argsort()
    first, widest, highest = 0, 0, 0
    for end, (width, height) in enumerate(pixels[order].tolist(), 1):
        widest, highest = max(widest, width), max(highest, height)
        if end - first > 1 and (end - first) * widest * highest * num_keypoints > _PIXELS_AT_ONCE:
            yield order[first : end - 1]
            first, widest, highest = end - 1, width, height
    if first < len(order):
        yield order[first:]


def _peaks(logits: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (n, K, M, M) maps resized to ``pixels``, (n, 2) width and height: the highest value, its column and its row.

    A resize is a product with a matrix on each side, which is much faster than to sum sixteen cells for each pixel.
    """
    count, num_keypoints, cells, _ = logits.shape
    columns, rows = (_resizing(length, cells) for length in pixels.unbind(1))
    stretched = rows @ logits.transpose(1, 2).flatten(2)  # (n, height, K * M)
    of_row, column = (stretched.view(count, -1, cells) @ columns.transpose(1, 2)).max(2)
    peak, row = of_row.view(count, -1, num_keypoints).max(1)
    return peak, column.view(count, -1, num_keypoints).gather(1, row[:, None]).squeeze(1), row


def _resizing(lengths: Tensor, cells: int) -> Tensor:
    """(n, longest, cells) weights of a bicubic resize of ``cells`` to each of (n,) lengths.

    Rows beyond a length are its last one again, so that no maximum is found there that is not its own.
    """
    place = torch.arange(int(lengths.max()), device=lengths.device).minimum(lengths[:, None] - 1)
    source = (place + 0.5) * (cells / lengths[:, None]) - 0.5
    around = source.floor()[..., None] + torch.arange(-1, 3, device=lengths.device)
    distance = (source[..., None] - around).abs()
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
    weights = torch.where(distance <= 1, near, far)
    matrix = weights.new_zeros((*place.shape, cells))
    return matrix.scatter_add_(2, around.long().clamp(0, cells - 1), weights)
