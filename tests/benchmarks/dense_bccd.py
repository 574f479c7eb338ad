"""Three dense detectors on real images, under one budget of training: the teaching SSD twice, and EfficientDet-Lite0.

    make bench NAME=dense-bccd
    make bench NAME=dense-bccd ARGS='--only efficientdet_lite0 --seeds 0'

Each gets at most 8 minutes of training on 2 idle cores (Xeon with AVX-512), kept by a number of epochs that fits into
them, so that a busy or slower machine changes the minutes that are told, and names the runs that took longer, and
nothing else. ``ssd_grid_resnet34`` starts from random weights (with
GroupNorm) unless ``--resnet34`` names a file of ImageNet weights, ``efficientdet_lite0`` from the ImageNet weights of
the extra [lite0]: the table compares recipes, not architectures. ``ssd_grid_lite0``, which has those weights too, is
there for that; it runs when it is asked for.

Each finished run is kept in runs.json of the output folder, and not run again: a bench that was cut off goes on, and
runs that were made one by one come together in one table. The bar: mean AP50 of ``efficientdet_lite0`` >= 0.84 on the
test split; the exit status is 1 below it. Validation images are never trained on, test images never looked at before
the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.benchmarks.bccd import IMAGES
from tests.benchmarks.record import append_result, commit, load_average, table
from tests.benchmarks.trained import KeptRuns, label_split, told_every, train_timed
from workers.evaluate import evaluate
from workers.ingest import ingest
from workers.train import AugmentConfig, TrainConfig

LEAST_AP50, BUDGET_MINUTES = 0.84, 8.0
BARRED = "efficientdet_lite0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained, and how long.

    Attributes:
        detector: of the catalog.
        epochs: that take less than the budget on 2 idle cores.
        image_size: of the model, pixels.
        options: of the detector.
        batch_size: images a worker and step.
        lr: the highest learning rate.
    """

    detector: str
    epochs: int
    image_size: int
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 4
    lr: float = 1e-3


# Stretched to 224 px a platelet has some 16, a red cell 40, a white cell 80: the finest cells of the classic have 56.
_GRIDS = {"grids": (14, 7, 4), "box_unit": "anchor"}
_LITE0_GRIDS = {"grids": (26, 13, 7), "box_unit": "anchor"}
RECIPES: dict[str, Recipe] = {
    "ssd_grid_resnet34-ce": Recipe(
        detector="ssd_grid_resnet34", epochs=10, image_size=224, options={**_GRIDS, "loss": "ce"}
    ),
    "ssd_grid_resnet34-focal": Recipe(
        detector="ssd_grid_resnet34", epochs=10, image_size=224, options={**_GRIDS, "loss": "focal"}
    ),
    # GroupNorm does not mind two images a step, and it needs the steps; the first stage is a quarter of the arithmetic.
    "efficientdet_lite0": Recipe(
        detector="efficientdet_lite0",
        epochs=16,
        image_size=384,
        options={"frozen_stages": 1},
        batch_size=2,
        lr=1.5e-3,
    ),
    "ssd_grid_lite0-ce": Recipe(
        detector="ssd_grid_lite0", epochs=24, image_size=416, options={**_LITE0_GRIDS, "loss": "ce"}
    ),
    "ssd_grid_lite0-focal": Recipe(
        detector="ssd_grid_lite0", epochs=24, image_size=416, options={**_LITE0_GRIDS, "loss": "focal"}
    ),
}
ASKED = ("ssd_grid_resnet34-ce", "ssd_grid_resnet34-focal", "efficientdet_lite0")


def train_config(recipe: Recipe, dataset: str, out: Path, seed: int, resnet34: str | None) -> TrainConfig:
    """Blood cells have no up or down and always about the same size; the stain varies."""
    from_scratch = recipe.detector == "ssd_grid_resnet34" and resnet34 is None
    return TrainConfig(
        dataset=dataset,
        out=str(out),
        detector=recipe.detector,
        detector_options={**recipe.options, **({"norm": "gn"} if from_scratch else {})},
        pretrained_backbone=None if from_scratch else resnet34 if "resnet34" in recipe.detector else "imagenet",
        epochs=recipe.epochs,
        image_size=recipe.image_size,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        val_every=recipe.epochs,
        seed=seed,
        augment=AugmentConfig(vertical_flip=0.5, scale=(0.8, 1.3)),
    )


