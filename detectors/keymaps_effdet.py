"""effdet's EfficientDets, tensor by tensor: which of theirs is which of ours."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detectors.keymaps import State, WeightsMismatch

_DOWN_NODES = 4
"""Of the eight nodes of a layer, the first four lead from P6 down to P3, the others from P4 up to P7."""


def effdet_efficientdet(
    state: State, *, num_anchors: int, keep_classes: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """The state dict of effdet's ``tf_efficientdet_*`` to ours, as the released COCO weights have it too.

    They regress (y, x, h, w), we (x, y, w, h): the rows of the box predictor change places.

    Args:
        state: its state dict; the released weights have 90 classes, COCO's category ids less 1, ten of them unused.
        num_anchors: a position.
        keep_classes: their classes that become our labels 0, 1, ...; None keeps all, the unused ones too.
    Raises:
        WeightsMismatch: a tensor that no EfficientDet of effdet's has.
    """
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key.startswith("box_net.predict.conv_pw."):
            value = _by_anchor(value, num_anchors)[:, [1, 0, 3, 2]].flatten(0, 1)
        if keep_classes is not None and key.startswith("class_net.predict.conv_pw."):
            value = _by_anchor(value, num_anchors)[:, list(keep_classes)].flatten(0, 1)
        named[_key(key)] = value
    return named


def _by_anchor(value: Tensor, num_anchors: int) -> Tensor:
    """(A * rows, ...) to (A, rows, ...)."""
    if value.shape[0] % num_anchors:
        raise WeightsMismatch(f"{value.shape[0]} outputs are not of {num_anchors} anchors a position")
    return value.reshape(num_anchors, -1, *value.shape[1:])


def _key(key: str) -> str:
    separable = {"conv_dw": "depthwise", "conv_pw": "pointwise", "bn": "norm"}
    conv_norm = {"conv": "conv", "bn": "norm"}
    match key.split("."):
        case ["backbone", *rest]:
            return ".".join(["backbone.body", *rest])
        case ["fpn", "resample", "3", "conv", ("conv" | "bn") as part, leaf]:
            return f"neck.p6.{conv_norm[part]}.{leaf}"
        case ["fpn", "cell", layer, "fnode", number, "combine", "edge_weights"]:
            return f"neck.layers.{layer}.{_node(number)}.fuse.weights"
        case ["fpn", "cell", layer, "fnode", number, "combine", "resample", _, "conv", ("conv" | "bn") as part, leaf]:
            return f"neck.layers.{layer}.{_node(number)}.project.{conv_norm[part]}.{leaf}"
        case ["fpn", "cell", layer, "fnode", number, "after_combine", "conv", part, leaf] if part in separable:
            return f"neck.layers.{layer}.{_node(number)}.conv.{separable[part]}.{leaf}"
        case [("class_net" | "box_net") as net, "conv_rep", number, ("conv_dw" | "conv_pw") as part, leaf]:
            return f"{_subnet(net)}.{separable[part]}.{number}.{leaf}"
        case [("class_net" | "box_net") as net, "bn_rep", number, level, "bn", leaf]:
            return f"{_subnet(net)}.norms.{number}.{level}.{leaf}"
        case [("class_net" | "box_net") as net, "predict", ("conv_dw" | "conv_pw") as part, leaf]:
            return f"{_subnet(net)}.predict.{separable[part]}.{leaf}"
        case _:
            raise WeightsMismatch(f"{key} is no tensor of effdet's EfficientDet")


def _subnet(net: str) -> str:
    return "class_subnet" if net == "class_net" else "box_subnet"


def _node(number: str) -> str:
    i = int(number)
    return f"down.{_DOWN_NODES - 1 - i}" if i < _DOWN_NODES else f"up.{i - _DOWN_NODES}"
