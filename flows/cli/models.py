"""``boxmill detectors`` and ``boxmill models``: what there is to start from, and released weights made a model."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from flows.cli import console
from flows.cli.options import Output, SourceOptions, gather, spread

DETECTORS_HELP = """List the detectors: task, backbone, known weights, input, parameters, multiply-adds.

With the name of one: every option that it has. With a part of names: the detectors that have it.

Example: `boxmill detectors efficientdet_d0`
"""
HELP = """Models that were not trained here."""
IMPORT_HELP = """Make a model of released weights: it labels and is evaluated like a trained one.

Known weights are fetched and compared with their digest; others are given by path, URL or hub id, and need to be told
their categories.

Example: `boxmill models import retinanet_r50_fpn --weights coco --out models/coco`
"""

app = typer.Typer(help=HELP, no_args_is_help=True)


@app.callback()
def models() -> None:
    # Without a callback typer would make the only command the group itself.
    pass


@spread
def detectors(
    name: Annotated[str | None, typer.Argument(help="A detector, or a part of names.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Count parameters and multiply-adds anew, instead of reading them.")
    ] = False,
    *,
    output: Output,
) -> None:
    from detectors.figures import read_figures

    known = read_figures()
    chosen = [name] if name in known else [other for other in known if name is None or name in other]
    if not chosen:
        from detectors.catalog import find_entry

        find_entry(name or "")  # tells near names
    rows = {one: _described(one, measure=measure) for one in chosen}
    options = _options(name) if name in known else None
    if console.mode.json:
        console.write_json({"detectors": rows} | ({} if options is None else {"options": options}))
        return
    columns = ["detector", "task", "backbone", "weights", "input", "parameters", "multiply-adds"]
    console.show_table("Detectors", columns, [_cells(one, row) for one, row in rows.items()], texts=4)
    if options is not None and name is not None:
        for weights in rows[name]["weights"]:
            console.show(f"Weights {weights.pop('name')}", weights)
        texts = [[o["option"], o["type"], _shown(o["default"]), o["text"]] for o in options]
        console.show_table("Options", ["option", "type", "default", ""], texts, texts=4)
    else:
        console.note(f"counted with {_num_classes()} classes; boxmill detectors NAME lists the options of one")


@app.command("import", help=IMPORT_HELP)
@spread
def import_(
    detector: Annotated[str, typer.Argument(help="A name of `boxmill detectors`.")],
    out: Annotated[str, typer.Option("--out", help="Directory of the model, any fsspec URL.")],
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="coco, a name of known weights, a path, URL or hub id (hf://owner/name); #sha256=DIGITS checks it.",
        ),
    ] = "coco",
    categories: Annotated[
        str | None,
        typer.Option(
            help="coco, or a JSON file of the classes' names in order. Default: what is known of the weights."
        ),
    ] = None,
    settings: SourceOptions = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another model in --out.")] = False,
    *,
    output: Output,
) -> None:
    from workers.model_import import ImportConfig, import_model

    config = ImportConfig(
        detector=detector,
        out=out,
        weights=weights,
        categories=categories,
        detector_options=gather(None, settings, {}),
        overwrite=overwrite,
    )
    with console.results_only_on_stdout():
        model = import_model(config)
    if console.mode.json:
        console.write_json(asdict(model))
        return
    console.show("Model", {"uri": model.uri, "digest": model.digest, **weights_for_people(model.loaded_weights)})


def weights_for_people(loaded: dict[str, Any] | None) -> dict[str, str]:
    """What a model started from, as a row of a table; none where it was random."""
    if loaded is None:
        return {}
    from detectors.checkpoint import describe_report

    return {"weights": describe_report(loaded)}


def _described(name: str, *, measure: bool) -> dict[str, Any]:
    """A detector as a JSON object."""
    from detectors import figures
    from detectors.weights import weights_for

    found = figures.measure(name) if measure else figures.read_figures()[name]
    weights = [
        {key: getattr(known, key) for key in ("name", "trained_on", "url", "sha256", "licence")}
        for known in weights_for(name, found.backbone)
    ]
    return {**asdict(found), "weights": weights}


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    return [
        name,
        row["task"],
        row["backbone"],
        ", ".join(dict.fromkeys(weights["trained_on"] for weights in row["weights"])) or "-",
        f"{row['image_size']:,}",
        f"{row['parameters'] / 1e6:.1f} M",
        f"{row['multiply_adds'] / 1e9:.1f} G",
    ]


def _num_classes() -> int:
    from detectors.figures import NUM_CLASSES

    return NUM_CLASSES


def _options(name: str | None) -> list[dict[str, Any]]:
    """Every option of a detector: ``option``, ``type``, ``default`` and ``text``."""
    from detectors.catalog import find_entry
    from flows.mirror import arguments

    defaults = find_entry(name or "").options
    hints = get_type_hints(type(defaults))
    described: dict[str, str] = {}
    for part in reversed(type(defaults).__mro__):  # options of several classes are described where they are written
        described |= arguments(part.__doc__ or "")
    return [
        {
            "option": field.name,
            "type": type_name(hints[field.name]),
            "default": getattr(defaults, field.name),
            "text": described.get(field.name, "").replace("``", ""),
        }
        for field in fields(defaults)
    ]


def type_name(hint: Any) -> str:
    """A type as people write it: ``float``, ``focal | ce``, ``tuple of float``."""
    if get_origin(hint) is Literal:
        return " | ".join(str(value) for value in get_args(hint))
    if get_origin(hint) is tuple:
        inner = [part for part in get_args(hint) if part is not ...]
        return "tuple of " + (" | ".join(dict.fromkeys(type_name(part) for part in inner)))
    if get_args(hint):
        return " | ".join(dict.fromkeys(type_name(part) for part in get_args(hint)))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _shown(value: Any) -> str:
    return ", ".join(str(part) for part in value) or "()" if isinstance(value, tuple) else str(value)
