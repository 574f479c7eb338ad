"""Several detections of one object made one: whole predictions of an image by fusion, masks and keypoints.

Shape legend: N detections of an object, M x M cells of a mask's crop, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.fusion import IOU_THRESHOLD, fuse_boxes
from detectors.structures import Prediction


def fuse_predictions(
    predictions: Sequence[Prediction],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = IOU_THRESHOLD,
    max_detections: int = 300,
) -> Prediction:
    """Weighted-boxes fusion of several predictions of one image.

    Masks are averaged on the fused box and keypoints point by point, by score.

    Args:
        predictions: of one image, in its pixels; masks and keypoints in all of them or in none.
        weights: one each; None is 1.
        iou_threshold: see ``fuse_boxes``.
        max_detections: most that are given back, the best ones.
    Returns:
        By descending score, on the CPU.
    Raises:
        ValueError: no predictions, of images of several sizes, some with and some without masks or keypoints, or bad
            weights.
    """
    _check_alike(predictions)
    weights = [1.0] * len(predictions) if weights is None else weights
    if len(weights) != len(predictions):
        raise ValueError(f"{len(weights)} weights for {len(predictions)} predictions; give one each")
    boxes, scores = _all([p.boxes for p in predictions]), _all([p.scores for p in predictions])
    labels = _all([p.labels for p in predictions])
    models = np.repeat(np.arange(len(predictions)), [len(p) for p in predictions])
    fused = fuse_boxes(boxes.numpy(), scores.numpy(), labels.numpy(), models, weights, iou_threshold=iou_threshold)
    kept = np.argsort(-fused.scores, kind="stable")[:max_detections]
    onto = torch.from_numpy(fused.boxes[kept]).float()
    by_cluster = np.argsort(fused.cluster, kind="stable")
    ends = np.searchsorted(fused.cluster[by_cluster], np.arange(len(fused.scores) + 1))
    members = [torch.from_numpy(by_cluster[ends[c] : ends[c + 1]]) for c in kept]
    mass = scores * torch.tensor(weights, dtype=torch.float32)[models]
    masks, keypoints = _some([p.masks for p in predictions]), _some([p.keypoints for p in predictions])
    return Prediction(
        boxes=onto,
        labels=torch.from_numpy(fused.groups[kept]),
        scores=torch.from_numpy(fused.scores[kept]).float(),
        size=predictions[0].size,
        masks=None
        if masks is None
        else _stacked([mean_mask(masks[m], boxes[m], mass[m], box) for m, box in zip(members, onto)], masks),
        keypoints=None
        if keypoints is None
        else _stacked([mean_keypoints(keypoints[m], mass[m]) for m in members], keypoints),
    )


def _check_alike(predictions: Sequence[Prediction]) -> None:
    if not predictions:
        raise ValueError("there is nothing to fuse: give one prediction or more")
    sizes = {p.size for p in predictions}
    if len(sizes) > 1:
        raise ValueError(f"predictions of images of {sorted(sizes)}; only those of one image can be fused")
    for name in ("masks", "keypoints"):
        if len({getattr(p, name) is None for p in predictions}) > 1:
            raise ValueError(f"some of the predictions have {name} and some have none; leave them out of all")


def _all(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.cpu() for t in tensors])


def _some(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [t for t in tensors if t is not None]
    return _all(there) if there else None


def _stacked(each: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.stack(list(each)) if each else like[:0]


def masks_onto(crops: Tensor, boxes: Tensor, onto: Tensor) -> Tensor:
    """Mask crops of some boxes as crops of another one; what lies outside of a box is 0.

    Args:
        crops: (N, M, M) probabilities.
        boxes: (N, 4) xyxy they fill.
        onto: (4,) xyxy, in the same pixels.
    Returns:
        (N, M, M), bilinear at the centres of the cells.
    """
    cells = crops.shape[-1]
    centres = (torch.arange(cells, dtype=torch.float32) + 0.5) / cells
    at = onto[:2] + centres[:, None] * (onto[2:] - onto[:2])  # (M, 2) x and y of columns and rows
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    inside = 2 * (at[None] - boxes[:, None, :2]) / size[:, None] - 1  # (N, M, 2), -1..1 is the box
    x, y = inside[..., 0], inside[..., 1]
    grid = torch.stack([x[:, None, :].expand(-1, cells, -1), y[:, :, None].expand(-1, -1, cells)], -1)
    # Up to the border a cell is what it is; zeros beyond it would eat half a cell at every side.
    values = F.grid_sample(crops[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    return torch.where((grid.abs() <= 1).all(-1), values, 0.0)


def join_masks(crops: Tensor, boxes: Tensor, hull: Tensor) -> Tensor:
    """(M, M) crop of ``hull`` where each cell is what the surest of the detections says of it."""
    return masks_onto(crops, boxes, hull).amax(0)


def join_keypoints(keypoints: Tensor) -> Tensor:
    """(K, 3) of (N, K, 3): each keypoint from the detection that is surest of it."""
    best = keypoints[..., 2].argmax(0)
    return keypoints[best, torch.arange(keypoints.shape[1])]


def mean_mask(crops: Tensor, boxes: Tensor, weights: Tensor, onto: Tensor) -> Tensor:
    """(M, M) crop of the box ``onto``: the detections' mean, by (N,) weights of more than 0."""
    return torch.einsum("n,nij->ij", weights / weights.sum(), masks_onto(crops, boxes, onto))


def mean_keypoints(keypoints: Tensor, weights: Tensor) -> Tensor:
    """(K, 3) of (N, K, 3): places by (N,) weights x the keypoints' scores, scores by weights of more than 0."""
    scores = keypoints[..., 2]
    sure = weights[:, None] * scores.clamp(min=1e-9)
    places = (sure[..., None] * keypoints[..., :2]).sum(0) / sure.sum(0)[:, None]
    mean = (weights[:, None] * scores).sum(0) / weights.sum()
    return torch.cat([places, mean[:, None]], 1)
