"""What a detector's networks return for noise, before and after a change to them, and which module feeds which."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detectors.base import Detector
from detectors.structures import Batch

MOST_CHANGE = 1e-2
"""Of an output relative to the largest: what rounding (TF32's too) never reaches, and a wrong change does."""


class ChangeFailed(ValueError):
    """A detector's networks cannot be changed and say the same; says why."""


def change_in_place(detector: Detector, change: Callable[[Callable[[], object]], None]) -> None:
    """Changes a detector's networks, and compares their outputs for one image of noise before and after.

    Args:
        detector: in ``eval`` mode, its ``network`` methods unchanged.
        change: called with a function that predicts the noise, for ``pairs_of``.
    Raises:
        ChangeFailed: the detector cannot predict the noise, or its outputs would change; it may then be half changed.
    """
    probe = probe_batch(detector)
    try:
        calls = watch(detector, probe)
        change(lambda: detector.predict(probe))
        before, after = [x for call in calls for x in call.outputs], replay(detector, calls)
    except Exception as error:
        raise ChangeFailed(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    largest = largest_change(after, before)
    if not largest <= MOST_CHANGE:
        raise ChangeFailed(f"its outputs would change by {largest:.2g} of the largest")


def probe_batch(detector: Detector) -> Batch:
    """One image of noise, as small as the detector takes."""
    preprocessing = detector.preprocessing
    wanted = preprocessing.size if preprocessing.resize == "stretch" else 128
    side = -(-wanted // preprocessing.divisor) * preprocessing.divisor
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[side, side]])
    images = noise.to(next(detector.parameters()).device).contiguous(memory_format=torch.channels_last)
    return Batch(images=images, sizes=sizes, original_sizes=sizes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call of a ``network`` method.

    Attributes:
        name: of the method.
        arguments, named: what it was given.
        outputs: every floating tensor that it returned, in float32.
    """

    name: str
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    outputs: list[Tensor]


def watch(detector: Detector, batch: Batch) -> list[Call]:
    """The calls of ``network`` methods while a batch is predicted."""
    calls: list[Call] = []

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(detector, name)

        def call(*arguments: Any, **named: Any) -> Any:
            result = method(*arguments, **named)
            calls.append(Call(name=name, arguments=arguments, named=named, outputs=_floating(result)))
            return result

        return call

    spied = copy.copy(detector)  # shares all modules; only its methods are watched
    for name in detector.network:
        object.__setattr__(spied, name, watched(name))
    with torch.no_grad():
        spied.predict(batch)
    return calls


def replay(detector: Detector, calls: Sequence[Call]) -> list[Tensor]:
    """What a detector's methods return for the same arguments, all of it in one list.

    Of a detector in two stages the second would be given other regions, or the same in another order, as soon as
    rounding swaps two proposals: its own predictions could not be compared call by call.
    """
    with torch.no_grad():
        return [x for call in calls for x in _floating(getattr(detector, call.name)(*call.arguments, **call.named))]


def raw_outputs(detector: Detector, batch: Batch) -> list[Tensor]:
    """Every floating tensor that the ``network`` methods return while a batch is predicted, in float32."""
    return [x for call in watch(detector, batch) for x in call.outputs]


def _floating(result: Any) -> list[Tensor]:
    seen: list[Tensor] = []
    map_tensors(result, seen.append)
    return [tensor.float() for tensor in seen if tensor.is_floating_point()]


def largest_change(tensors: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors, each relative to the largest value of its reference."""
    if [t.shape for t in tensors] != [r.shape for r in references]:
        return float("inf")
    changes = [
        float((t - r).abs().max() / r.abs().max().clamp(min=1e-6)) for t, r in zip(tensors, references) if t.numel()
    ]
    return max(changes, default=0.0)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """A structure of lists, tuples, mappings and dataclasses with ``function`` of each of its tensors instead."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        mapped = [map_tensors(item, function) for item in value]
        return value._make(mapped) if hasattr(value, "_make") else type(value)(mapped)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return value


def pairs_of(
    network: nn.Module,
    run: Callable[[], object],
    is_first: Callable[[nn.Module], bool],
    is_second: Callable[[nn.Module], bool],
) -> list[tuple[nn.Module, nn.Module]]:
    """Modules of which every output went into one other, which got nothing else, while something ran."""
    made: dict[int, tuple[nn.Module, Tensor, int]] = {}  # keeps tensors alive: an id is unique only while they live
    calls: Counter[nn.Module] = Counter()
    met: Counter[tuple[nn.Module, nn.Module]] = Counter()

    def remember(first: nn.Module, _x: object, y: Tensor) -> None:
        calls[first] += 1
        made[id(y)] = (first, y, y._version)

    def meet(second: nn.Module, x: tuple[Tensor, ...]) -> None:
        calls[second] += 1
        first, _, version = made.get(id(x[0]), (None, None, 0))
        if first is not None and x[0]._version == version:  # nothing changed it in place since
            met[first, second] += 1

    hooks = []
    for module in network.modules():
        if is_first(module):
            hooks.append(module.register_forward_hook(remember))
        elif is_second(module):
            hooks.append(module.register_forward_pre_hook(meet))
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair, count in met.items() if all(calls[module] == count for module in pair)]


def named(network: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """Each module with all the names it goes by."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return [(module, of_module) for module, of_module in names.items() if of_module != [""]]
