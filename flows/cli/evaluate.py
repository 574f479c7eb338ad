"""``evaluate``: options into a config, numbers into tables, gates into an exit code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from flows.cli import console
from flows.cli.options import Configured, OnRay, Split, execute, spread

EVALUATE_HELP = """Measure predictions against truth by COCO's rules or others', and tell what goes wrong.

Example: `boxmill evaluate data/cells data/cells@labels/predictions --split test --report report.html`
"""


@spread
def evaluate(
    dataset: Annotated[str, typer.Argument(help="Reference of the truth.")],
    predictions: Annotated[str, typer.Argument(help="Reference of the predictions.")],
    split: Split = None,
    iou_type: Annotated[
        Literal["bbox", "segm", "keypoints"] | None,
        typer.Option("--iou-type", help="Compare boxes, masks or keypoints. Default: bbox."),
    ] = None,
    protocol: Annotated[
        Literal["coco", "voc07", "voc10", "lvis"] | None,
        typer.Option(help="Whose rules: COCO, PASCAL VOC of 2007 or from 2010, LVIS. Default: coco."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="Also measure parts, e.g. split,source,size or a column.", metavar="COLUMN,..."),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under", help="Exit with 6 if this number is not reached; give it again for more.", metavar="AP=0.5"
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Reference of other predictions to compare with.")
    ] = None,
    report: Annotated[str | None, typer.Option("--report", help="Write the HTML report here, any fsspec URL.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model whose training curves the report shows.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Write the numbers as JSON here, any fsspec URL.")] = None,
    markdown: Annotated[str | None, typer.Option(help="Write them as Markdown here, any fsspec URL.")] = None,
    matches: Annotated[
        str | None, typer.Option("--matches", help="Write every match as Parquet into this folder, any fsspec URL.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache", help="Folder that remembers matches: only changed shards are matched again. Any fsspec URL."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray tasks that match shards at once, for COCO's numbers alone.")
    ] = None,
    resamples: Annotated[
        int | None, typer.Option(min=0, help="Draws of the images for intervals, 0 for none. Default: 1000.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
    *,
    more: Configured,
    where: OnRay,
) -> None:
    from flows.config import EvaluateConfig
    from flows.errors import BelowGate

    given = {
        "dataset": dataset,
        "predictions": predictions,
        "splits": split or None,
        "iou_type": iou_type,
        "protocol": protocol,
        "by": None if by is None else [name.strip() for name in by.split(",") if name.strip()],
        "fail_under": fail_under or None,
        "compare": compare,
        "report": report,
        "model": model,
        "metrics": metrics,
        "markdown": markdown,
        "matches": matches,
        "cache": cache,
        "workers": workers,
        "ray_address": where.ray_address,
        "resamples": resamples,
        "title": title,
    }
    config = EvaluateConfig(**more.gather(given))
    try:
        found = execute("evaluate", config, prefect=where.prefect)
    except BelowGate as error:
        found = error.found
    if console.mode.json:
        console.write_json({key: value for key, value in found.items() if key not in ("figure", "markdown")})
    else:
        _show(found, cached=config.cache is not None)
    if found["missed"]:
        for told in found["missed"]:
            console.warn(told)
        raise typer.Exit(console.BELOW)


def _show(found: dict[str, Any], *, cached: bool) -> None:
    console.show(f"{found['protocol']} metrics of {found['iou_type']}", found["metrics"])
    names = ["AP", "AP50", "num_truths", "num_detections"]
    names = [name for name in names if any(name in numbers for numbers in found["per_class"].values())]
    rows = [[name, *(numbers[key] for key in names)] for name, numbers in found["per_class"].items()]
    console.show_table("By class", ["class", *(name.removeprefix("num_") for name in names)], rows)
    for part in found["slices"]:
        keys = ("AP", "AP50", "AR", "num_images", "num_truths", "num_detections")
        rows = [[name, *(of[key] for key in keys)] for name, of in part["parts"].items()]
        console.show_table(f"By {part['by']}", [part["by"], *(key.removeprefix("num_") for key in keys)], rows)
    if found["comparison"] is not None:
        keys = ("first", "second", "difference", "low", "high", "p_value")
        rows = [[name, *(of[key] for key in keys)] for name, of in found["comparison"]["overall"].items()]
        console.show_table("Compared", ["number", "other", "these", *keys[2:]], rows)
    if found["report"]:
        console.note(f"report: {found['report']}")
    if found["matches"]:
        console.note(f"matches: {found['matches']}")
    if found["shards_matched"] is not None:
        known = f", known from the cache: {found['shards_known']}" if cached else ""
        console.note(f"shards matched: {found['shards_matched']}{known}")
