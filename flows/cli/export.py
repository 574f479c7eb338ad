"""``boxmill export``: a dataset version in another format, and what that format could not carry."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.cli import console
from flows.cli.options import Flow, SourceOptions, Split, execute, gather, spread

_EXAMPLES = 3

HELP = """Write a dataset version, or predictions, in another format."""
COCO_HELP = """Write COCO JSON: annotations of a truth, a results file of predictions.

Example: `boxmill export coco data/cells --out exported/cells`
"""
TO_HELP = """Write any format that boxmill knows; what it cannot carry is counted. Its options are in docs/export.md.

Example: `boxmill export to yolo data/cells --out exported/cells --set task=segment`
"""

app = typer.Typer(help=HELP, no_args_is_help=True)


@app.callback()
def export() -> None:
    # Without a callback typer would make the only format the command itself.
    pass


Images = Annotated[
    bool | None, typer.Option("--images/--no-images", help="Write the image files as well. Default: the format's.")
]
ExportOut = Annotated[str, typer.Option("--out", help="Folder to write; for predictions the results file.")]


@app.command("coco", help=COCO_HELP)
@spread
def export_coco(
    dataset: Annotated[str, typer.Argument(help="Dataset or prediction reference.")],
    out: ExportOut,
    split: Split = None,
    images: Images = None,
    *,
    where: Flow,
) -> None:
    _export(where.prefect, dataset=dataset, out=out, splits=split or None, images=images)


@app.command("to", help=TO_HELP)
@spread
def export_to(
    format: Annotated[str, typer.Argument(help="lvis, yolo, voc, hf_parquet, label_studio, cvat or coco.")],
    dataset: Annotated[str, typer.Argument(help="Dataset reference.")],
    out: ExportOut,
    split: Split = None,
    images: Images = None,
    settings: SourceOptions = None,
    *,
    where: Flow,
) -> None:
    options = gather(None, settings, {})
    _export(
        where.prefect, format=format, dataset=dataset, out=out, splits=split or None, images=images, options=options
    )


def _export(prefect: bool | None, **values: Any) -> None:
    from flows.config import ExportConfig

    config = ExportConfig(**values)
    written = execute("export", config, prefect=prefect)
    if console.mode.json:
        console.write_json(written)
        return
    counts = {"images": written["num_images"], "objects": written["num_objects"]}
    console.show("Exported", {**{name or "all": uri for name, uri in written["files"].items()}, **counts})
    losses = written.get("losses", {})
    examples = written.get("examples", {})
    rows = [[what, ", ".join(examples.get(what, ())[:_EXAMPLES]), count] for what, count in losses.items()]
    if rows:
        console.show_table("Not carried over", ["what", "image#object, e.g.", "count"], rows, texts=2)
        console.warn(f"{config.format} could not carry all: see the table, and --json for more examples")
    if written.get("never_carried"):
        console.note(f"{config.format} has no place at all for {', '.join(written['never_carried'])}")
