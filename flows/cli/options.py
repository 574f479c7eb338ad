"""Options that several commands share."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from flows.cli import console
from flows.config import RAY_ADDRESS


def _set_json(value: bool) -> bool:
    console.mode.json = console.mode.json or value
    return value


def _set_debug(value: bool) -> bool:
    console.mode.debug = console.mode.debug or value
    return value


RUNNING = "Running"
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=_set_json,
        is_eager=True,
        help="One JSON document on stdout, all else on stderr.",
        rich_help_panel=RUNNING,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        callback=_set_debug,
        is_eager=True,
        help="Show the traceback of an error.",
        rich_help_panel=RUNNING,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What every command takes."""

    json_output: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class Flow(Output):
    """Of commands that may run as a Prefect flow."""

    prefect: Annotated[
        bool | None,
        typer.Option(
            "--prefect/--no-prefect",
            help="Run as a Prefect flow. Default: only where a Prefect API is configured (PREFECT_API_URL or profile).",
            rich_help_panel=RUNNING,
        ),
    ] = None


RayAddress = Annotated[
    str | None, typer.Option("--ray-address", help=f"{RAY_ADDRESS}.", metavar="ADDRESS", rich_help_panel=RUNNING)
]


@dataclass(frozen=True, kw_only=True)
class OnRay(Flow):
    """Of commands that work on Ray."""

    ray_address: RayAddress = None


@dataclass(frozen=True, kw_only=True)
class Configured:
    """Of commands with more settings than options."""

    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other setting, as KEY=VALUE (JSON or text), e.g. augment.hue=0.1.",
            metavar="K=V",
        ),
    ] = None
    config: Annotated[
        str | None,
        typer.Option("--config", help="JSON or YAML file of settings; options win over it.", metavar="FILE"),
    ] = None

    def gather(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return gather(self.config, self.settings, given)


Split = Annotated[
    list[str] | None, typer.Option("--split", help="Only this split; give it again for more. Default: all.")
]
SourceOptions = Annotated[
    list[str] | None,
    typer.Option("--set", help="An option of the format, as KEY=VALUE (JSON or text).", metavar="K=V"),
]


Limit = Annotated[int, typer.Option("--limit", min=0, help="Most rows to list; 0 for all.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where nobody sits at a terminal.")]


@dataclass(frozen=True, kw_only=True)
class ImageIds:
    """Which images: as arguments, from a file, or both."""

    image_ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of images, as `boxmill get` and exports know them.")
    ] = None
    ids_from: Annotated[
        str | None,
        typer.Option(
            "--ids-from", help="File of ids, one a line, any fsspec URL; - is standard input.", metavar="FILE"
        ),
    ] = None

    def read(self) -> list[str]:
        """All of them.

        Raises:
            ValueError: none were given.
            FileNotFoundError: no such file.
        """
        ids = list(self.image_ids or ())
        if self.ids_from == "-":
            ids += sys.stdin.read().splitlines()
        elif self.ids_from is not None:
            from pipelines.storage import read_uri

            try:
                ids += read_uri(self.ids_from).decode().splitlines()
            except UnicodeDecodeError:
                raise ValueError(f"{self.ids_from} is no text file of ids in UTF-8") from None
        ids = [image_id for image_id in ids if image_id]
        if not ids:
            raise ValueError("no image is named: give ids, or --ids-from FILE")
        return ids


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are dataclasses of options are spread over their fields, for typer to read.

    So options that many commands share are declared once, and commands get them as one value.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _fields(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY))

    @wraps(command)
    def called(**values: Any) -> None:
        gathered = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **gathered)

    vars(called)["__signature__"] = inspect.Signature(parameters)
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _fields(group: Any) -> Iterator[inspect.Parameter]:
    """A group's own options first, then what it has from others: the help ends with what all commands share."""
    hints = get_type_hints(group, include_extras=True)
    order = [name for base in group.__mro__ for name in vars(base).get("__annotations__", ())]
    for field in sorted(fields(group), key=lambda field: order.index(field.name)):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )


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