def run(name: str, config: TrainConfig, dataset: str) -> dict[str, Any]:
    """One seed of one recipe, from training to metrics on the test split."""
    tell = told_every(30, f"{name}, seed {config.seed}")
    model, minutes = train_timed(config, tell)
    predicted = label_split(dataset, model, f"{name}-{config.seed}-{model.digest[:8]}", "test", IMAGES["test"], tell)
    found = evaluate(dataset, predicted, splits=["test"]).metrics
    return {
        "detector": name,
        "seed": config.seed,
        "AP": round(found.stats["AP"], 4),
        "AP50": round(found.stats["AP50"], 4),
        **{f"AP50 {of}": round(numbers.AP50, 4) for of, numbers in found.per_class.items()},
        "start": "random" if config.pretrained_backbone is None else "ImageNet",
        "px": config.image_size,
        "epochs": config.epochs,
        **minutes,
        "commit": commit(),
    }


def with_means(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of each detector, and behind them their mean."""
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(row["detector"] for row in runs):
        of_detector = [row for row in runs if row["detector"] == name]
        rows += of_detector
        means = dict(of_detector[0])
        for key in means:
            values = [row[key] for row in of_detector if isinstance(row[key], float)]
            if values:
                means[key] = f"{mean(values):.{2 if key.endswith('min') else 4}f}"
        rows.append({**means, "seed": "mean", "commit": ""})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=RECIPES, help="again for another; default the first three")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--epochs", type=int, help="fewer, to try the bench itself; not recorded")
    parser.add_argument("--resnet34", metavar="PATH", help="ImageNet weights of torchvision's or timm's ResNet-34")
    parser.add_argument("--out", type=Path, default=Path("bench-out/dense-bccd"))
    parser.add_argument("--again", action="store_true", help="forget the runs that are kept")
    parser.add_argument("--no-record", action="store_true", help="leave tests/benchmarks/results.md as it is")
    arguments = parser.parse_args()
    folder = os.environ.get("BOXMILL_DATA")
    if not folder or not (Path(folder) / "bccd").is_dir():
        print("BOXMILL_DATA must name the folder that holds bccd/", file=sys.stderr)
        return 2
    load_before = load_average()
    work = arguments.out.absolute()
    kept = KeptRuns(work, again=arguments.again)

    # Two seconds; an older one may have been planned otherwise, and would refuse the same images.
    shutil.rmtree(work / "dataset", ignore_errors=True)
    dataset = ingest(open_source("voc", root=str(Path(folder).resolve() / "bccd")), str(work / "dataset")).reference
    splits = open_dataset(dataset).splits
    assert splits == IMAGES, f"the official splits are {IMAGES}, got {splits}"
    runs = []
    for name in arguments.only or ASKED:
        for seed in map(int, arguments.seeds.split(",")):
            recipe = RECIPES[name]
            if arguments.epochs is not None:
                recipe = replace(recipe, epochs=arguments.epochs)
            config = train_config(recipe, dataset, work / "models", seed, arguments.resnet34)
            # What was run is told by all its settings: another recipe of the same name is another run.
            inputs = {"dataset": open_dataset(dataset).digest, "backbone": str(config.pretrained_backbone)}
            key = f"{name}-{seed}-{config.job_digest(**inputs)[:12]}"
            config = replace(config, out=f"{config.out}/{key}")
            runs.append(kept.row(key, partial(run, name, config, dataset)))

    body = table(with_means(runs))
    print(body)
    if not arguments.no_record and arguments.epochs is None:
        over = [f"{row['detector']}, seed {row['seed']}" for row in runs if row["wall min"] > BUDGET_MINUTES]
        budget = f"Budget: {BUDGET_MINUTES:.0f} minutes on 2 idle cores; over it: {'; '.join(over) or 'none'}."
        append_result("dense-bccd", f"{body}\n\n{budget}", load_before=load_before)
    means = {
        name: mean(row["AP50"] for row in runs if row["detector"] == name)
        for name in dict.fromkeys(row["detector"] for row in runs)
    }
    shown = " ".join(f"{name}_AP50={value:.3f}" for name, value in means.items())
    print(f"dense-bccd: {shown}", flush=True)
    return 0 if means.get(BARRED, 1.0) >= LEAST_AP50 else 1


if __name__ == "__main__":
    sys.exit(main())
