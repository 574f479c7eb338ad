"""How a dataset version is named, and what can be wrong with one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.schema import SCHEMA_VERSION
from pipelines.storage import absolute

DEFAULT_LABEL_SET = "gt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REFERENCE = re.compile(r"(?P<uri>.+?)(?:@labels/(?P<label_set>[^:/@]+)(?::(?P<version>\d+))?)?")


class DatasetNotFound(ValueError):
    """Nothing to open at that reference."""


class EmptyDataset(ValueError):
    """There is not one image."""


class NewerSchema(ValueError):
    """Written by a later boxmill."""


class CategoryMismatch(ValueError):
    """Two sets of categories that must be equal are not."""


class DuplicateImages(ValueError):
    """Images of the same id are in the label set already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A parsed dataset reference; ``version`` None is the newest."""

    uri: str
    label_set: str = DEFAULT_LABEL_SET
    version: int | None = None

    def __str__(self) -> str:
        return format_reference(self.uri, self.label_set, self.version)


def parse_reference(reference: str) -> Reference:
    """``URI``, ``URI@labels/<set>`` or ``URI@labels/<set>:<version>``.

    Raises:
        ValueError: none of the three forms.
    """
    found = _REFERENCE.fullmatch(reference.strip())
    if found is None or (found["label_set"] and not _NAME.fullmatch(found["label_set"])):
        raise ValueError(
            f"{reference!r} is no dataset reference; write URI, URI@labels/<set> or URI@labels/<set>:<version>"
        )
    return Reference(
        uri=absolute(found["uri"]),
        label_set=found["label_set"] or DEFAULT_LABEL_SET,
        version=None if found["version"] is None else int(found["version"]),
    )


def format_reference(uri: str, label_set: str = DEFAULT_LABEL_SET, version: int | None = None) -> str:
    return f"{uri}@labels/{label_set}" + ("" if version is None else f":{version}")


def check_label_set_name(name: str) -> str:
    """Raises ValueError where the name would not fit into a reference or a path."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"label set {name!r}: use letters, digits, '.', '_' and '-', e.g. 'gt' or 'retinanet-1'")
    return name


def check_schema(metadata: Mapping[str, Any], where: str) -> None:
    needed = int(metadata.get("schema_version", 0))
    if needed > SCHEMA_VERSION:
        raise NewerSchema(
            f"{where} has schema version {needed}, this boxmill reads up to {SCHEMA_VERSION}; upgrade boxmill"
        )
