"""Pydantic models made from the workers' dataclasses, so that a setting is written down once.

Names, types, defaults and descriptions come from the dataclass and the ``Attributes`` of its docstring; unknown keys
are refused. Prefect checks a flow's parameters with these and draws its form from them.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model


class Strict(BaseModel):
    """A config: frozen, and an unknown key is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def strict_model(name: str, dataclass_type: type, *, without: Collection[str] = ()) -> type[Strict]:
    """A ``Strict`` model with the fields of a dataclass.

    Args:
        name: of the model.
        dataclass_type: whose fields to take; fields that are dataclasses become ``Strict`` models themselves.
        without: fields to leave out.
    """
    hints = get_type_hints(dataclass_type)
    described = arguments(dataclass_type.__doc__ or "")
    definitions: dict[str, Any] = {}
    for field in fields(dataclass_type):
        if field.name in without:
            continue
        options: dict[str, Any] = {"description": described.get(field.name)}
        annotation = _plain(hints[field.name])
        if is_dataclass(annotation):
            annotation = strict_model(annotation.__name__, annotation)
            options["default_factory"] = annotation
        elif field.default is not MISSING:
            options["default"] = field.default
        elif field.default_factory is not MISSING:
            options["default_factory"] = field.default_factory
        definitions[field.name] = (annotation, Field(**options))
    return create_model(name, __base__=Strict, __doc__=(dataclass_type.__doc__ or "").partition("\n")[0], **definitions)


def build(dataclass_type: type, values: Mapping[str, Any]) -> Any:
    """The dataclass from a model's ``model_dump()``; its own checks raise ValueError."""
    hints = get_type_hints(dataclass_type)
    built = {name: build(hints[name], value) if is_dataclass(hints[name]) else value for name, value in values.items()}
    return dataclass_type(**built)


def _plain(annotation: Any) -> Any:
    """Mappings and sequences as dict and tuple: pydantic would otherwise keep a proxy that JSON does not know."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Mapping or getattr(origin, "__name__", "") == "Mapping":
        return dict[arguments]
    if origin in (Union, types.UnionType):
        return Union[tuple(_plain(argument) for argument in arguments)]  # noqa: UP007
    return annotation


def arguments(docstring: str) -> dict[str, str]:
    """The ``name, other: text`` entries under ``Args:`` or ``Attributes:`` of a Google docstring, by name."""
    # Names that go on in the next line are one entry.
    text = re.sub(r"^( {4}(?:\w+, )*\w+,)\n +", r"\1 ", inspect.cleandoc(docstring), flags=re.MULTILINE)
    lines = iter(text.splitlines())
    for line in lines:
        if line in ("Args:", "Attributes:"):
            break
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        entry = re.fullmatch(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith(" " * 8):
            for name in names:
                found[name] += " " + line.strip()
        elif line:
            break
    return found
