"""How far a run is, from its workers to its caller."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on; workers never print."""

    def __call__(self, stage: str, done: int, total: int, **numbers: float) -> None: ...


class ProgressBoard:
    """An actor that the workers of a training run write to and its caller reads; neither waits for the other."""

    def __init__(self) -> None:
        self._done = 0
        self._numbers: dict[str, float] = {}

    def step(self, done: int, **numbers: float) -> None:
        self._done = done
        self._numbers |= numbers

    def validated(self, **numbers: float) -> None:
        self._numbers |= numbers

    def read(self) -> tuple[int, dict[str, float]]:
        return self._done, dict(self._numbers)
