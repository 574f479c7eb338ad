"""Small objects in large scenes with and without tiles, and two models fused.

    make bench NAME=tiling

``retinanet_lite0`` learns drawn scenes of 320 x 320 pixels and then labels scenes of 4,000 x 3,000 whose 150 to 250
objects are as large as those that it has learnt, 20 to 64 pixels: once as a whole, in which they are 2 to 5 pixels of
the model's 320, and once in tiles of 320 that overlap by a fifth, put together again across their borders. What is
small is COCO's: an area of less than 32 x 32 pixels of the scene. The bar: AP_small with tiles is above 0 and at least
twice that without.

Two detectors of other seeds then learn the usual drawn scenes of 256 x 256, label the same 100 unseen ones, and are
fused by weighted boxes. The bar: the fused AP is at least the better one's.

All of it takes about 10 minutes of one CPU. Each finished run is kept in runs.json of the output folder, and not run
again. The exit status is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.predictions import open_predictions
from pipelines.sources.synthetic import SyntheticSource
from pipelines.versions import open_dataset
from tests.benchmarks.processes import TreeCpu
from tests.benchmarks.record import append_result, commit, load_average, table
from tests.benchmarks.trained import KeptRuns, label_split, told_every, train_timed
from workers.evaluate import evaluate
from workers.fuse import FuseConfig, fuse
from workers.ingest import ingest
from workers.label import label
from workers.label_config import LabelConfig
from workers.train import AugmentConfig, ModelRef, TrainConfig

DIAMETERS = (20.0, 64.0)
TILE, OVERLAP = 320, 0.2
CROPS = SyntheticSource(seed=11, num_train=400, num_val=0, size=(TILE, TILE), objects=(8, 24), diameters=DIAMETERS)
SCENES = SyntheticSource(seed=12, num_train=0, num_val=6, size=(4000, 3000), objects=(150, 250), diameters=DIAMETERS)
USUAL = SyntheticSource(seed=13, num_train=300, num_val=100)
LEAST_RATIO = 2.0
SHOWN = ("AP", "AP50", "AP_small", "AP_medium")


def scaled(source: SyntheticSource, part: float) -> SyntheticSource:
    """The same with a part of the images, at least two of each split that it has."""
    counts = {name: getattr(source, name) for name in ("num_train", "num_val")}
    fewer = {name: max(2, int(count * part)) if count else 0 for name, count in counts.items()}
    return SyntheticSource(**{**source.options, **fewer})


def dataset_of(source: SyntheticSource, folder: Path) -> str:
    return ingest(source, str(folder)).reference


def learn(
    name: str, dataset: str, out: Path, *, seed: int, epochs: int, image_size: int, **more: Any
) -> tuple[ModelRef, dict[str, Any]]:
    """From the ImageNet weights of the extra [lite0]; scenes of one scale need no other zoom."""
    config = TrainConfig(
        dataset=dataset,
        out=str(out / f"{name}-{seed}-{epochs}"),
        detector="retinanet_lite0",
        epochs=epochs,
        image_size=image_size,
        val_split=None,
        keep_checkpoints=1,
        seed=seed,
        augment=AugmentConfig(scale=(0.9, 1.2)),
        **more,
    )
    return train_timed(config, told_every(30, name))


def run_tiling(work: Path, part: float, epochs: int) -> dict[str, Any]:
    """AP by size of the same model, on the same scenes, as a whole and in tiles."""
    crops, scenes = (dataset_of(scaled(s, part), work / n) for n, s in (("crops", CROPS), ("scenes", SCENES)))
    # Anchors for objects of 20 pixels and more: by default they begin at 32.
    anchors = {"anchor_scale": 3.0}
    model, minutes = learn(
        "crops", crops, work / "models", seed=0, epochs=epochs, image_size=TILE, detector_options=anchors
    )
    opened = open_dataset(scenes)
    found: dict[str, Any] = {
        "images": opened.num_images,
        "objects": opened.num_objects,
        "training CPU min": minutes["CPU min"],
    }
    for name, tile in (("whole", None), ("tiles", TILE)):
        started = time.monotonic()
        with TreeCpu() as cpu:
            labelled = label(
                LabelConfig(
                    input=scenes,
                    model=model.uri,
                    out=f"{name}-{model.digest[:8]}",
                    tile=tile,
                    tile_overlap=OVERLAP,
                    score_threshold=0.02,
                    max_detections=1000,
                ),
                told_every(30, name),
            )
        seconds = time.monotonic() - started
        rows = sum(1 for _ in open_predictions(labelled.reference).annotations())
        assert rows == opened.num_images, f"every scene has its row, got {rows} of {opened.num_images}"
        stats = evaluate(scenes, labelled.reference, resamples=0).metrics.stats
        found[name] = {key: round(stats[key], 4) for key in SHOWN} | {
            "detections": labelled.num_objects,
            "s a scene": round(seconds / opened.num_images, 1),
            "CPU s a scene": round(cpu.seconds / opened.num_images, 1),
        }
    return found


def run_fusion(work: Path, part: float, epochs: int) -> dict[str, Any]:
    """AP of two detectors of other seeds, and of what they find fused."""
    dataset = dataset_of(scaled(USUAL, part), work / "usual")
    images = open_dataset(dataset).splits["val"]
    names, found = [], {}
    for seed in (0, 1):
        model, minutes = learn("usual", dataset, work / "models", seed=seed, epochs=epochs, image_size=192)
        names.append(f"seed-{seed}-{model.digest[:8]}")
        predicted = label_split(dataset, model, names[-1], "val", images, told_every(30, names[-1]))
        found[f"seed {seed}"] = {**measured(dataset, predicted), "training CPU min": minutes["CPU min"]}
    fused = fuse(FuseConfig(dataset=dataset, predictions=tuple(names), out="-".join(["fused", *names])))
    found["fused"] = {**measured(dataset, fused.reference), "training CPU min": ""}
    return found


def measured(dataset: str, predictions: str) -> dict[str, float]:
    stats = evaluate(dataset, predictions, splits=["val"], resamples=0).metrics.stats
    return {key: round(stats[key], 4) for key in ("AP", "AP50", "AP75")}


def missed(tiling: Mapping[str, Any], fusion: Mapping[str, Any]) -> list[str]:
    """The bars that are missed, in words."""
    small, whole = tiling["tiles"]["AP_small"], tiling["whole"]["AP_small"]
    best = max(fusion["seed 0"]["AP"], fusion["seed 1"]["AP"])
    told = []
    if not small > 0 or small < LEAST_RATIO * whole:
        told.append(f"AP_small {small} with tiles, {whole} without")
    if fusion["fused"]["AP"] < best:
        told.append(f"fused AP {fusion['fused']['AP']}, of one model {best}")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=float, default=1.0, help="of the images, to try the bench itself; not recorded")
    parser.add_argument("--epochs", type=int, default=6, help="likewise")
    parser.add_argument("--out", type=Path, default=Path("bench-out/tiling"))
    parser.add_argument("--again", action="store_true", help="forget the runs that are kept")
    parser.add_argument("--no-record", action="store_true", help="leave tests/benchmarks/results.md as it is")
    arguments = parser.parse_args()
    load_before = load_average()
    of = f"{arguments.part}-{arguments.epochs}"
    work = arguments.out.absolute() / of
    kept = KeptRuns(work, again=arguments.again)
    tiling = kept.row("tiling", partial(run_tiling, work, arguments.part, arguments.epochs))
    fusion = kept.row("fusion", partial(run_fusion, work, arguments.part, arguments.epochs))
    scenes = f"{tiling['images']} scenes of 4,000 x 3,000 with {tiling['objects']} objects"
    body = "\n\n".join(
        [
            f"{scenes}; training took {tiling['training CPU min']} CPU minutes; at {commit()}:",
            table([{"looked at": name, **tiling[name]} for name in ("whole", "tiles")]),
            "Two models and their fusion, on 100 unseen scenes of 256 x 256:",
            table([{"model": name, **numbers} for name, numbers in fusion.items()]),
            f"Bars: AP_small with tiles above 0 and at least {LEAST_RATIO:g} times that without; fused AP at least the "
            "better model's.",
        ]
    )
    print(body)
    told = missed(tiling, fusion)
    tried = arguments.part != 1.0 or arguments.epochs != parser.get_default("epochs")
    if not arguments.no_record and not tried:
        append_result("tiling", body, load_before=load_before)
    print(f"tiling: {'missed ' + '; '.join(told) if told else 'all bars are met'}", flush=True)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
