"""Localisation and classification of one object, or of a fixed number of them, without anchors.

A backbone, one hidden layer, and two heads: what it is and where it is, trained by one multi-task loss. The oldest way
to find an object with a network (Sermanet et al. 2013, "OverFeat", 1312.6229, section 4), and the baseline for whatever
follows.

Shape legend: B images, S slots (objects that are looked for), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.base import Detector, Preprocessing
from detectors.blocks.backbones import Backbone
from detectors.blocks.heads import DenseOutputs
from detectors.blocks.norms import Norm
from detectors.blocks.postprocess import DenseSelection, select_detections
from detectors.options import check_at_least, check_choices
from detectors.structures import Batch, Prediction, Target

BOX_LOSSES = ("l1", "smooth_l1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizerOptions:
    """All choices.

    Attributes:
        backbone: a timm ``features_only`` network; its map at stride 32 is used.
        mean, std: of its preprocessing, 0..255.
        image_size: every image is stretched to this square, pixels.
        norm: of the backbone: frozen_bn, bn or gn.
        objects: S. With 1 the largest object of an image is looked for; with more the S largest, which the slots take
            from left to right. A slot without an object is background.
        pool: the map is averaged to pool x pool cells, so that the heads see where things are.
        hidden, dropout: of the layer that both heads share.
        sigmoid_boxes: corners are sigmoids times the image's size, so that boxes stay inside; else plain numbers.
        box_loss, smooth_l1_beta: l1 or smooth_l1, of corners as parts of the image's width and height.
        box_loss_weight: w of the multi-task loss.
        image_labels: also learn, by a sigmoid per class, which classes an image shows at all; see ``classify``.
        score_threshold, nms_iou, max_detections: see ``DenseSelection``.
    """

    backbone: str = "resnet18"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    image_size: int = 224
    norm: Norm = "frozen_bn"
    objects: int = 1
    pool: int = 7
    hidden: int = 256
    dropout: float = 0.25
    sigmoid_boxes: bool = True
    box_loss: str = "l1"
    smooth_l1_beta: float = 0.1
    box_loss_weight: float = 5.0
    image_labels: bool = False
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        check_choices(self, box_loss=BOX_LOSSES)
        check_at_least(self, objects=1, pool=1, hidden=1, image_size=32)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie in 0 <= dropout < 1")
        if not self.smooth_l1_beta > 0 or not self.box_loss_weight >= 0:
            raise ValueError(
                f"smooth_l1_beta={self.smooth_l1_beta} must be above 0, and box_loss_weight={self.box_loss_weight} "
                "at least 0"
            )


class Localizer(Detector):
    """Backbone, hidden layer, class head and box head; see ``LocalizerOptions``."""

    def __init__(self, num_classes: int, options: LocalizerOptions) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.preprocessing = Preprocessing(
            mean=options.mean, std=options.std, size=options.image_size, divisor=32, resize="stretch"
        )
        self.selection = DenseSelection(
            score_threshold=options.score_threshold,
            topk=options.objects,
            nms_iou=options.nms_iou,
            max_detections=options.max_detections,
            activation="softmax",
            background="first",
            topk_of="image",
            labels_per_anchor="best",
        )
        self.backbone = Backbone(options.backbone, norm=options.norm)
        self.shared = nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.backbone.channels[-1] * options.pool**2, options.hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(options.dropout),
        )
        self.class_logits = nn.Linear(options.hidden, options.objects * (1 + num_classes))
        self.corners = nn.Linear(options.hidden, options.objects * 4)
        self.image_logits = nn.Linear(options.hidden, num_classes) if options.image_labels else None

    def dense(self, images: Tensor) -> tuple[Tensor, ...]:
        """What (B, 3, H, W) normalised images show.

        Returns:
            Class logits (B, S, 1 + C), background first; corners (B, S, 4) xyxy as parts of the image's width and
            height; with ``image_labels`` the logits (B, C) of each class being there at all.
        """
        pooled = F.adaptive_avg_pool2d(self.backbone(images)[-1], self.options.pool)
        hidden = self.shared(pooled)
        corners = self.corners(hidden).unflatten(1, (-1, 4))
        if self.options.sigmoid_boxes:
            corners = corners.sigmoid()
        logits = self.class_logits(hidden).unflatten(1, (-1, 1 + self.num_classes))
        return (logits, corners) if self.image_logits is None else (logits, corners, self.image_logits(hidden))

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """``classification``, ``box_regression`` and with ``image_labels`` that: means over slots, or over images."""
        logits, corners, *image_logits = (output.float() for output in self.dense(batch.images))
        size = batch.sizes.flip(1).repeat(1, 2).to(corners)  # (B, 4) width, height, width, height
        classes, boxes = zip(*(self._slots(target) for target in targets))
        wanted, true = torch.stack(classes), torch.stack(boxes) / size[:, None]
        classification = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=_IGNORED, reduction="sum")
        shown = wanted > _BACKGROUND
        losses = {
            "classification": classification / (wanted != _IGNORED).sum().clamp(min=1),
            "box_regression": self.options.box_loss_weight
            * self._box_loss(corners[shown], true[shown]).sum()
            / shown.sum().clamp(min=1),
        }
        if image_logits:
            present = torch.stack([_present(target, self.num_classes) for target in targets])
            losses["image_labels"] = F.binary_cross_entropy_with_logits(image_logits[0], present)
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        logits, corners, *_ = self.dense(batch.images)
        size = batch.sizes.flip(1).repeat(1, 2).to(corners)[:, None]
        corners = corners.float() * size
        boxes = torch.cat(
            [torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])], -1
        )
        outputs = DenseOutputs(logits=[logits], deltas=[boxes], shapes=((1, self.options.objects),))
        slots = torch.arange(self.options.objects, device=boxes.device)
        return select_detections(outputs, slots, batch, self.selection, lambda found, _: found)

    @torch.no_grad()
    def classify(self, batch: Batch) -> Tensor:
        """(B, C) probability that an image shows each class, whatever else it shows.

        Raises:
            ValueError: the detector was made without ``image_labels``.
        """
        if self.image_logits is None:
            raise ValueError("this localizer has no image labels; make it with image_labels=True")
        return self.dense(batch.images)[2].float().sigmoid()

    def _slots(self, target: Target) -> tuple[Tensor, Tensor]:
        """(S,) what each slot is, 0 for background and else 1 + label, and its (S, 4) box.

        Beside crowd regions nobody knows whether there is nothing more: there, slots without an object are ignored.
        """
        sides = target.boxes[:, 2:] - target.boxes[:, :2]
        objects = ((sides > 0).all(1) & ~target.iscrowd).nonzero().squeeze(1)
        largest = sides[objects].prod(1).argsort(descending=True, stable=True)[: self.options.objects]
        chosen = objects[largest]
        centres = target.boxes[chosen, 0] + target.boxes[chosen, 2]
        chosen = chosen[centres.argsort(stable=True)]
        nothing = _IGNORED if bool(target.iscrowd.any()) else _BACKGROUND
        classes = torch.full((self.options.objects,), nothing, dtype=torch.int64, device=target.labels.device)
        boxes = target.boxes.new_zeros((self.options.objects, 4), dtype=torch.float32)
        classes[: len(chosen)] = 1 + target.labels[chosen]
        boxes[: len(chosen)] = target.boxes[chosen].float()
        return classes, boxes

    def _box_loss(self, corners: Tensor, true: Tensor) -> Tensor:
        if self.options.box_loss == "l1":
            return F.l1_loss(corners, true, reduction="none").sum(1)
        return F.smooth_l1_loss(corners, true, beta=self.options.smooth_l1_beta, reduction="none").sum(1)


_BACKGROUND, _IGNORED = 0, -100


def _present(target: Target, num_classes: int) -> Tensor:
    """(C,) 1 for each class of an object; crowds show their class as well."""
    present = torch.zeros(num_classes, device=target.labels.device)
    present[target.labels] = 1
    return present


LOCALIZERS: dict[str, LocalizerOptions] = {"localizer_resnet18": LocalizerOptions()}
