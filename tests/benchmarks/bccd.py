"""Real images end to end: ingest BCCD, train retinanet_lite0, label and evaluate the test split.

    make bench NAME=bccd

The bar: mean AP >= 0.50 and AP50 >= 0.86 on the test split, at most 10 minutes of training on 2 idle cores. The
exit status is 1 below it. Validation images are never trained on, test images never looked at before the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import mean

from pipelines.predictions import open_predictions
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.benchmarks.record import append_result, load_average, table
from workers.evaluate import evaluate
from workers.ingest import ingest
from workers.label import label
from workers.label_config import LabelConfig
from workers.train import AugmentConfig, TrainConfig, train

LEAST_AP, LEAST_AP50, MOST_MINUTES = 0.50, 0.86, 10.0
IMAGES = {"train": 205, "val": 87, "test": 72}


def recipe(dataset: str, out: Path, seed: int) -> TrainConfig:
    """Blood cells have no up or down and always about the same size; the stain varies."""
    return TrainConfig(
        dataset=dataset,
        out=str(out),
        detector="retinanet_lite0",
        epochs=20,
        image_size=416,
        val_every=20,
        seed=seed,
        augment=AugmentConfig(vertical_flip=0.5, scale=(0.8, 1.3)),
    )


def run(dataset: str, work: Path, seed: int) -> dict[str, float]:
    """One seed from training to metrics on the test split."""
    told = [time.monotonic()]

    def tell(stage: str, done: int, total: int, **numbers: float) -> None:
        if time.monotonic() - told[0] > 30:
            told[0] = time.monotonic()
            shown = " ".join(f"{name}={value:.4g}" for name, value in numbers.items())
            print(f"seed {seed}: {stage} {done}/{total} {shown}", flush=True)

    started = time.monotonic()
    model = train(recipe(dataset, work / f"model-{seed}", seed), tell)
    minutes = (time.monotonic() - started) / 60
    labelled = label(
        LabelConfig(
            input=dataset, model=model.uri, out=f"seed-{seed}", splits=("test",), score_threshold=0.01, image_size=None
        ),
        tell,
    )
    predicted = open_predictions(labelled.reference)
    found = evaluate(dataset, labelled.reference, splits=["test"]).metrics
    assert sum(1 for _ in predicted.annotations()) == IMAGES["test"], "every test image has its row"
    return {
        "seed": seed,
        "AP": round(found.stats["AP"], 4),
        "AP50": round(found.stats["AP50"], 4),
        "AP75": round(found.stats["AP75"], 4),
        **{f"AP {name}": round(numbers.AP, 4) for name, numbers in found.per_class.items()},
        "train_minutes": round(minutes, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path("bench-out/bccd"), help="emptied first")
    parser.add_argument("--no-record", action="store_true", help="leave tests/benchmarks/results.md as it is")
    arguments = parser.parse_args()
    folder = os.environ.get("BOXMILL_DATA")
    if not folder or not (Path(folder) / "bccd").is_dir():
        print("BOXMILL_DATA must name the folder that holds bccd/", file=sys.stderr)
        return 2
    load_before = load_average()
    shutil.rmtree(arguments.out, ignore_errors=True)
    work = arguments.out.absolute()

    dataset = ingest(open_source("voc", root=str(Path(folder).resolve() / "bccd")), str(work / "dataset")).reference
    splits = open_dataset(dataset).splits
    assert splits == IMAGES, f"the official splits are {IMAGES}, got {splits}"
    rows = [run(dataset, work, int(seed)) for seed in arguments.seeds.split(",")]

    means = {name: mean(row[name] for row in rows) for name in rows[0] if name != "seed"}
    digits = {name: f"{value:.2f}" if name == "train_minutes" else f"{value:.4f}" for name, value in means.items()}
    body = table([*rows, {"seed": "mean", **digits}])
    print(body)
    if not arguments.no_record:
        append_result("bccd", body, load_before=load_before)
    print(f"bccd: AP={means['AP']:.3f} AP50={means['AP50']:.3f} train_minutes={means['train_minutes']:.1f}", flush=True)
    good = means["AP"] >= LEAST_AP and means["AP50"] >= LEAST_AP50 and means["train_minutes"] <= MOST_MINUTES
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
