"""A training that takes seconds, for the tests of training; also a program that a test can kill.

python -m tests.integration.training DATASET OUT '{"epochs": 3}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

from workers.train_config import AugmentConfig, TrainConfig

# Narrow and small, but every part of a real detector.
TINY: dict[str, Any] = {"fpn_channels": 16, "head_channels": 16, "head_depth": 1, "head_norm": "gn"}


def make_dataset(uri: str, *, num_train: int = 24, num_val: int = 8, seed: int = 1) -> str:
    """Synthetic scenes; returns the reference."""
    from pipelines.sources import open_source
    from workers.ingest import ingest

    source = open_source("synthetic", seed=seed, num_train=num_train, num_val=num_val, size=(128, 128))
    return ingest(source, uri).reference


def tiny_config(dataset: str, out: str, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "dataset": dataset,
        "out": out,
        "detector": "retinanet_lite0",
        "detector_options": TINY,
        "pretrained_backbone": None,
        "epochs": 2,
        "image_size": 128,
        "batch_size": 4,
        "lr": 2e-3,
        "warmup_steps": 2,
        "ema": 0.9,
        "cpus_per_worker": 1,
        "augment": AugmentConfig(scale=(0.9, 1.1)),
    }
    return TrainConfig(**(settings | changes))


def main() -> None:
    from workers.train import train

    dataset, out, changes = sys.argv[1:]

    def tell(stage: str, done: int, total: int, **numbers: float) -> None:
        print(json.dumps({"stage": stage, "done": done, "total": total, **numbers}), flush=True)

    reference = make_dataset(dataset)  # found where it was made before
    model = train(tiny_config(reference, out, **json.loads(changes)), tell)
    print(json.dumps({"uri": model.uri, "digest": model.digest, "history": model.history}), flush=True)


if __name__ == "__main__":
    main()
