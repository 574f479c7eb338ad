"""The table of sizes says what counting says."""

from __future__ import annotations

import pytest

from detectors import list_detectors
from detectors.figures import measure, read_figures

# Each takes a second; the others are counted with ``-m slow``.
CHEAP = {"retinanet_r18_fpn", "ssd300_vgg16", "yolo_v3_tiny"}


def test_every_detector_has_its_figures() -> None:
    assert list(read_figures()) == list_detectors(), "run python -m detectors.figures"


@pytest.mark.parametrize(
    "name", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow) for name in list_detectors()]
)
def test_the_figures_are_in_step(name: str) -> None:
    assert measure(name) == read_figures()[name], "run python -m detectors.figures"
