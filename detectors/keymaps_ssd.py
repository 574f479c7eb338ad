"""Foreign weights of SSD in our names; see ``detectors.keymaps``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detectors.keymaps import State, WeightsMismatch

_POOL4 = 23
"""torchvision cuts VGG's features before this one; what follows is numbered from 0 again."""


def torchvision_ssd(
    state: State, *, num_boxes: Sequence[int], keep_classes: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """torchvision's ``ssd300_vgg16`` to ours.

    Args:
        state: its state dict; the released COCO weights have 91 classes, of which 0 is background and ten more are
            unused.
        num_boxes: default boxes a cell of each map (``DefaultBoxes.num_boxes``).
        keep_classes: their classes that become our labels 0, 1, ...; background stays in front of them. None keeps
            all, the unused ones too.
    Raises:
        WeightsMismatch: a tensor is none of torchvision's SSD.
    """
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        ours = _torchvision_ssd_key(key)
        if keep_classes is not None and ours.startswith("head.class_logits."):
            boxes = num_boxes[int(ours.split(".")[2])]
            by_class = value.reshape(boxes, -1, *value.shape[1:])
            value = by_class[:, [0, *keep_classes]].flatten(0, 1)
        named[ours] = value
    return named


def _torchvision_ssd_key(key: str) -> str:
    match key.split("."):
        case ["backbone", "scale_weight"]:
            return "backbone.l2_norm.scale"
        case ["backbone", "features", layer, leaf]:
            return f"backbone.body.features.{layer}.{leaf}"
        case ["backbone", "extra", "0", layer, leaf]:
            return f"backbone.body.features.{_POOL4 + int(layer)}.{leaf}"
        case ["backbone", "extra", "0", "7", layer, leaf]:
            return f"backbone.fc.{layer}.{leaf}"
        case ["backbone", "extra", level, layer, leaf]:
            return f"backbone.extra.{int(level) - 1}.{layer}.{leaf}"
        case ["head", "classification_head", "module_list", level, leaf]:
            return f"head.class_logits.{level}.{leaf}"
        case ["head", "regression_head", "module_list", level, leaf]:
            return f"head.box_deltas.{level}.{leaf}"
        case _:
            raise WeightsMismatch(f"{key} is no tensor of torchvision's SSD")
