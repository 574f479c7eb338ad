"""Masks and keypoints learnt on two CPU cores: on drawn scenes, and by heart on photographs of COCO.

    make bench NAME=masks-keypoints
    make bench NAME=masks-keypoints ARGS='--only keypoints-drawn'

``mask_rcnn_lite0_fpn`` and ``keypoint_rcnn_lite0_fpn`` learn 500 drawn scenes and are measured on 100 others that they
have never seen; the bar is an AP50 of masks >= 0.70 and of keypoints >= 0.60 after at most 12 minutes of training each.
``mask_rcnn_lite0_fpn`` then learns 20 photographs of coco-mini by heart, those with crowds first, and is measured on
the same: AP50 of boxes and of masks >= 0.5 after at most 30 minutes. That shows no skill, but that outlines and crowds
of real annotations arrive where they should.

The minutes are of 2 idle cores. Each finished run is kept in runs.json of the output folder, and not run again. The
exit status is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.metrics.settings import COCO_OKS_SIGMAS, IOU_TYPES, IouType
from pipelines.records import LabelMap
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.benchmarks.record import append_result, commit, load_average, table
from tests.benchmarks.trained import KeptRuns, label_split, told_every, train_timed
from workers.evaluate import evaluate
from workers.ingest import ingest
from workers.train import AugmentConfig, TrainConfig

DRAWN = {"train": 500, "val": 100}
PHOTOGRAPHS = 20
UNVARIED = AugmentConfig(horizontal_flip=0.0, scale=(1.0, 1.0), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained, and what it must reach.

    Attributes:
        detector: of the catalog.
        photographs: of COCO, to be learnt by heart; else drawn scenes.
        epochs: that take less than ``most_minutes`` on 2 idle cores.
        bars: the least AP50 of each kind that is measured.
        most_minutes: of training.
        augment: how training images are varied.
    """

    detector: str
    photographs: bool = False
    epochs: int
    bars: Mapping[IouType, float]
    most_minutes: float
    augment: AugmentConfig

    @property
    def measured(self) -> str:
        """The split."""
        return "train" if self.photographs else "val"


RECIPES: dict[str, Recipe] = {
    "masks-drawn": Recipe(
        detector="mask_rcnn_lite0_fpn",
        epochs=4,
        bars={"segm": 0.70},
        most_minutes=12.0,
        augment=AugmentConfig(scale=(0.8, 1.3)),
    ),
    "keypoints-drawn": Recipe(
        detector="keypoint_rcnn_lite0_fpn",
        epochs=5,
        bars={"keypoints": 0.60},
        most_minutes=12.0,
        augment=AugmentConfig(scale=(0.8, 1.3)),
    ),
    "masks-by-heart": Recipe(
        detector="mask_rcnn_lite0_fpn",
        photographs=True,
        epochs=200,
        bars={"bbox": 0.5, "segm": 0.5},
        most_minutes=30.0,
        augment=UNVARIED,
    ),
}


def train_config(recipe: Recipe, dataset: str, out: Path, image_size: int) -> TrainConfig:
    """One run, from the ImageNet weights of the extra [lite0]."""
    return TrainConfig(
        dataset=dataset,
        out=str(out),
        detector=recipe.detector,
        epochs=recipe.epochs,
        image_size=image_size,
        val_split=None,
        keep_checkpoints=1,
        augment=recipe.augment,
    )


def run(name: str, recipe: Recipe, config: TrainConfig, dataset: str) -> dict[str, Any]:
    """From training to AP50 of all that the detector finds."""
    tell = told_every(30, name)
    model, minutes = train_timed(config, tell)
    opened = open_dataset(dataset)
    labels = f"{name}-{model.digest[:8]}"  # an earlier recipe of this name may have left its own
    predicted = label_split(dataset, model, labels, recipe.measured, opened.splits[recipe.measured], tell)
    found = {
        kind: evaluate(
            dataset,
            predicted,
            splits=[recipe.measured],
            iou_type=kind,
            oks_sigmas=spreads(opened.label_map) if kind == "keypoints" else None,
            resamples=0,
        ).metrics.stats
        for kind in sorted({"bbox", *recipe.bars})
    }
    return {
        "run": name,
        "detector": recipe.detector,
        "images": f"{opened.splits['train']} {'photographs' if recipe.photographs else 'drawn'}",
        **{
            f"{kind} {stat}": round(found[kind][stat], 4) if kind in found else ""
            for stat in ("AP50", "AP")
            for kind in IOU_TYPES
        },
        "px": config.image_size,
        "epochs": config.epochs,
        **minutes,
        "commit": commit(),
    }


