"""Detectors: models, losses, matching, post-processing, checkpoints.

``create`` builds one by name, ``load`` reads a saved one, ``list_detectors`` names them. Imports are put off until
first use, because torch takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectors.base import Detector, DetectorSpec
    from detectors.catalog import UnknownDetector, create, list_detectors
    from detectors.checkpoint import LoadedModel, load, save

__all__ = [
    "Detector",
    "DetectorSpec",
    "LoadedModel",
    "UnknownDetector",
    "create",
    "list_detectors",
    "load",
    "save",
]

_HOMES = {
    "Detector": "base",
    "DetectorSpec": "base",
    "LoadedModel": "checkpoint",
    "UnknownDetector": "catalog",
    "create": "catalog",
    "list_detectors": "catalog",
    "load": "checkpoint",
    "save": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"detectors.{_HOMES[name]}"), name)
