"""Numbers that an evaluation must reach: what continuous integration passes or fails by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One number with the least it must be.

    Attributes:
        value: what was measured; None without truth to measure on, which never passes.
    """

    name: str
    least: float
    value: float | None

    @property
    def passed(self) -> bool:
        return self.value is not None and self.value >= self.least

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name} has no truth to be measured on, wanted {self.least:g} or more"
        return f"{self.name} is {self.value:.4f}, wanted {self.least:g} or more"


def parse_gates(texts: Iterable[str]) -> dict[str, float]:
    """``AP=0.5`` and the like as numbers by name.

    Raises:
        ValueError: no NAME=NUMBER, a number outside 0..1, or a name given twice.
    """
    gates: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            least = float(number)
        except ValueError:
            raise ValueError(f"{text!r} is no NAME=NUMBER, such as AP=0.5") from None
        if not math.isfinite(least) or not 0 <= least <= 1:
            raise ValueError(f"{text!r}: metrics lie in 0..1")
        if name in gates:
            raise ValueError(f"{name} is given twice: {gates[name]:g} and {least:g}")
        gates[name] = least
    return gates


def check_gates(stats: Mapping[str, float | None], least: Mapping[str, float]) -> tuple[Gate, ...]:
    """Compare, in the order of ``least``.

    Raises:
        ValueError: a name that was not measured.
    """
    strange = sorted(set(least) - set(stats))
    if strange:
        raise ValueError(f"{', '.join(strange)} is not measured here; there are {', '.join(stats)}")
    return tuple(Gate(name=name, least=number, value=_measured(stats[name])) for name, number in least.items())


def _measured(value: float | None) -> float | None:
    """None also for the -1 that stands for "no truth"."""
    return None if value is None or value < 0 else value
