"""``route``: predictions divided into what is taken, what people look at, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import typer

from flows.cli import console
from flows.cli.options import Configured, Flow, execute, spread

ROUTE_HELP = """Divide predictions by confidence into three label sets: accept, review and reject.

An image with an object between the thresholds is reviewed; one whose objects are all sure is accepted. Each set is an
ordinary label set (`<name>-accept`, ...) that export, gallery, relabel and train take.

Example: `boxmill route data/cells predictions --accept 0.8 --accept WBC=0.9 --reject 0.3 --budget 500`
"""
_RULES, _REVIEW = "Rules", "What is reviewed"


@spread
def route(
    dataset: Annotated[str, typer.Argument(help="Dataset, or the reference of the predictions.")],
    predictions: Annotated[
        str | None, typer.Argument(help="Label set of the predictions, where the first names only the dataset.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What the sets' names begin with. Default: the predictions' own.")
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept",
            help="Score from which an object is sure, 0.7; or of one class, CLASS=SCORE. Give it again for more.",
            metavar="[CLASS=]SCORE",
            rich_help_panel=_RULES,
        ),
    ] = None,
    reject: Annotated[
        list[str] | None,
        typer.Option(
            "--reject",
            help="Score below which an object is noise, 0.3; likewise.",
            metavar="[CLASS=]SCORE",
            rich_help_panel=_RULES,
        ),
    ] = None,
    empty: Annotated[
        Literal["accept", "review", "reject"] | None,
        typer.Option(
            "--empty", help="Where images go that have nothing but noise. Default: reject.", rich_help_panel=_RULES
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            min=0,
            help="Most images to review, the most uncertain ones. Default: all.",
            rich_help_panel=_REVIEW,
        ),
    ] = None,
    uncertainty: Annotated[
        Literal["margin", "entropy", "least_confident"] | None,
        typer.Option("--uncertainty", help="Of an object. Default: margin, 1 - |2s - 1|.", rich_help_panel=_REVIEW),
    ] = None,
    aggregate: Annotated[
        Literal["max", "mean", "sum"] | None,
        typer.Option("--aggregate", help="Of an image, over its objects. Default: max.", rich_help_panel=_REVIEW),
    ] = None,
    max_uncertainty: Annotated[
        float | None,
        typer.Option(
            "--max-uncertainty",
            min=0,
            help="Review also images above this whose scores are all sure.",
            rich_help_panel=_REVIEW,
        ),
    ] = None,
    audit: Annotated[
        float | None,
        typer.Option(
            "--audit",
            min=0,
            max=1,
            help="Share of the accepted images to review all the same.",
            rich_help_panel=_REVIEW,
        ),
    ] = None,
    *,
    more: Configured,
    where: Flow,
) -> None:
    from flows.config import RouteConfig
    from pipelines.routing import find_predictions

    given = {
        "predictions": find_predictions(dataset, predictions),
        "name": name,
        **_thresholds("accept", accept),
        **_thresholds("reject", reject),
        "empty": empty,
        "review_budget": budget,
        "uncertainty": uncertainty,
        "aggregate": aggregate,
        "max_uncertainty": max_uncertainty,
        "audit": audit,
    }
    routed = execute("route", RouteConfig(**more.gather(given)), prefect=where.prefect)
    if console.mode.json:
        console.write_json(routed)
    else:
        _show(routed)


def _thresholds(kind: str, given: Sequence[str] | None) -> dict[str, Any]:
    """``0.7`` is of all classes, ``NAME=0.9`` of one; what was not given stays None."""
    general: float | None = None
    classes: dict[str, float] = {}
    for text in given or ():
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"--{kind} {text}: write SCORE or CLASS=SCORE, e.g. --{kind} person=0.8") from None
        if equals:
            classes[name] = value
        else:
            general = value
    return {kind: general, f"{kind}_class": classes or None}


def _show(routed: Mapping[str, Any]) -> None:
    total = {"predictions": routed["predictions"], "images": routed["num_images"], "noise": routed["num_noise"]}
    console.show("Routed", total | ({"found": "it was there already"} if routed["found"] else {}))
    rows = [
        [route, version["reference"] if version else "-", *_counts(version)]
        for route, version in routed["sets"].items()
    ]
    console.show_table("Sets", ["route", "label set", "images", "objects"], rows, texts=2)
    reasons = [[route, reason, count] for route, told in routed["reasons"].items() for reason, count in told.items()]
    console.show_table("Why", ["route", "reason", "images"], reasons, texts=2)


def _counts(version: Mapping[str, Any] | None) -> list[int]:
    return [version["num_images"], version["num_objects"]] if version else [0, 0]
