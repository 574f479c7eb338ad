"""``inspect``, ``duplicates`` and ``get``: commands that only look."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from flows.cli import console
from flows.cli.ledger import show_ledger
from flows.cli.options import Limit, Output, spread

INSPECT_HELP = """Show what is in a dataset version: counts, categories, splits, sizes, history; or its ledger.

The ledger tells what became of every image and annotation of the sources: each is imported, mended, dropped or
quarantined.

Example: `boxmill inspect data/cells --ledger --fate dropped`
"""
DUPLICATES_HELP = """List images with the same bytes as an earlier one, or with --near those that look like one.

Example: `boxmill duplicates data/cells --near --threshold 6`
"""
GET_HELP = """Read one image by its id: its facts and objects, and with --out its bytes as they were ingested.

Example: `boxmill get data/cells JPEGImages/BloodImage_00007.jpg --out cell.jpg`
"""


class Fate(StrEnum):
    """Of what was not simply imported."""

    MENDED = "mended"
    DROPPED = "dropped"
    QUARANTINED = "quarantined"


@spread
def inspect(
    dataset: Annotated[str, typer.Argument(help="Dataset or prediction reference, any fsspec URL.")],
    ledger: Annotated[bool, typer.Option("--ledger", help="Show the ledger instead.")] = False,
    fate: Annotated[
        list[Fate] | None,
        typer.Option("--fate", help="With --ledger: list only these; give it again for more."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="With --ledger: list only those whose reason has this text.")
    ] = None,
    limit: Limit = 20,
    *,
    output: Output,
) -> None:
    if ledger or fate or reason:
        show_ledger(dataset, fates=fate or (), reason=reason or "", limit=limit)
        return
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


@spread
def duplicates(
    dataset: Annotated[str, typer.Argument(help="Dataset reference, any fsspec URL.")],
    near: Annotated[bool, typer.Option("--near", help="Images that look alike; decodes all of them once.")] = False,
    threshold: Annotated[
        int, typer.Option("--threshold", min=0, max=16, help="With --near: bits of 64 in which hashes may differ.")
    ] = 6,
    limit: Limit = 20,
    *,
    output: Output,
) -> None:
    from flows.progress import stage
    from pipelines.duplicates import find_duplicates
    from pipelines.near_duplicates import find_near_duplicates
    from pipelines.versions import open_dataset

    opened = open_dataset(dataset)
    with console.results_only_on_stdout(), console.Bars() as bars:
        alike = find_near_duplicates(opened, threshold=threshold, progress=stage(bars, "compare")) if near else []
        same = [] if near else find_duplicates(opened)
    found = [duplicate.to_json() for duplicate in (alike or same)]
    if console.mode.json:
        console.write_json({"reference": opened.reference, "near": near, "duplicates": found})
        return
    console.show("Duplicates", {"reference": opened.reference, "images": len(found)})
    if near:
        rows = [[d.image_id, d.near, d.split or "-", d.near_split or "-", d.distance] for d in alike]
        columns = ["image", "looks like", "split", "its split", "bits of 128"]
    else:
        rows = [[d.image_id, d.first, d.split or "-", d.first_split or "-", d.labels] for d in same]
        columns = ["image", "first", "split", "its split", "labels"]
    console.show_limited("Images", columns, rows, limit, texts=4)


@spread
def get(
    dataset: Annotated[str, typer.Argument(help="Dataset reference, any fsspec URL.")],
    image_id: Annotated[str, typer.Argument(help="Id of the image.")],
    out: Annotated[
        str | None, typer.Option("--out", help="File to write the image to, any fsspec URL; - is standard output.")
    ] = None,
    *,
    output: Output,
) -> None:
    from pipelines.image_details import describe_image, read_one
    from pipelines.storage import split_uri
    from pipelines.versions import open_dataset

    if out == "-" and console.mode.json:
        raise ValueError("--out - and --json both want standard output: give one of them")
    opened = open_dataset(dataset)
    record = read_one(opened, image_id)
    if out == "-":
        sys.stdout.buffer.write(record.image)
        return
    written = None
    if out is not None:
        store, name = split_uri(out)
        store.write_bytes(name, record.image)
        written = store.join(name)
    described = describe_image(record, opened.label_map)
    if console.mode.json:
        console.write_json({"reference": opened.reference, **described, "out": written})
        return
    objects = described.pop("objects")
    console.show("Image", {name: value for name, value in described.items() if value not in ("", {}, None)})
    if objects is None:
        console.note("nobody has labelled it")
    else:
        rows = [
            [o["category"], o["id"], *o["bbox_xywh"], *([] if o["score"] is None else [o["score"]])] for o in objects
        ]
        scores = ["score"] if any(o["score"] is not None for o in objects) else []
        console.show_table("Objects", ["category", "id", "left", "top", "width", "height", *scores], rows)
    if written is not None:
        console.note(f"written to {written}")
