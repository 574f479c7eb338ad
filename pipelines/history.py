"""The versions of a dataset's label sets: what each commit did, and how to name what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines import delta
from pipelines.references import DatasetNotFound, format_reference, parse_reference
from pipelines.storage import Store
from pipelines.versions import list_label_sets, open_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionEntry:
    """One commit of a label set.

    Attributes:
        reference: that names this version for ever.
        label_set, version: the same in parts.
        committed: ISO 8601, UTC.
        operation: ``ingest``, ``add labels``, ``label``, ``remove``, ``roll back``, ``replace labels``
            or ``purge``.
        detail: the kind of source, the model, or the version that was gone back to.
        images, objects: of the whole version.
        newest: whether no later one is there.
    """

    reference: str
    label_set: str
    version: int
    committed: str
    operation: str
    detail: str
    images: int
    objects: int
    newest: bool

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def list_versions(reference: str) -> list[VersionEntry]:
    """Every version, newest first, label set by label set.

    Args:
        reference: ``URI`` for all label sets, ``URI@labels/<set>`` for one, with a version for those up to it.
    Raises:
        DatasetNotFound: no such dataset, label set or version.
    """
    wanted = parse_reference(reference)
    store = Store.open(wanted.uri)
    there = list_label_sets(store.uri)
    named = "@labels/" in reference
    if not there or (named and wanted.label_set not in there):
        open_dataset(wanted)  # raises, and names near ones
    return [
        entry
        for label_set in ([wanted.label_set] if named else there)
        for entry in _versions(store, label_set, wanted.version)
    ]


def _versions(store: Store, label_set: str, up_to: int | None) -> list[VersionEntry]:
    table = store.sub("labels", label_set)
    newest = delta.newest_version(table)
    if up_to is not None and up_to > newest:
        raise DatasetNotFound(
            f"{format_reference(store.uri, label_set)} has no version {up_to}; its newest is {newest}"
        )
    found = [_entry(store.uri, label_set, commit, newest) for commit in delta.history(table, up_to)]
    if not found:
        raise DatasetNotFound(
            f"{format_reference(store.uri, label_set)} has no commit up to version {newest if up_to is None else up_to}"
        )
    return found


def _entry(uri: str, label_set: str, commit: delta.Commit, newest: int) -> VersionEntry:
    values = commit.metadata
    operation, detail = _what(values)
    return VersionEntry(
        reference=format_reference(uri, label_set, commit.version),
        label_set=label_set,
        version=commit.version,
        committed=datetime.fromtimestamp(commit.timestamp / 1000, UTC).isoformat(timespec="seconds"),
        operation=operation,
        detail=detail,
        images=int(values.get("num_images", 0)),
        objects=int(values.get("num_objects", 0)),
        newest=commit.version == newest,
    )


def _what(values: Mapping[str, Any]) -> tuple[str, str]:
    revision = values.get("revision") or {}
    provenance = values.get("provenance") or {}
    if revision:
        operation = str(revision["operation"])
        match operation:
            case "roll back":
                return operation, f"to version {revision['to_version']}"
            case "remove":
                return operation, f"{revision['images']} images"
            case "replace labels":
                return operation, _source(provenance)
            case _:
                return operation, ""
    if values.get("kind") == "predictions":
        model = provenance.get("model")
        return "label", str(model.get("uri", "")) if isinstance(model, dict) else ""
    if "labels_for" in provenance:
        return "add labels", _source(provenance)
    return "ingest", _source(provenance)


def _source(provenance: Mapping[str, Any]) -> str:
    """The kind of source; of one that was divided anew the kind of what was divided."""
    kind = str(provenance.get("source", ""))
    inner = (provenance.get("options") or {}).get("source") if kind == "resplit" else None
    return f"{inner['kind']}, split by ratio" if isinstance(inner, Mapping) and "kind" in inner else kind
