"""``boxmill fuse``: prediction sets of several models as one."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli import console
from flows.cli.options import Output, spread

FUSE_HELP = """Fuse predictions of several models by weighted boxes into a label set of its own.

Detections of a class that overlap become one, the mean of them by score; what only some of the models found counts
less. Reads label files alone.

Example: `boxmill fuse data/cells small large --weight 1 --weight 2 --out both`
"""


@spread
def fuse(
    dataset: Annotated[str, typer.Argument(help="Dataset, as `URI`.")],
    predictions: Annotated[
        list[str],
        typer.Argument(help="Two label sets of predictions or more, by name or `URI@labels/<set>:<version>`."),
    ],
    out: Annotated[str, typer.Option("--out", help="Name of the fused label set.")],
    weight: Annotated[
        list[float] | None,
        typer.Option(
            "--weight", help="How much a set's scores count; give it once for each set, in order. Default: all alike."
        ),
    ] = None,
    iou: Annotated[
        float, typer.Option("--iou", help="Detections of a class that overlap by more are one object.")
    ] = 0.55,
    score_threshold: Annotated[
        float, typer.Option("--score-threshold", help="Fused detections must score above this, 0 to 1.")
    ] = 0.0,
    max_detections: Annotated[int, typer.Option("--max-detections", min=1, help="An image, the best ones.")] = 300,
    *,
    output: Output,
) -> None:
    from workers.fuse import FuseConfig
    from workers.fuse import fuse as run

    config = FuseConfig(
        dataset=dataset,
        predictions=tuple(predictions),
        out=out,
        weights=tuple(weight or ()),
        iou_threshold=iou,
        score_threshold=score_threshold,
        max_detections=max_detections,
    )
    with console.results_only_on_stdout(), console.Bars() as bars:
        made = run(config, bars)
    if console.mode.json:
        console.write_json(made.to_json())
        return
    told = {
        "predictions": made.reference,
        "images": made.num_images,
        "objects": made.num_objects,
        "detections fused": "" if made.num_detections is None else made.num_detections,
        "found": made.found,
    }
    console.show("Fused", told)
