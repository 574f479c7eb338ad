"""The mask branch: a small probability map of each class for each region.

Shape legend: R regions of all images, C classes, M x M cells of a crop (twice the side of what is pooled).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from detectors.blocks.norms import Norm, make_norm
from detectors.blocks.roi import SampledRois
from detectors.structures import Target


class MaskHead(nn.Module):
    """3x3 convolutions, one 2x2 transposed convolution that doubles the side, one 1x1 that predicts.

    Args:
        in_channels: of the pooled regions.
        channels: width of the convolutions.
        convs: how many; the paper has 4 with a pyramid.
        norm: behind each 3x3 convolution.
        num_classes: C; each has a map of its own, so that classes do not compete for pixels.
    Source: He et al. 2017, 1703.06870, figure 4.
    """

    def __init__(self, *, in_channels: int, channels: int, convs: int, norm: Norm, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(channels if i else in_channels, channels, 3, padding=1, bias=norm == "none"),
                    make_norm(norm, channels),
                    nn.ReLU(inplace=True),
                )
                for i in range(convs)
            )
        )
        self.deconv = nn.ConvTranspose2d(channels if convs else in_channels, channels, 2, stride=2)
        self.mask_logits = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, in_channels, M / 2, M / 2) to logits (R, C, M, M)."""
        logits: Tensor = self.mask_logits(F.relu(self.deconv(self.convs(pooled))))
        return logits


def mask_regions(rois: list[SampledRois], targets: list[Target]) -> list[SampledRois]:
    """Of each image the regions that the mask branch learns from: objects whose mask is known."""
    chosen = []
    for sampled, target in zip(rois, targets):
        taught = sampled.matched_idxs >= 0
        if target.mask_valid is not None:
            taught[taught.clone()] = target.mask_valid[sampled.matched_idxs[taught]]
        chosen.append(SampledRois(boxes=sampled.boxes[taught], matched_idxs=sampled.matched_idxs[taught]))
    return chosen


def mask_loss(logits: Tensor, rois: list[SampledRois], targets: list[Target]) -> Tensor:
    """Mean cross-entropy of the cells of each region's true class; other classes' maps do not count.

    Args:
        logits: (R, C, M, M) of the regions.
        rois: those of ``mask_regions``.
        targets: of the images, with masks.
    Raises:
        ValueError: a target with objects has no masks.
    Source: He et al. 2017, 1703.06870, section 3.
    """
    labels, truths = [], []
    for image, (sampled, target) in enumerate(zip(rois, targets)):
        if not len(sampled.boxes):
            continue
        if target.masks is None:
            raise ValueError(
                f"image {image} of the batch has {len(target)} objects and no masks; masks are learnt here"
            )
        labels.append(target.labels[sampled.matched_idxs])
        truths.append(_crops(target.masks, sampled.matched_idxs, sampled.boxes, logits.shape[-1]))
    if not labels:
        return logits.sum() * 0  # connected, so that distributed training finds a gradient for each parameter
    label = torch.cat(labels)
    of_class = logits[torch.arange(len(label), device=label.device), label].float()
    return F.binary_cross_entropy_with_logits(of_class, torch.cat(truths))


def mask_crops(logits: Tensor, labels: Tensor) -> Tensor:
    """(R, M, M) float32 probabilities of the class that each region was found to be."""
    return logits[torch.arange(len(labels), device=labels.device), labels].float().sigmoid()


def _crops(masks: Tensor, objects: Tensor, boxes: Tensor, size: int) -> Tensor:
    """(n, size, size) of each box: what of it the object's mask covers."""
    # Only masks that some region shows: the others need not become floats.
    shown, place = objects.unique(return_inverse=True)
    rois = torch.cat([place[:, None].to(boxes), boxes], 1)
    crops: Tensor = roi_align(masks[shown][:, None].to(boxes), rois, size, 1.0)
    return crops[:, 0]
