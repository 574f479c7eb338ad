"""``train``, ``label`` and ``lifecycle``: options into configs, results into tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.cli import console
from flows.cli.models import weights_for_people
from flows.cli.options import (
    Configured,
    OnRay,
    Output,
    RayAddress,
    Split,
    execute,
    run_flow,
    spread,
)
from workers.train_config import VALIDATED

TRAIN_HELP = """Train a detector on a dataset. The same command again resumes.

Example: `boxmill train data/cells --out models/cells --epochs 15`
"""
LABEL_HELP = """Label a dataset, a folder, tar or zip of images, WebDataset tars or a list of URLs; again, it resumes.

Example: `boxmill label data/cells --model models/cells --split test --out predictions`
"""
LIFECYCLE_HELP = """Run everything as one Prefect flow: ingest, baseline, train, label, evaluate, report, export.

Example: `boxmill lifecycle --out runs/one --set train.epochs=5 --set ingest.options.num_train=200`
"""

Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        help="Model directory that train wrote, any fsspec URL; give it again for more over one read of the images.",
    ),
]


@spread
def train(
    dataset: Annotated[str, typer.Argument(help="Dataset reference: `URI` or `URI@labels/<set>[:<version>]`.")],
    out: Annotated[str, typer.Option("--out", help="Directory of the model, any fsspec URL.")],
    detector: Annotated[
        str | None, typer.Option(help="A name of `boxmill detectors`, or package.module:factory.")
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights to start from: coco, imagenet, a name of `boxmill detectors NAME`, a path, URL or hub id; or "
            "none. Default: imagenet."
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="Weights for the backbone alone, named as in --pretrained.")
    ] = None,
    train_split: Annotated[str | None, typer.Option(help="Split to learn from.")] = None,
    val_split: Annotated[str | None, typer.Option(help="Split to validate on after each epoch; none for none.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    image_size: Annotated[int | None, typer.Option(min=32, help="Longer side in model pixels.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a worker and step.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that train together.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace another run's model in --out.")] = None,
    *,
    more: Configured,
    where: OnRay,
) -> None:
    from flows.config import TrainConfig

    given = {
        "dataset": dataset,
        "out": out,
        "detector": detector,
        "train_split": train_split,
        "epochs": epochs,
        "image_size": image_size,
        "batch_size": batch_size,
        "workers": workers,
        "lr": lr,
        "seed": seed,
        "overwrite": overwrite,
        "ray_address": where.ray_address,
    }
    values = more.gather(given)
    for name, value in (("val_split", val_split), ("pretrained_backbone", backbone), ("pretrained", pretrained)):
        if value is not None:
            values[name] = None if value == "none" else value
    if pretrained == "none":
        values["pretrained_backbone"] = None
    model = execute("train", TrainConfig(**values), prefect=where.prefect)
    if console.mode.json:
        console.write_json(model)
        return
    numbers = {name: model["metrics"][name] for name in VALIDATED if name in model["metrics"]}
    rows = {"uri": model["uri"], "digest": model["digest"], "minutes": model["seconds"] / 60, **numbers}
    console.show("Model", rows | weights_for_people(model["loaded_weights"]))


@spread
def label(
    images: Annotated[
        str,
        typer.Argument(
            help="Dataset reference; or a folder, tar, tar.gz or zip of images, shard-{000..099}.tar, a .txt of URLs."
        ),
    ],
    model: Models,
    out: Annotated[
        str | None,
        typer.Option("--out", help="Name of the predictions' label set; for a folder or archive the URI to write."),
    ] = None,
    split: Split = None,
    score_threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Keep detections above this.")] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            "--thresholds",
            help="JSON file of thresholds by class, or what `boxmill evaluate --metrics` wrote: its best ones.",
            metavar="FILE",
        ),
    ] = None,
    near_duplicates: Annotated[
        bool | None,
        typer.Option(
            "--near-duplicates",
            help="Label pictures that look the same once, and copy what was found. Looks at all images once more.",
        ),
    ] = None,
    coco_results: Annotated[str | None, typer.Option(help="Also write a COCO results file here.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that label.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Look at larger images in tiles, pixels a side.")] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of all machines together: tells what a million images cost.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Label only the images of tasks that were given up.")
    ] = False,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Label only the images that could not be read or decoded.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 if an image was quarantined.")] = False,
    *,
    more: Configured,
    where: OnRay,
) -> None:
    from flows.config import LabelConfig
    from flows.summaries import account_rows

    if retry_failed and retry_quarantined:
        raise ValueError("--retry-failed and --retry-quarantined: give one, then the other")
    given = {
        "input": images,
        "model": model[0],
        "more_models": model[1:] or None,
        "out": out,
        "splits": split or None,
        "score_threshold": score_threshold,
        "thresholds": thresholds,
        "near_duplicates": near_duplicates,
        "coco_results": coco_results,
        "workers": workers,
        "batch_size": batch_size,
        "tile": tile,
        "price_per_hour": price_per_hour,
        "retry": "failed" if retry_failed else "quarantined" if retry_quarantined else None,
        "ray_address": where.ray_address,
    }
    predictions = execute("label", LabelConfig(**more.gather(given)), prefect=where.prefect)
    every = (predictions, *predictions.get("others", ()))
    if console.mode.json:
        console.write_json(predictions)
    else:
        for one in every:
            shown = {k: v for k, v in one.items() if v is not None and k not in ("account", "others")}
            console.show("Predictions", shown)
            if one.get("account") is not None:
                console.show("What it took", account_rows(one["account"]))
    for one in every:
        _warn_of_bad(one, of=f"{one['reference']}: " if len(every) > 1 else "", again=given["retry"] is not None)
    if strict and any(one["num_quarantined"] for one in every):
        raise typer.Exit(console.INCOMPLETE)


def _warn_of_bad(predictions: Mapping[str, Any], *, of: str, again: bool) -> None:
    """Images without predictions and refused members, where there are any; ``again`` where such are tried again."""
    bad, account = predictions["num_quarantined"], predictions.get("account")
    # A retry counts the rows that are still bad, its account those that it tried; what was refused is in neither.
    failed = bad if account is None or again else account["quarantined"]
    if failed:
        console.warn(
            f"{of}{failed} image(s) have no predictions; see _quarantine beside the predictions, and try again with "
            "--retry-quarantined or, those of tasks that were given up, with --retry-failed"
        )
    if bad > failed:
        console.warn(
            f"{of}{bad - failed} member(s) of the input were refused and are not among the images; "
            "`boxmill inspect PREDICTIONS --ledger` says why"
        )


@spread
def lifecycle(
    out: Annotated[str, typer.Option("--out", help="Folder of all that is made, any fsspec URL.")],
    *,
    more: Configured,
    ray_address: RayAddress = None,
    output: Output,
) -> None:
    from flows.config import LifecycleConfig

    checked = LifecycleConfig(**more.gather({"out": out, "ray_address": ray_address}))
    with console.results_only_on_stdout(), console.Bars() as bars:
        result = run_flow("lifecycle", checked, bars, out)
    if console.mode.json:
        console.write_json(result)
    else:
        console.show("Lifecycle", summary(result))


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to see of a lifecycle's result."""
    baseline = result["baseline"]
    return {
        **({} if baseline is None else {"AP50 untrained": _metric(baseline["AP50"])}),
        "AP50": _metric(result["metrics"]["AP50"]),
        "AP": _metric(result["metrics"]["AP"]),
        "training minutes": result["model"]["seconds"] / 60,
        "dataset": result["dataset"]["reference"],
        "model": result["model"]["uri"],
        "predictions": result["export"],
        "report": result["report"],
    }


def _metric(value: float | None) -> str:
    return "no truth to measure on" if value is None else f"{value:.3f}"


def step(name: str, config_json: str, attempt: str) -> None:
    """What a Ray Job runs: one stage, told in marked lines."""
    from flows.steps import run_marked

    raise typer.Exit(run_marked(name, config_json, attempt))
