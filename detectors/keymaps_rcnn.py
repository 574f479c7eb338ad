"""torchvision's R-CNN line, tensor by tensor, in our names."""

from __future__ import annotations

import re

from torch import Tensor

from detectors.keymaps import State, WeightsMismatch

_RENAMED: tuple[tuple[str, str], ...] = (
    (r"backbone\.(body\..*)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?(weight|bias)", r"neck.lateral.\1.0.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?(weight|bias)", r"neck.output.\1.0.\2"),
    # Files before torchvision 0.14 have one convolution without a number.
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"box_head.fcs.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"box_head.fcs.3.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.class_logits.\1"),
)


def torchvision_rcnn(state: State) -> dict[str, Tensor]:
    """torchvision's ``fasterrcnn_resnet50_fpn`` to ours.

    Its K + 1 classes begin with background: of that the logit is kept, the box it regresses, which nothing uses, is
    not. A class's four deltas, there side by side, are here in four groups of classes.

    Raises:
        WeightsMismatch: a tensor is none of that network's.
    """
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        if match := re.fullmatch(r"rpn\.head\.conv\.(\d+)\.0\.(weight|bias)", key):
            named[f"rpn.convs.{2 * int(match[1])}.{match[2]}"] = value
        elif match := re.fullmatch(r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", key):
            named[f"box_head.box_deltas.{match[1]}"] = value.unflatten(0, (-1, 4))[1:].transpose(0, 1).flatten(0, 1)
        else:
            named[_renamed(key)] = value
    return named


def _renamed(key: str) -> str:
    for pattern, ours in _RENAMED:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours)
    raise WeightsMismatch(f"{key} is no tensor of torchvision's Faster R-CNN")
