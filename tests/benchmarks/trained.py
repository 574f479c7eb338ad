"""Benchmarks that train: runs that are kept, so that one that was cut off goes on, and what a run cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.predictions import open_predictions
from tests.benchmarks.processes import TreeCpu
from workers.label import label
from workers.label_config import LabelConfig
from workers.train import ModelRef, TrainConfig, train

Tell = Callable[..., None]


class KeptRuns:
    """Rows of finished runs in ``runs.json`` of a folder.

    Args:
        work: the folder, made where it is missing.
        again: forget what is kept there.
    """

    def __init__(self, work: Path, *, again: bool) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._path = work / "runs.json"
        if again:
            self._path.unlink(missing_ok=True)
        self._rows: dict[str, dict[str, Any]] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def row(self, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of a run; it is run where it is not kept."""
        if key not in self._rows:
            self._rows[key] = run()
            self._path.write_text(json.dumps(self._rows, indent=1))
        return self._rows[key]


def told_every(seconds: float, name: str) -> Tell:
    """A progress callback that prints a line every so many seconds."""
    told = time.monotonic()

    def tell(stage: str, done: int, total: int, **numbers: float) -> None:
        nonlocal told
        if time.monotonic() - told > seconds:
            told = time.monotonic()
            shown = " ".join(f"{key}={value:.4g}" for key, value in numbers.items())
            print(f"{name}: {stage} {done}/{total} {shown}", flush=True)

    return tell


def train_timed(config: TrainConfig, tell: Tell) -> tuple[ModelRef, dict[str, Any]]:
    """A trained model, and the minutes that it took."""
    started = time.monotonic()
    with TreeCpu() as cpu:
        model = train(config, tell)
    seconds = time.monotonic() - started
    # Of a run that was cut off only the epochs' own clock knows the whole, and nobody its CPU.
    whole = seconds >= model.seconds
    return model, {
        "wall min": round(max(seconds, model.seconds) / 60, 2),
        "CPU min": round(cpu.seconds / 60, 2) if whole else None,
    }


def label_split(dataset: str, model: ModelRef, name: str, split: str, images: int, tell: Tell) -> str:
    """A reference to what the model finds in all images of a split, kept as the label set ``name``."""
    labelled = label(LabelConfig(input=dataset, model=model.uri, out=name, splits=(split,), score_threshold=0.01), tell)
    rows = sum(1 for _ in open_predictions(labelled.reference).annotations())
    assert rows == images, f"every image of {split} has its row, got {rows} of {images}"
    return labelled.reference
