"""A small model with random weights and helpers for the tests of labelling; also a program that a test can kill.

python -m tests.integration.labelling '{"input": ..., "model": ...}' ...
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.records import LabelMap
from tests.integration.training import TINY

# Random weights find something everywhere at this threshold: every image gets detections.
THRESHOLD = 0.008


def make_model(directory: Path, label_map: LabelMap, *, seed: int = 0, image_size: int = 128) -> str:
    """A model directory; another seed is another model."""
    import torch

    import detectors

    torch.manual_seed(seed)
    detector = detectors.create("retinanet_lite0", num_classes=len(label_map), image_size=image_size, **TINY)
    detectors.save(detector, None, directory, categories=label_map.to_json())
    return str(directory)


def rows_by_image(reference: str) -> list[tuple[Any, ...]]:
    """Everything that a prediction set says, by image id: what two equal runs must agree on."""
    from pipelines import open_predictions

    found = []
    for row in open_predictions(reference).rows():
        objects = row.annotations
        content = (
            None
            if objects is None
            else (
                objects.boxes_xywh.tolist(),
                objects.category_ids.tolist(),
                objects.scores.tolist() if objects.scores is not None else None,
                objects.ids.tolist(),
            )
        )
        found.append((row.image_id, row.coco_image_id, row.split, row.status, row.error, row.input_sha256, content))
    return sorted(found, key=lambda row: row[0])


def main() -> None:
    from workers.cluster import ray_session
    from workers.label import LabelConfig, label

    def tell(stage: str, done: int, total: int, **numbers: float) -> None:
        print(json.dumps({"time": time.time(), "stage": stage, "done": done, "total": total, **numbers}), flush=True)

    with ray_session("local", num_cpus=4):
        for text in sys.argv[1:]:
            print(json.dumps(label(LabelConfig.from_json(json.loads(text)), tell).to_json()), flush=True)


if __name__ == "__main__":
    main()
