"""``inspect`` and ``detectors``: commands that only look."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.cli import console
from flows.cli.options import Debug, Json

INSPECT_HELP = """Show what is in a dataset version: counts, categories, splits, sizes, history.

Example: `boxmill inspect data/cells`
"""
DETECTORS_HELP = """List the detectors that can be trained.

Example: `boxmill detectors`
"""


def inspect(
    dataset: Annotated[str, typer.Argument(help="Dataset or prediction reference, any fsspec URL.")],
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    from pipelines.summary import summarise
    from pipelines.versions import list_label_sets, open_dataset

    opened = open_dataset(dataset)
    summary = summarise(opened).to_json() | {"label_sets": list_label_sets(opened.uri)}
    if console.mode.json:
        console.write_json(summary)
        return
    console.show("Dataset", _overview(summary))
    splits = [[s["name"] or "-", s["images"], s["objects"], s["images_without_objects"]] for s in summary["splits"]]
    console.show_table("Splits", ["split", "images", "objects", "without objects"], splits)
    classes = [
        [c["name"], c["category_id"], c["objects"], c["images"], c["crowds"], *c["sizes"].values()]
        for c in summary["classes"]
    ]
    header = ["category", "id", "objects", "images", "crowds", "small", "medium", "large"]
    console.show_table("Categories", header, classes)
    history = [[v["version"], v["committed"], v["images"], v["objects"]] for v in summary["history"]]
    console.show_table("History", ["version", "committed", "images", "objects"], history)


def _overview(summary: dict[str, Any]) -> dict[str, Any]:
    sizes = ", ".join(f"{width}x{height} ({count})" for width, height, count in summary["image_sizes"])
    return {
        "reference": summary["reference"],
        "digest": summary["digest"],
        "kind": summary["kind"],
        "label sets": ", ".join(summary["label_sets"]),
        "images": summary["num_images"],
        "objects": summary["num_objects"],
        "with polygons": summary["num_with_polygons"],
        "with RLE": summary["num_with_rle"],
        "with keypoints": summary["num_with_keypoints"],
        "crowds": summary["num_crowds"],
        "image sizes": sizes + (", ..." if summary["num_image_sizes"] > len(summary["image_sizes"]) else ""),
    }


def detectors(json_output: Json = False, debug: Debug = False) -> None:
    from detectors import list_detectors

    names = list_detectors()
    if console.mode.json:
        console.write_json({"detectors": names})
        return
    for name in names:
        print(name)
