"""The size of every detector of the catalog, from a table that is made once, because counting takes a minute.

``python -m detectors.figures`` counts again whatever has changed; a test fails where the table is out of step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("figures.json")
NUM_CLASSES = 90
"""What papers count with: COCO's category ids, the unused ones too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A detector in numbers, with its own options and ``NUM_CLASSES`` classes.

    Attributes:
        task: what it finds.
        backbone: its network, empty where it is the detector's own.
        image_size: the longer side of its input, pixels.
        parameters: numbers that training could change, frozen ones too.
        multiply_adds: of one square image of ``image_size``, as ``detectors.counting`` counts them.
    """

    task: str
    backbone: str
    image_size: int
    parameters: int
    multiply_adds: int


@cache
def read_figures() -> dict[str, Figures]:
    """The table, by name of the detector; sorted."""
    return {name: Figures(**values) for name, values in json.loads(TABLE.read_text(encoding="utf-8")).items()}


def measure(name: str) -> Figures:
    """Counts a detector on the meta device: seconds, and no memory.

    Raises:
        UnknownDetector: no such name.
    """
    import torch

    from detectors.catalog import create, find_entry
    from detectors.counting import count_multiply_adds, count_parameters

    entry = find_entry(name)
    with torch.device("meta"):
        detector = create(name, num_classes=NUM_CLASSES)
    return Figures(
        task=entry.task,
        backbone=getattr(entry.options, "backbone", ""),
        image_size=detector.preprocessing.size,
        parameters=count_parameters(detector),
        multiply_adds=count_multiply_adds(detector),
    )


def write_figures() -> None:
    """Counts all detectors and writes the table."""
    from detectors.catalog import list_detectors

    table = {name: asdict(measure(name)) for name in list_detectors()}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_figures()
