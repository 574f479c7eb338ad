"""Files of darknet: written as darknet writes them, read back bit by bit; others are refused."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.keymaps import WeightsMismatch, load_named
from detectors.keymaps_darknet import VALUES, DarknetHeader, darknet_to_yolo_v3, read_darknet
from detectors.models.yolo_v1 import YOLO_V1S, YoloV1
from detectors.models.yolo_v3 import YOLO_V3S, YoloV3

TINY = replace(YOLO_V3S["yolo_v3_tiny"], image_size=64)
# The [convolutional] sections of yolov3-tiny.cfg and yolov3.cfg from top to bottom.
TINY_LAYERS = [
    *(f"backbone.convs.{i}" for i in range(7)),
    *("scales.0.shared.0", "scales.0.wide", "scales.0.predict"),
    *("scales.1.lateral", "scales.1.wide", "scales.1.predict"),
]


def full_layers() -> list[str]:
    layers = ["backbone.stem"]
    for stage, blocks in enumerate((1, 2, 8, 8, 4)):
        layers.append(f"backbone.stages.{stage}.down")
        for block in range(blocks):
            layers += [f"backbone.stages.{stage}.blocks.{block}.{part}" for part in ("narrow", "wide")]
    for scale in range(3):
        layers += [f"scales.{scale}.lateral"] if scale else []
        layers += [f"scales.{scale}.shared.{i}" for i in range(5)]
        layers += [f"scales.{scale}.wide", f"scales.{scale}.predict"]
    return layers


def network(num_classes: int, seed: int, **options: object) -> YoloV3:
    torch.manual_seed(seed)
    detector = YoloV3(num_classes, replace(TINY, **options)).eval()  # type: ignore[arg-type]
    for name, tensor in detector.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif "norm" in name and tensor.is_floating_point():
            tensor.normal_()
    return detector


def numbers(state: Mapping[str, Tensor], layers: list[str]) -> bytes:
    """As darknet's save_convolutional_weights writes them."""
    written = b""
    for layer in layers:
        if layer.endswith("predict"):
            parts = [f"{layer}.bias", f"{layer}.weight"]
        else:
            parts = [f"{layer}.norm.{part}" for part in ("bias", "weight", "running_mean", "running_var")]
            parts.append(f"{layer}.conv.weight")
        for part in parts:
            written += state[part].numpy().astype("<f4").tobytes()
    return written


@pytest.fixture(scope="module")
def theirs() -> YoloV3:
    return network(3, seed=1)


@pytest.fixture(scope="module")
def file(theirs: YoloV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("darknet") / "tiny.weights"
    path.write_bytes(struct.pack("<3iq", 0, 2, 5, 32_013_312) + numbers(theirs.state_dict(), TINY_LAYERS))
    return path


def test_every_bit_comes_back(theirs: YoloV3, file: Path) -> None:
    header, state = read_darknet(file)
    assert header == DarknetHeader(major=0, minor=2, revision=5, seen=32_013_312)
    named = darknet_to_yolo_v3(state[VALUES], network(3, seed=2))
    expected = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert named.keys() == expected.keys()
    assert all(torch.equal(named[key], value) for key, value in expected.items())
    assert sum(value.numel() for value in named.values()) == len(state[VALUES])


def test_loaded_networks_say_what_the_written_one_says(theirs: YoloV3, file: Path) -> None:
    _, state = read_darknet(file)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for norm in ("bn", "frozen_bn"):
        ours = network(3, seed=2, norm=norm)
        loaded, untouched, left_out = load_named(ours, darknet_to_yolo_v3(state[VALUES], ours), "yolo_v3_tiny")
        assert loaded and untouched == left_out == ()
        with torch.no_grad():
            expected, found = theirs.dense(images), ours.dense(images)
        scale = max(x.abs().max() for x in expected.logits)
        for a, b in zip(found.logits + found.deltas, expected.logits + expected.deltas):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=float(scale) * 1e-5)


def test_the_number_of_classes_follows_from_the_length(theirs: YoloV3, file: Path) -> None:
    _, state = read_darknet(file)
    named = darknet_to_yolo_v3(state[VALUES], network(7, seed=2))
    assert torch.equal(named["scales.1.predict.weight"], theirs.state_dict()["scales.1.predict.weight"])


def test_a_backbone_alone(theirs: YoloV3, tmp_path: Path) -> None:
    path = tmp_path / "yolov3-tiny.conv.11"
    path.write_bytes(struct.pack("<3iq", 0, 2, 0, 0) + numbers(theirs.state_dict(), TINY_LAYERS[:7]))
    named = darknet_to_yolo_v3(read_darknet(path)[1][VALUES], network(3, seed=2))
    assert all(name.startswith("backbone.") for name in named)
    assert torch.equal(named["backbone.convs.6.conv.weight"], theirs.state_dict()["backbone.convs.6.conv.weight"])


def test_the_order_of_yolov3() -> None:
    with torch.device("meta"):
        detector = YoloV3(80, YOLO_V3S["yolo_v3_darknet53"])
        named = darknet_to_yolo_v3(torch.zeros(62_001_757), detector)
        backbone = darknet_to_yolo_v3(torch.zeros(40_620_640), detector)
    kernels = [name.removesuffix(".weight").removesuffix(".conv") for name in named if named[name].ndim == 4]
    assert kernels == full_layers() and len(kernels) == 75
    # darknet53.conv.74 ends behind layer 74 of the configuration, which is the last residual's addition.
    assert [name for name in backbone if backbone[name].ndim == 4][-1] == "backbone.stages.4.blocks.3.wide.conv.weight"
    assert all(
        tuple(named[key].shape) == tuple(value.shape) for key, value in detector.state_dict().items() if key in named
    )


@pytest.mark.parametrize("change", [-1, 1, -1000, 5000])
def test_a_cut_or_long_file_is_refused(file: Path, change: int) -> None:
    _, state = read_darknet(file)
    values = torch.cat([state[VALUES], torch.zeros(max(change, 0))])[: len(state[VALUES]) + change]
    with pytest.raises(
        WeightsMismatch, match=rf"{len(values)} numbers; tiny_darknet has 6298480, .* is cut short, too"
    ):
        darknet_to_yolo_v3(values, network(3, seed=2))


def test_what_is_no_such_file_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no weights file"):
        read_darknet(tmp_path / "none.weights")
    ragged = tmp_path / "ragged.weights"
    ragged.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"ragged\.weights has \d+ bytes, which is no header of 20 and whole float32"):
        read_darknet(ragged)
    short = tmp_path / "short.weights"
    short.write_bytes(b"\0" * 15)
    with pytest.raises(ValueError, match="15 bytes, too few for the header"):
        read_darknet(short)


def test_headers_before_version_0_2_are_shorter(tmp_path: Path) -> None:
    old = tmp_path / "old.weights"
    old.write_bytes(struct.pack("<4i", 0, 1, 0, 77) + np.arange(3, dtype="<f4").tobytes())
    header, state = read_darknet(old)
    assert header == DarknetHeader(major=0, minor=1, revision=0, seen=77) and state[VALUES].tolist() == [0, 1, 2]


def test_other_networks_are_refused() -> None:
    with pytest.raises(WeightsMismatch, match="not for a YoloV1"):
        with torch.device("meta"):
            other = YoloV1(2, YOLO_V1S["yolo_v1_resnet34"])
        darknet_to_yolo_v3(torch.zeros(10), other)
    with pytest.raises(WeightsMismatch, match="norm=gn"):
        darknet_to_yolo_v3(torch.zeros(10), network(3, seed=2, norm="gn"))
