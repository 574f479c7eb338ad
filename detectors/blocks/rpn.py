"""The region proposal network: which boxes of an image may hold an object of any class.

Shape legend: B images, N anchors of all levels, n of one level, S candidates of all images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.blocks.codecs import decode_boxes
from detectors.blocks.heads import DenseOutputs, anchors_last
from detectors.blocks.losses import box_regression_loss
from detectors.blocks.matchers import IGNORED, IouMatcher
from detectors.blocks.nms import nms_of_images
from detectors.blocks.samplers import balanced
from detectors.structures import Target

SMALLEST_PROPOSAL = 1e-3
"""Proposals with a shorter side, pixels, are dropped: clipping makes some that have no area."""


class RpnHead(nn.Module):
    """3x3 convolutions and two 1x1 that predict, shared over levels.

    Args:
        channels: of every map.
        num_anchors: a position.
        depth: 3x3 convolutions; the paper has 1, torchvision's ``_v2`` 2.
    Source: Ren et al. 2015, 1506.01497, section 3.1.
    """

    def __init__(self, channels: int, *, num_anchors: int, depth: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: list[Tensor]) -> DenseOutputs:
        """Of every anchor a logit (B, n, 1) of holding an object, and deltas (B, n, 4)."""
        hidden = [self.convs(x) for x in maps]
        return DenseOutputs(
            logits=[anchors_last(self.objectness(x), 1) for x in hidden],
            deltas=[anchors_last(self.deltas(x), 4) for x in hidden],
            shapes=tuple((x.shape[-2], x.shape[-1]) for x in maps),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalSelection:
    """Which anchors become proposals.

    Attributes:
        topk: best anchors of each level that are decoded.
        nms_iou: a proposal is suppressed by a better one of its level from beyond this IoU.
        limit: proposals an image.
    """

    topk: int = 1000
    nms_iou: float = 0.7
    limit: int = 1000

    def __post_init__(self) -> None:
        if self.topk < 1 or self.limit < 1 or not 0 <= self.nms_iou <= 1:
            raise ValueError(
                f"proposals: topk={self.topk} and limit={self.limit} must be at least 1, nms_iou={self.nms_iou} in 0..1"
            )


@torch.no_grad()
def select_proposals(
    outputs: DenseOutputs, anchors: Tensor, sizes: Tensor, selection: ProposalSelection
) -> list[Tensor]:
    """Top-k of each level, decode those, clip, NMS within each level, the best of all levels.

    Args:
        outputs: of the head.
        anchors: (N, 4) xyxy, model pixels.
        sizes: (B, 2) height and width of each image inside its padding.
        selection: how many.
    Returns:
        For each image (n, 4) float32 xyxy, inside the image, by descending objectness.
    """
    found: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    first = 0
    for level, (logits, deltas) in enumerate(zip(outputs.logits, outputs.deltas)):
        best = logits[..., 0].float().topk(min(selection.topk, logits.shape[1]), dim=1)
        image = torch.arange(len(logits), device=logits.device)[:, None].expand_as(best.indices).flatten()
        anchor = best.indices.flatten()
        found.append(
            (image, anchor + first, torch.full_like(anchor, level), best.values.flatten(), deltas[image, anchor])
        )
        first += logits.shape[1]
    image, anchor, level_of, objectness, chosen = (torch.cat(parts) for parts in zip(*found))
    boxes = decode_boxes(chosen.float(), anchors[anchor])
    limits = sizes.flip(1).repeat(1, 2).to(boxes)  # width, height, width, height
    boxes = torch.minimum(boxes.clamp(min=0), limits[image])
    # By image, and not yet sorted by anything else: NMS does that.
    order = image.argsort(stable=True)
    order = order[((boxes[order, 2:] - boxes[order, :2]) >= SMALLEST_PROPOSAL).all(1)]
    counts = torch.bincount(image[order], minlength=len(sizes)).tolist()
    kept = nms_of_images(boxes[order], objectness[order], level_of[order], counts, selection.nms_iou, selection.limit)
    return [boxes[order[of_image]] for of_image in kept]


@dataclass(frozen=True, slots=True, kw_only=True)
class RpnTraining:
    """What the proposal network learns from.

    Attributes:
        matcher: which anchors hold an object.
        batch: anchors an image that count.
        positive_fraction: of them at most so many positive.
        inside_only: anchors that cross the image's border never count (the paper; torchvision counts them).
        beta: knee of the smooth L1 of boxes.
    """

    matcher: IouMatcher
    batch: int = 256
    positive_fraction: float = 0.5
    inside_only: bool = False
    beta: float = 1 / 9


def proposal_losses(
    outputs: DenseOutputs, anchors: Tensor, sizes: Tensor, targets: list[Target], training: RpnTraining
) -> tuple[Tensor, Tensor]:
    """Losses of objectness and of boxes, both divided by the anchors that were sampled.

    Args:
        outputs: of the head.
        anchors: (N, 4) xyxy, model pixels.
        sizes: (B, 2) height and width of each image inside its padding.
        targets: of the images.
        training: matching and sampling.
    Source: Ren et al. 2015, 1506.01497, sections 3.1.2 and 3.1.3, with the box loss weighted as in torchvision.
    """
    matched = torch.stack([training.matcher.match(t.boxes, t.iscrowd, anchors) for t in targets])
    if training.inside_only:
        matched[~_inside(anchors, sizes)] = IGNORED
    sampled = balanced(matched, batch_size=training.batch, positive_fraction=training.positive_fraction)
    count = sampled.sum().clamp(min=1)
    logits = torch.cat(outputs.logits, 1)[..., 0].float()
    objectness = F.binary_cross_entropy_with_logits(logits[sampled], (matched[sampled] >= 0).float(), reduction="sum")
    image, anchor = (sampled & (matched >= 0)).nonzero(as_tuple=True)
    deltas = torch.cat(outputs.deltas, 1)[image, anchor].float()
    boxes = torch.cat([t.boxes[matched[i, anchor[image == i]]] for i, t in enumerate(targets)]).float()
    regression = box_regression_loss(deltas, boxes, anchors[anchor], kind="smooth_l1", beta=training.beta)
    return objectness / count, regression.sum() / count


def _inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """(B, N) whether an anchor lies inside each image."""
    limits = sizes.flip(1).to(anchors)
    return (anchors[None, :, :2] >= 0).all(-1) & (anchors[None, :, 2:] <= limits[:, None]).all(-1)
