"""``boxmill anchors``: the box sizes that YOLOv3 should start from on a dataset."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from flows.cli import console
from flows.cli.options import Output, spread

HELP = """Find the anchors of YOLOv3 for a dataset: k-means over the sizes of its boxes, with 1 - IoU as the distance.

Reads label files alone. Prints the setting for `boxmill train`; `--out` writes it as a file for `--config`.

Example: `boxmill anchors data/cells --num 9 --image-size 416`
"""


@spread
def anchors(
    dataset: Annotated[str, typer.Argument(help="Dataset reference: `URI` or `URI@labels/<set>[:<version>]`.")],
    num: Annotated[int, typer.Option(min=1, help="How many: 9 for yolo_v3_darknet53, 6 for yolo_v3_tiny.")] = 9,
    image_size: Annotated[int, typer.Option(min=1, help="Longer side in model pixels, as in training.")] = 416,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Boxes of this split; give it again for more. Default: train.")
    ] = None,
    all_splits: Annotated[bool, typer.Option("--all-splits", help="Boxes of all splits.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed finds the same anchors.")] = 0,
    restarts: Annotated[int, typer.Option(min=1, help="Starts to try; the best result counts.")] = 5,
    out: Annotated[
        str | None, typer.Option(help="Write them as settings for `boxmill train --config`, any fsspec URL.")
    ] = None,
    *,
    output: Output,
) -> None:
    if split and all_splits:
        raise ValueError("--split and --all-splits contradict each other; give one of them")
    from workers.anchors import anchors_for

    with console.results_only_on_stdout():
        found = anchors_for(
            dataset,
            num=num,
            image_size=image_size,
            splits=None if all_splits else tuple(split or ("train",)),
            seed=seed,
            restarts=restarts,
        )
    report = asdict(found)
    setting = f"detector_options.anchors={json.dumps(report['anchors'], separators=(',', ':'))}"
    if out is not None:
        _write(out, {"image_size": image_size, "detector_options": {"anchors": report["anchors"]}})
    if console.mode.json:
        console.write_json(report | {"setting": setting, "out": out})
        return
    console.show(
        "Anchors",
        {
            "dataset": report["reference"],
            "splits": "all" if report["splits"] is None else ", ".join(report["splits"]),
            "images": report["num_images"],
            "boxes": report["num_boxes"],
            "left out (crowds, no area)": report["num_left_out"],
        },
    )
    pairs = list(zip(report["anchors"][::2], report["anchors"][1::2], strict=True))
    rows = [[i + 1, width, height, n] for i, ((width, height), n) in enumerate(zip(pairs, found.fit.boxes))]
    console.show_table("Sizes in model pixels", ["", "width", "height", "boxes"], rows)
    fits = [
        ["these", found.fit.mean_iou, found.fit.recall],
        ["COCO's", found.default_fit.mean_iou, found.default_fit.recall],
    ]
    console.show_table("Fit", ["anchors", "mean IoU", "IoU >= 0.5"], fits)
    print(f"--image-size {image_size} --set {setting}")


def _write(uri: str, settings: dict[str, Any]) -> None:
    from pipelines.storage import split_uri

    store, name = split_uri(uri)
    store.write_bytes(name, json.dumps(settings, indent=1).encode())
