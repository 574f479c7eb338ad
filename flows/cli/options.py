"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from flows.cli import console
from flows.config import RAY_ADDRESS


def _set_json(value: bool) -> bool:
    console.mode.json = console.mode.json or value
    return value


def _set_debug(value: bool) -> bool:
    console.mode.debug = console.mode.debug or value
    return value


Json = Annotated[
    bool,
    typer.Option("--json", callback=_set_json, is_eager=True, help="One JSON document on stdout, all else on stderr."),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error.")
]
Prefect = Annotated[
    bool | None,
    typer.Option(
        "--prefect/--no-prefect",
        help="Run as a Prefect flow. Default: only where a Prefect API is configured (PREFECT_API_URL or profile).",
    ),
]
RayAddress = Annotated[str | None, typer.Option("--ray-address", help=f"{RAY_ADDRESS}.", metavar="ADDRESS")]
Split = Annotated[
    list[str] | None, typer.Option("--split", help="Only this split; give it again for more. Default: all.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting, as KEY=VALUE (JSON or text), e.g. augment.hue=0.1.", metavar="K=V"),
]
SourceOptions = Annotated[
    list[str] | None,
    typer.Option("--set", help="An option of the format, as KEY=VALUE (JSON or text).", metavar="K=V"),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="JSON or YAML file of settings; options win over it.", metavar="FILE")
]


def gather(config_file: str | None, settings: Sequence[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config file, then ``--set``, then the options that were given (not None).

    Raises:
        ValueError: an unreadable file, or a setting that is not KEY=VALUE.
    """
    values = _read_config(config_file) if config_file else {}
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {setting}: write KEY=VALUE, e.g. --set lr=0.002 or --set augment.hue=0.1")
        *path, last = key.split(".")
        place = values
        for name in path:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {setting}: {name} is {place!r}, which has no settings of its own")
        place[last] = _value(text)
    return values | {key: value for key, value in given.items() if value is not None}


def _read_config(uri: str) -> dict[str, Any]:
    from pipelines.storage import split_uri

    store, name = split_uri(uri)
    text = store.read_bytes(name).decode()
    if uri.endswith((".yaml", ".yml")):
        import yaml

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{uri} is no YAML: {' '.join(str(error).split())}") from None
    else:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{uri} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{uri} must hold one mapping of settings, not a {type(values).__name__}")
    return values


def _value(text: str) -> Any:
    """JSON where it is JSON (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def execute(step: str, config: Any, *, prefect: bool | None) -> dict[str, Any]:
    """Runs a stage as the options ask: directly, or as a Prefect flow; with progress bars."""
    from flows.prefect_home import has_prefect_api
    from flows.steps import STEPS

    run: Callable[..., dict[str, Any]] = STEPS[step][1]
    with console.results_only_on_stdout(), console.Bars() as bars:
        if prefect or (prefect is None and has_prefect_api()):
            return run_flow(step, config, bars)
        return run(config, bars)


def run_flow(name: str, config: Any, bars: console.Bars, out: str | None = None) -> dict[str, Any]:
    """Calls a flow of ``flows/<name>.py`` in this process, on the configured or an ephemeral server."""
    from importlib import import_module

    from flows.prefect_home import prefect_home
    from flows.progress import progress_to

    with prefect_home(out), progress_to(bars):
        return getattr(import_module(f"flows.{name}"), name)(config)