def spreads(label_map: LabelMap) -> dict[str, tuple[float, ...]]:
    """COCO's mean for every keypoint, as validation takes it: nobody has measured how people place drawn ones."""
    mean = sum(COCO_OKS_SIGMAS) / len(COCO_OKS_SIGMAS)
    return {c.name: (mean,) * len(c.keypoints) for c in label_map.categories if c.keypoints}


def drawn_scenes(work: Path, counts: Mapping[str, int]) -> str:
    source = open_source("synthetic", seed=7, num_train=counts["train"], num_val=counts["val"])
    return ingest(source, str(work / "drawn")).reference


def photographs(work: Path, folder: Path, count: int) -> str:
    """The first images of coco-mini's training split, those with crowds before the others."""
    truth = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    crowded = {a["image_id"] for a in truth["annotations"] if a["iscrowd"]}
    labelled = {a["image_id"] for a in truth["annotations"]}
    images = sorted(
        (image for image in truth["images"] if image["id"] in labelled),
        key=lambda image: (image["id"] not in crowded, image["id"]),
    )[:count]
    chosen = {image["id"] for image in images}
    annotations = [a for a in truth["annotations"] if a["image_id"] in chosen]
    # Only classes that are there: the others could not be learnt, and would not be measured.
    used = {a["category_id"] for a in annotations}
    categories = [c for c in truth["categories"] if c["id"] in used]
    part = work / f"instances_{count}.json"
    part.write_text(json.dumps({**truth, "images": images, "annotations": annotations, "categories": categories}))
    source = open_source("coco", annotations=str(part), images=str(folder / "train2017"), split="train")
    return ingest(source, str(work / f"photographs-{count}")).reference


def passed(recipe: Recipe, row: Mapping[str, Any]) -> bool:
    return row["wall min"] <= recipe.most_minutes and all(
        row[f"{kind} AP50"] >= least for kind, least in recipe.bars.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=RECIPES, help="again for another; default all")
    parser.add_argument("--epochs", type=int, help="fewer, to try the bench itself; not recorded")
    parser.add_argument("--images", type=int, help="fewer training images, likewise")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--out", type=Path, default=Path("bench-out/masks-keypoints"))
    parser.add_argument("--again", action="store_true", help="forget the runs that are kept")
    parser.add_argument("--no-record", action="store_true", help="leave tests/benchmarks/results.md as it is")
    arguments = parser.parse_args()
    asked = list(arguments.only or RECIPES)
    folder = Path(os.environ.get("BOXMILL_DATA") or "nowhere").resolve() / "coco-mini"
    if any(RECIPES[name].photographs for name in asked) and not folder.is_dir():
        print("BOXMILL_DATA must name the folder that holds coco-mini/", file=sys.stderr)
        return 2
    load_before = load_average()
    work = arguments.out.absolute()
    kept = KeptRuns(work, again=arguments.again)
    rows, missed = [], []
    for name in asked:
        recipe = RECIPES[name]
        if arguments.epochs is not None:
            recipe = replace(recipe, epochs=arguments.epochs)
        if recipe.photographs:
            dataset = photographs(work, folder, arguments.images or PHOTOGRAPHS)
        else:
            counts = DRAWN if arguments.images is None else {"train": arguments.images, "val": arguments.images}
            dataset = drawn_scenes(work, counts)
        config = train_config(recipe, dataset, work / "models", arguments.image_size)
        # What was run is told by all its settings: another recipe of the same name is another run.
        digest = config.job_digest(dataset=open_dataset(dataset).digest, backbone=str(config.pretrained_backbone))
        key = f"{name}-{digest[:12]}"
        config = replace(config, out=f"{config.out}/{key}")
        row = kept.row(key, partial(run, name, recipe, config, dataset))
        rows.append(row)
        if not passed(recipe, row):
            missed.append(name)

    body = table(rows)
    print(body)
    tried = arguments.epochs is not None or arguments.images is not None
    if not arguments.no_record and not tried:
        bars = "; ".join(
            f"{name}: {', '.join(f'{kind} AP50 >= {least}' for kind, least in RECIPES[name].bars.items())} within "
            f"{RECIPES[name].most_minutes:.0f} minutes"
            for name in asked
        )
        append_result("masks-keypoints", f"{body}\n\nBars, on 2 idle cores: {bars}.", load_before=load_before)
    print(f"masks-keypoints: {'missed ' + ', '.join(missed) if missed else 'all bars are met'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
