"""``gallery``: a dataset or predictions to look through in a browser."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from flows.cli import console
from flows.cli.options import Configured, Flow, Split, execute, spread

GALLERY_HELP = """Write a folder in which to look through images in a browser, from a disk or a bucket.

Filters by class and score, sorting by uncertainty, masks and skeletons, all by keys. With PREDICTIONS the dataset's
truth tells what was found, missed and false.

Example: `boxmill gallery data/cells predictions --out gallery`
"""


@spread
def gallery(
    dataset: Annotated[str, typer.Argument(help="Reference of truth, or of predictions on their own.")],
    out: Annotated[str, typer.Option("--out", help="Folder to write, any fsspec URL.")],
    predictions: Annotated[
        str | None, typer.Argument(help="Predictions to compare with the truth: a reference, or a label set's name.")
    ] = None,
    split: Split = None,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Most images to show. Default: 2000.")] = None,
    choose: Annotated[
        Literal["random", "uncertain", "first"] | None,
        typer.Option("--choose", help="Which, where there are more. Default: random."),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=16, help="Longest side of the pictures, pixels. Default: 640.")
    ] = None,
    *,
    more: Configured,
    where: Flow,
) -> None:
    from flows.config import GalleryConfig
    from pipelines.routing import find_predictions

    given = {
        "dataset": dataset,
        "predictions": None if predictions is None else find_predictions(dataset, predictions),
        "out": out,
        "splits": split or None,
        "images": images,
        "choose": choose,
        "size": size,
    }
    written = execute("gallery", GalleryConfig(**more.gather(given)), prefect=where.prefect)
    if console.mode.json:
        console.write_json(written)
        return
    told = {"page": written["uri"], "images": written["num_images"], "objects": written["num_objects"]}
    console.show("Gallery", told | {"files": written["files"], "bytes": written["size"]})
    if written["total"] > written["num_images"]:
        console.note(f"{written['num_images']:,} of {written['total']:,} images; --images shows more")
    if written["unreadable"]:
        console.warn(f"{written['unreadable']:,} images cannot be read; their cards say so")
