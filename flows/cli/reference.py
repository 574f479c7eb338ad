"""The references in docs/ (all commands, all settings), made from the program itself.

``python -m flows.cli.reference`` rewrites them; a test fails where it is out of step.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from flows.cli.app import app
from flows.config import IngestConfig, LabelConfig, TrainConfig
from flows.mirror import Strict, arguments

BEGIN = "<!-- made by `python -m flows.cli.reference`; do not edit below -->\n"


def reference() -> str:
    """Markdown: a section for every command, with its example, arguments and options."""
    return "\n".join(
        line for path, command in commands(typer.main.get_command(app)) for line in _section(path, command)
    )


def commands(command: Any, path: tuple[str, ...] = ("boxmill",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that name it; hidden ones are left out."""
    below = getattr(command, "commands", None)
    if not below:
        yield path, command
        return
    for name, child in below.items():
        if not child.hidden:
            yield from commands(child, (*path, name))


def _section(path: tuple[str, ...], command: Any) -> Iterator[str]:
    yield f"## {' '.join(path)}\n"
    yield f"{(command.help or '').strip()}\n"
    rows = [row for parameter in command.params if (row := _row(parameter))]
    if rows:
        yield "| | | default |\n| --- | --- | --- |"
        yield from rows
    yield ""


def _row(parameter: Any) -> str | None:
    if parameter.name == "help":
        return None
    argument = parameter.param_type_name == "argument"
    names = f"`{parameter.name.upper()}`" if argument else ", ".join(f"`{o}`" for o in _names(parameter))
    default = "needed" if parameter.required else _default(parameter.default)
    text = (getattr(parameter, "help", None) or "").replace("|", "\\|").replace("\n", " ")
    return f"| {names} | {text} | {default} |"


def _names(parameter: Any) -> list[str]:
    return [*parameter.opts, *parameter.secondary_opts]


def _default(value: Any) -> str:
    return "" if value is None or value is False or value == () or callable(value) else f"`{value}`"


def settings(model: type[Strict]) -> str:
    """Markdown: every setting of a config with its default."""
    lines = ["| setting | | default |", "| --- | --- | --- |", *_settings(model, "")]
    return "\n".join(lines)


def _settings(model: type[Strict], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        default = "needed" if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, Strict):
            yield from _settings(type(default), f"{prefix}{name}.")
            continue
        text = (field.description or "").replace("|", "\\|").replace("``", "`")
        shown = default if default == "needed" else f"`{json.dumps(default)}`"
        yield f"| `{prefix}{name}` | {text} | {shown} |"


def sources() -> str:
    """Markdown: every kind of source with its options."""
    from pipelines.sources import SOURCES

    return "\n".join(_options(kind, _imported(place), skip=()) for kind, place in SOURCES.items())


def exports() -> str:
    """Markdown: every export with the options of its own."""
    from pipelines.exports import EXPORTS

    given = ("dataset", "out_uri", "splits", "images")
    return "\n".join(_options(kind, _imported(place), skip=given) for kind, place in EXPORTS.items())


def _imported(place: str) -> Any:
    module, _, path = place.partition(":")
    return reduce(getattr, path.split("."), import_module(module))


def _options(kind: str, factory: Any, *, skip: Collection[str]) -> str:
    described = arguments(inspect.getdoc(factory) or "")
    lines = [f"### {kind}\n"]
    parameters = [p for name, p in inspect.signature(factory).parameters.items() if name not in skip]
    if not parameters:
        return f"{lines[0]}\nNo options.\n"
    lines += ["| option | | default |", "| --- | --- | --- |"]
    for parameter in parameters:
        default = "needed" if parameter.default is parameter.empty else f"`{json.dumps(parameter.default)}`"
        text = described.get(parameter.name, "").replace("|", "\\|").replace("``", "`")
        lines.append(f"| `{parameter.name}` | {text} | {default} |")
    return "\n".join(lines) + "\n"


def detectors() -> str:
    """Markdown: every detector with its size, and all known weights."""
    from detectors.figures import read_figures
    from detectors.weights import KNOWN_WEIGHTS, weights_for

    lines = ["| detector | task | backbone | input | parameters | multiply-adds | weights |", "| --- " * 7 + "|"]
    for name, found in read_figures().items():
        known = ", ".join(f"`{weights.name}`" for weights in weights_for(name, found.backbone))
        size = f"{found.image_size} | {found.parameters / 1e6:.1f} M | {found.multiply_adds / 1e9:.1f} G"
        lines.append(f"| `{name}` | {found.task} | {found.backbone} | {size} | {known} |")
    lines += ["", "## Known weights\n", "| weights | trained on | licence | sha256 | file |", "| --- " * 5 + "|"]
    for weights in KNOWN_WEIGHTS:
        digest = f"`{weights.sha256[:16]}`" if weights.sha256 else "not published"
        link = f"[{weights.url.rpartition('/')[2]}]({weights.url})"
        lines.append(f"| `{weights.name}` | {weights.trained_on} | {weights.licence} | {digest} | {link} |")
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": reference,
    "train.md": lambda: settings(TrainConfig),
    "label.md": lambda: settings(LabelConfig),
    "ingest.md": lambda: f"### Settings\n\n{settings(IngestConfig)}\n\n{sources()}",
    "export.md": exports,
    "detectors.md": detectors,
}
DOCS = Path(__file__).resolve().parents[2] / "docs"


def in_step(page: str) -> str:
    """What a page of ``docs`` should hold: its own text, then what is made from the program."""
    kept, _, _ = (DOCS / page).read_text().partition(BEGIN)
    return f"{kept}{BEGIN}\n{PAGES[page]().rstrip()}\n"


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / page).write_text(in_step(page))
