"""Weights of darknet's own ``.weights`` files, for YOLOv3 and its backbone.

A file is a header and nothing but float32 numbers, in the order of the configuration file: for each convolution with
BatchNorm the norm's bias, weight, running mean and running variance, then the kernels; for one without, its bias and
kernels. Which number belongs where follows from the network alone.

Released by the author into the public domain: ``yolov3.weights`` (62,001,757 numbers), ``yolov3-tiny.weights``
(8,858,734; trained with the anchors 23,27, 37,58, 81,82 on its finer map instead of those of its configuration) and
``darknet53.conv.74`` (the backbone alone, 40,620,640).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detectors.base import Detector
from detectors.blocks.norms import FrozenNormConv2d
from detectors.keymaps import WeightsMismatch
from detectors.models.yolo_v3 import YoloV3

VALUES = "darknet"
"""Name of the one tensor that ``read_darknet`` gives."""
_VERSION = struct.Struct("<3i")


@dataclass(frozen=True, slots=True, kw_only=True)
class DarknetHeader:
    """What a file begins with: the version that wrote it, and how many images the network had seen."""

    major: int
    minor: int
    revision: int
    seen: int


def read_darknet(path: Path) -> tuple[DarknetHeader, dict[str, Tensor]]:
    """The numbers of a ``.weights`` file.

    Returns:
        The header, and one (n,) float32 tensor called ``darknet``.
    Raises:
        ValueError: there is no such file, or it is too short or ragged to be one.
    """
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_VERSION.size + 8)
        if len(start) < _VERSION.size + 4:
            raise ValueError(f"{path} has {size} bytes, too few for the header of a darknet file")
        major, minor, revision = _VERSION.unpack_from(start)
        # From version 0.2 on the count of images has 64 bits; larger versions are those of other programs.
        wide = major * 10 + minor >= 2 and major < 1000 and minor < 1000
        header = _VERSION.size + (8 if wide else 4)
        if size < header or (size - header) % 4:
            raise ValueError(f"{path} has {size} bytes, which is no header of {header} and whole float32 numbers")
        (seen,) = struct.unpack_from("<q" if wide else "<i", start, _VERSION.size)
        file.seek(header)
        values = torch.from_numpy(np.fromfile(file, "<f4").astype(np.float32, copy=False))
    return DarknetHeader(major=major, minor=minor, revision=revision, seen=seen), {VALUES: values}


def darknet_to_yolo_v3(values: Tensor, detector: Detector) -> dict[str, Tensor]:
    """A file's numbers by our names, BatchNorms unfolded; views, nothing is copied.

    Args:
        values: (n,) of ``read_darknet``.
        detector: a YOLOv3 of any number of classes: how many the file has follows from its length.
    Raises:
        WeightsMismatch: it is no YOLOv3, or its numbers are too few or too many for the whole network as for its
            backbone.
    """
    if not isinstance(detector, YoloV3):
        raise WeightsMismatch(f"darknet's files are read for YOLOv3, not for a {type(detector).__name__}")
    options = detector.options
    if options.backbone not in ("darknet53", "tiny_darknet") or options.norm not in ("bn", "sync_bn", "frozen_bn"):
        raise WeightsMismatch(
            f"darknet's files are for backbone=darknet53 or tiny_darknet with norm=bn or frozen_bn, not for "
            f"backbone={options.backbone} with norm={options.norm}"
        )
    layers = list(_layers(detector))
    backbone = [layer for layer in layers if layer[0].startswith("backbone.")]
    in_backbone = sum(sum(_sizes(layer, None)) for _, layer in backbone)
    if len(values) == in_backbone:
        return _cut(values, backbone, outputs=None)
    fixed = sum(sum(_sizes(layer, None)) for _, layer in layers if _norm_of(layer) != "none")
    anchors = len(detector.sizes[0])
    # A row of each predicting layer: its kernels and its bias.
    a_class = anchors * sum(sum(_sizes(layer, 1)) for _, layer in layers if _norm_of(layer) == "none")
    classes, rest = divmod(len(values) - fixed - 5 * a_class, a_class)
    if classes < 1 or rest:
        ours = fixed + (5 + detector.num_classes) * a_class
        raise WeightsMismatch(
            f"{len(values)} numbers; {options.backbone} has {in_backbone}, and the whole network {ours} with "
            f"{detector.num_classes} classes, {a_class} more or fewer for each class: the file is cut short, too long, "
            "or another network's"
        )
    return _cut(values, layers, outputs=anchors * (5 + classes))


def _cut(values: Tensor, layers: list[tuple[str, nn.Module]], *, outputs: int | None) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    first = 0
    for path, layer in layers:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        shape = tuple(weight.shape)
        if _norm_of(layer) == "none":
            assert outputs is not None
            shape, names = (outputs, *shape[1:]), [f"{path}.bias"]
        else:
            norm = path.removesuffix("conv") + "norm"
            names = [f"{norm}.{part}" for part in ("bias", "weight", "running_mean", "running_var")]
        sizes = _sizes(layer, outputs)
        parts = values[first : first + sum(sizes)].split(sizes)
        named |= dict(zip([*names, f"{path}.weight"], [*parts[:-1], parts[-1].view(shape)], strict=True))
        first += sum(sizes)
    assert first == len(values), "lengths were compared before"
    return named


def _layers(detector: YoloV3) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions by name, in the order in which the network registers them, which is darknet's."""
    for path, module in detector.named_modules():
        if isinstance(module, nn.Conv2d | FrozenNormConv2d):
            yield path, module


def _norm_of(layer: nn.Module) -> str:
    """``bn`` behind a convolution without bias, ``none`` behind one with."""
    return "none" if getattr(layer, "bias", None) is not None else "bn"


def _sizes(layer: nn.Module, outputs: int | None) -> list[int]:
    """How many numbers each of a layer's tensors has, in the file's order."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if _norm_of(layer) == "none":
        channels = len(weight) if outputs is None else outputs
        return [channels, channels * weight[0].numel()]
    return [len(weight)] * 4 + [weight.numel()]
