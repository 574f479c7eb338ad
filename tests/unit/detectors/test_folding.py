"""Every detector of the catalog, and some that are hard to fold, say the same after ``optimize``."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detectors.optimize as optimizing
from detectors import create, list_detectors
from detectors.base import Detector, Preprocessing
from detectors.blocks.norms import FrozenNormConv2d
from detectors.folding import fold_norms
from detectors.optimize import OptimizationWarning, optimize
from detectors.probing import Call, ChangeFailed, largest_change, map_tensors, probe_batch, raw_outputs, replay, watch
from detectors.structures import Batch, Prediction, Target

CHEAP = {
    "faster_rcnn_lite0_fpn",
    "retinanet_lite0",
    "efficientdet_d0",
    "efficientdet_lite0",
    "ssd_grid_lite0",
    "yolo_v3_tiny",
}
# As it is it would run VGG16 two thousand times.
SMALLER: dict[str, dict[str, Any]] = {"rcnn_vgg16": {"proposals": 10, "crop_size": 64}}
EVERY = [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow) for name in list_detectors()]


def lively(detector: Detector) -> Detector:
    """Statistics that a folding mistake would show in; still so tame that float32 rounds to 1e-6."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.running_mean, -0.1, 0.1),
                    (module.running_var, 0.8, 1.2),
                    (module.weight, 0.8, 1.2),
                    (module.bias, -0.1, 0.1),
                ):
                    assert tensor is not None
                    tensor.uniform_(low, high, generator=generator)
            elif isinstance(module, FrozenNormConv2d):
                module.scale.mul_(torch.rand(module.scale.shape, generator=generator) * 0.4 + 0.8)
                module.shift.uniform_(-0.1, 0.1, generator=generator)
    return detector.eval()


def make(name: str, **options: Any) -> Detector:
    torch.manual_seed(0)
    return lively(create(name, num_classes=3, **SMALLER.get(name, {}), **options))


def other_noise(batch: Batch) -> Batch:
    noise = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(7))
    return replace(batch, images=noise.contiguous(memory_format=torch.channels_last))


def in_float64(detector: Detector, calls: list[Call]) -> list[Tensor]:
    """What the calls return without rounding of float32: itself, two orders of the same sums differ by 6e-6."""
    exact = copy.deepcopy(detector).double()
    arguments = [map_tensors((call.arguments, dict(call.named)), to_float64) for call in calls]
    return replay(exact, [replace(call, arguments=a, named=n) for call, (a, n) in zip(calls, arguments)])


def to_float64(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("norm", ["as it is", "bn"])
def test_folded(name: str, norm: str) -> None:
    detector = make(name)
    if norm != "as it is":
        if "norm" not in detector.spec.options or detector.spec.options["norm"] == norm:
            pytest.skip(f"{name} has no other norm")
        detector = make(name, norm=norm)
    batch = other_noise(probe_batch(detector))
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    fast = optimize(detector)
    assert not any(isinstance(m, FrozenNormConv2d | nn.BatchNorm2d) for m in fast.modules())
    calls = watch(detector, batch)
    reference = [x for call in calls for x in call.outputs]
    assert max(float(x.std()) for x in reference) > 0  # outputs that are all alike would prove nothing
    got = replay(fast, calls)
    assert largest_change(got, reference) <= 2e-5
    assert largest_change(got, in_float64(detector, calls)) <= 1e-5
    after = detector.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", EVERY)
def test_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is slow: what comes out is within the tolerance, and detections are float32."""
    detector = make(name)
    batch = other_noise(probe_batch(detector))
    monkeypatch.setattr(optimizing, "has_fast_bfloat16", lambda _device: True)
    fast = optimize(detector, dtype="bfloat16")
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    calls = watch(detector, batch)
    got, reference = replay(fast, calls), [x for call in calls for x in call.outputs]
    assert largest_change(got, reference) <= 1e-1
    for a, b in zip(got, reference):
        assert (a - b).abs().mean() <= 5e-2 * b.abs().max()
    for prediction in fast.predict(batch):
        assert prediction.boxes.dtype == prediction.scores.dtype == torch.float32


class Odd(Detector):
    """Shapes of networks that must not be folded, or only with care."""

    network = ("look",)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.num_classes = kind, 1
        self.preprocessing = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=64, divisor=32)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))
        self.alias = self.conv
        self.act = nn.ReLU(inplace=True)

    def look(self, images: Tensor) -> dict[str, Tensor]:
        first, second = self.norms
        match self.kind:
            case "two norms behind one convolution":
                return {"y": first(self.conv(images)) + second(self.conv(images))}
            case "the convolution's output is used twice":
                y = self.conv(images)
                return {"y": first(y) + y}
            case "an activation in place between them":
                return {"y": first(self.act(self.conv(images)))}
            case "the norm comes first":
                return {"y": self.conv(first(images))}
            case "by another name":
                return {"y": first(self.alias(images)) + first(self.conv(images))}
            case _:
                raise RuntimeError("cannot look\nat this")

    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        return {}

    def predict(self, batch: Batch) -> list[Prediction]:
        self.look(batch.images)
        return []


@pytest.mark.parametrize(
    ("kind", "norms_left", "told"),
    [
        ("two norms behind one convolution", 2, None),
        ("the convolution's output is used twice", 2, "outputs would change by"),
        ("an activation in place between them", 2, None),
        ("the norm comes first", 2, None),
        ("by another name", 1, None),
        ("broken", 2, "RuntimeError: cannot look"),
    ],
)
def test_what_cannot_be_folded_stays(kind: str, norms_left: int, told: str | None) -> None:
    detector = lively(Odd(kind))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OptimizationWarning)
        fast = optimize(detector)
    messages = [str(w.message) for w in caught if issubclass(w.category, OptimizationWarning)]
    # What cannot even predict noise cannot have its activations moved, either.
    assert len(messages) == (0 if told is None else 2 if kind == "broken" else 1)
    assert all(str(told) in m for m in messages)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fast.modules()) == norms_left
    if kind != "broken":
        batch = other_noise(probe_batch(detector))
        assert largest_change(raw_outputs(fast, batch), raw_outputs(detector, batch)) <= 1e-5


def test_folding_alone_raises() -> None:
    with pytest.raises(ChangeFailed, match="cannot look"):
        fold_norms(Odd("broken").eval())
