"""torchvision's R-CNN line, tensor by tensor, in our names."""

from __future__ import annotations

import re

from torch import Tensor

from detectors.keymaps import State, WeightsMismatch

_RENAMED: tuple[tuple[str, str], ...] = (
    (r"backbone\.(body\..*)", r"backbone.\1"),
    # Files before torchvision 0.14 number less: one convolution without its place in a block, or without any number.
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.(weight|bias)", r"neck.lateral.\1.0.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.(weight|bias)", r"neck.output.\1.0.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d+\.[01]\.\w+)", r"neck.lateral.\1"),
    (r"backbone\.fpn\.layer_blocks\.(\d+\.[01]\.\w+)", r"neck.output.\1"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"box_head.fcs.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"box_head.fcs.3.\1"),
    # The second version's: convolutions 0 to 3, each with a norm, a layer without weights, and the connected one.
    (r"roi_heads\.box_head\.([0-3])\.([01])\.(\w+)", r"box_head.convs.\1.\2.\3"),
    (r"roi_heads\.box_head\.5\.(\w+)", r"box_head.fcs.0.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.class_logits.\1"),
    (r"roi_heads\.mask_head\.(\d+)\.([01])\.(\w+)", r"mask_head.convs.\1.\2.\3"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.keypoint_head\.(\d+)\.(\w+)", r"keypoint_head.convs.\1.\2"),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.(\w+)", r"keypoint_head.deconv.\1"),
)


def torchvision_rcnn(state: State) -> dict[str, Tensor]:
    """torchvision's ``fasterrcnn_resnet50_fpn``, ``maskrcnn_resnet50_fpn``, their ``_v2`` and
    ``keypointrcnn_resnet50_fpn`` to ours.

    Its K + 1 classes begin with background: of that the logit is kept, the box it regresses and the mask it draws,
    which nothing uses, are not. A class's four deltas, there side by side, are here in four groups of classes.

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
        elif match := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", key):
            named[f"mask_head.convs.{int(match[1]) - 1}.0.{match[2]}"] = value  # of files before torchvision 0.14
        elif match := re.fullmatch(r"roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)", key):
            named[f"mask_head.mask_logits.{match[1]}"] = value[1:]
        else:
            named[_renamed(key)] = value
    return named


def _renamed(key: str) -> str:
    for pattern, ours in _RENAMED:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours)
    raise WeightsMismatch(f"{key} is no tensor of torchvision's Faster, Mask or Keypoint R-CNN")
