"""Ways out of a dataset: one module a format, one table of them all.

Each is a function of (dataset, out_uri, splits, images, and options of its own) that returns a report with ``files``,
``num_images`` and ``num_objects``; but for COCO and LVIS also with what the format could not carry.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Any

EXPORTS: dict[str, str] = {
    "coco": "pipelines.exports.coco:export_coco",
    "lvis": "pipelines.exports.lvis:export_lvis",
    "yolo": "pipelines.exports.yolo:export_yolo",
    "voc": "pipelines.exports.voc:export_voc",
    "hf_parquet": "pipelines.exports.hf_parquet:export_hf_parquet",
    "label_studio": "pipelines.exports.label_studio:export_label_studio",
    "cvat": "pipelines.exports.cvat:export_cvat",
}


def find_export(kind: str) -> Callable[..., Any]:
    """An export by its kind.

    Raises:
        ValueError: unknown kind, with near names.
    """
    if kind not in EXPORTS:
        near = difflib.get_close_matches(kind, EXPORTS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no export of kind {kind!r}; {hint}known: {', '.join(sorted(EXPORTS))}")
    module, _, name = EXPORTS[kind].partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
