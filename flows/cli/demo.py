"""``boxmill demo``: the whole path on drawn scenes, with a bar that it must pass."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from flows.cli import console
from flows.cli.options import Output, run_flow, spread
from flows.cli.stages import summary

HELP = """Run the whole path on drawn scenes: the lifecycle flow on Prefect's ephemeral server and embedded Ray.

Ends with 1 if the trained AP50 misses 0.80, or if the untrained detector reaches 0.05 (the measure would then be
worth nothing).

Example: `boxmill demo --out demo-out`
"""

LEAST_AP50 = 0.80
MOST_UNTRAINED_AP50 = 0.05


@spread
def demo(
    out: Annotated[str, typer.Option("--out", help="Folder of all that is made.")] = "demo-out",
    num_train: Annotated[int, typer.Option(min=2, help="Images to learn from.")] = 500,
    num_val: Annotated[int, typer.Option(min=2, help="Images to measure on.")] = 100,
    epochs: Annotated[int, typer.Option(min=1)] = 6,
    image_size: Annotated[int, typer.Option(min=64, help="Longer side in model pixels.")] = 256,
    workers: Annotated[int, typer.Option(min=1, help="Training processes.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    *,
    output: Output,
) -> None:
    from flows.config import LifecycleConfig

    config = LifecycleConfig(
        out=out,
        ingest={
            "source": "synthetic",
            "options": {"num_train": num_train, "num_val": num_val, "size": [256, 256], "seed": seed},
        },
        train={
            "detector": "retinanet_lite0",
            "epochs": epochs,
            "image_size": image_size,
            "workers": workers,
            "seed": seed,
            # Each epoch's validation costs time that two cores do not have; the loss curve is per epoch all the same.
            "val_every": max(1, epochs // 3),
        },
        evaluate={"splits": ["val"], "title": "boxmill demo"},
    )
    start = time.monotonic()
    with console.results_only_on_stdout(), console.Bars() as bars:
        result = run_flow("lifecycle", config, bars, out)
    result["minutes"] = (time.monotonic() - start) / 60
    misses = _misses(result)
    if console.mode.json:
        console.write_json(result | {"misses": misses})
    else:
        console.show("boxmill demo", summary(result) | {"minutes": result["minutes"]})
    for miss in misses:
        console.warn(miss)
    if misses:
        raise typer.Exit(console.FAILURE)


def _misses(result: dict[str, Any]) -> list[str]:
    trained, untrained = result["metrics"]["AP50"] or 0.0, result["baseline"]["AP50"] or 0.0
    misses = []
    if trained < LEAST_AP50:
        misses.append(f"AP50 {trained:.3f} is below {LEAST_AP50:.2f}")
    if untrained >= MOST_UNTRAINED_AP50:
        misses.append(f"the untrained detector's AP50 {untrained:.3f} is not below {MOST_UNTRAINED_AP50:.2f}")
    return misses
