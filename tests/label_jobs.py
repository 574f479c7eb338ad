"""What the workers of a labelling plan are told, for tests of what they do with it."""

from __future__ import annotations

from typing import Any

from workers.label_job import LabelJob


def job_with(**given: Any) -> LabelJob:
    """A job of CPU workers without tiles or views; what is given stands, the rest matters to no caller."""
    return LabelJob(
        **{
            "root": "",
            "label_set": "",
            "plan_id": "",
            "input_kind": "archive",
            "input_uri": "",
            "splits": None,
            "max_detections": 50,
            "image_size": 96,
            "batch_size": 2,
            "precision": "float32",
            "tiling": None,
            "views": None,
            "threads": 1,
            "device": "cpu",
            "max_attempts": 1,
        }
        | given
    )
