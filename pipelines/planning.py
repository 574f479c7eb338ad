"""Cutting a source into tasks: a pure function of what the source lists, so that a rerun is a resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipelines.credentials import check_options, check_uri, has_credentials
from pipelines.inputs import Inputs
from pipelines.jobs import Job, Plan, make_plan_id
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.quarantine import LISTED, QuarantineRow, write_quarantine
from pipelines.references import EmptyDataset
from pipelines.schema import OBJECTS, SCHEMA_VERSION, annotations_from_arrow, annotations_to_arrow, dump_json, load_json
from pipelines.shard_writing import MAX_SHARD_BYTES, MAX_SHARD_IMAGES
from pipelines.sources import Described, Source, SourceItem
from pipelines.storage import Store, redact

ITEMS = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("split", pa.string()),
        ("coco_image_id", pa.int64()),
        ("objects", OBJECTS),
        ("declared_size", pa.list_(pa.int32())),
        ("clip_tolerance", pa.float64()),
        ("payload", pa.string()),
        ("mended", pa.string()),
        ("license", pa.string()),
        ("url", pa.string()),
        ("group_id", pa.string()),
        ("extra", pa.string()),
    ]
)
_JSON = ("payload", "mended", "extra")


def items_to_arrow(items: Sequence[SourceItem]) -> pa.Table:
    """One row an item."""
    columns = []
    for f in ITEMS:
        if f.name == "objects":
            columns.append(annotations_to_arrow([item.annotations for item in items]))
        elif f.name in _JSON:
            columns.append(pa.array([dump_json(getattr(item, f.name)) for item in items], f.type))
        else:
            columns.append(pa.array([getattr(item, f.name) for item in items], f.type))
    return pa.Table.from_arrays(columns, schema=ITEMS)


def items_from_arrow(table: pa.Table) -> list[SourceItem]:
    """The inverse of ``items_to_arrow``."""
    plain = {f.name: table.column(f.name).to_pylist() for f in ITEMS if f.name != "objects"}
    annotations = annotations_from_arrow(table.column("objects"))
    items = []
    for i in range(table.num_rows):
        values = {name: column[i] for name, column in plain.items()}
        for name in _JSON:
            values[name] = load_json(values[name])
        size = values["declared_size"]
        values["declared_size"] = None if size is None else (size[0], size[1])
        items.append(SourceItem(annotations=annotations[i], **values))
    return items


def plan_id_of(
    source: Source, label_set: str, *, inputs: Inputs | None = None, settings: Mapping[str, Any] | None = None
) -> str:
    """The plan's id: a hash of the source's kind, options and files, and of what shapes the result.

    Args:
        source: identified by kind and options.
        label_set: where the truth goes.
        inputs: its files; see ``list_inputs``.
        settings: what else shapes the result; only what is not as usual, so that ids stay.
    Raises:
        ValueError: an option holds a password or the like, which the plan and its commit would tell.
    """
    check_options(source.kind, source.options)
    return make_plan_id(
        kind=source.kind,
        options=dict(source.options),
        inputs=hashlib.sha256().hexdigest() if inputs is None else inputs.digest,
        label_set=label_set,
        schema_version=SCHEMA_VERSION,
        shard=[MAX_SHARD_IMAGES, MAX_SHARD_BYTES],
        **({"settings": dict(settings)} if settings else {}),
    )


def save_ingest_plan(job: Job, source: Source, label_set: str, settings: Mapping[str, Any] | None = None) -> Plan:
    """Scan the source once and write its plan, annotations included, one row group a task.

    ``settings`` are for the tasks: ``deep_check`` decodes every image.

    Raises:
        EmptyDataset: the source offers not one image.
        ValueError: an image's URI holds a password or the like.
    """
    ledger = Ledger()
    counts = {"images": 0, "annotations": 0}
    metadata: dict[str, Any] = {
        "kind": source.kind,
        "options": dict(source.options),
        "label_set": label_set,
        "categories": source.label_map.to_json(),
        "about": dict(source.about()) if isinstance(source, Described) else {},
        "settings": dict(settings or {}),
    }

    def tables() -> Iterator[pa.Table]:
        for task in cut_tasks(_items(source, ledger, counts)):
            yield items_to_arrow(task)
        _keep_refused(job, ledger)
        # Known only once the source is read to its end; save_plan writes the metadata last.
        metadata.update(ledger=ledger.to_json(), seen=dict(counts))

    batches = _not_empty(tables(), source, ledger)
    return job.save_plan(batches, ITEMS, metadata)


def _not_empty(tables: Iterator[pa.Table], source: Source, ledger: Ledger) -> Iterator[pa.Table]:
    first = next(tables, None)
    if first is None:
        why = "; ".join(f"{e.image_id!r}: {e.reason} {e.detail}".strip() for e in ledger.entries[:5])
        raise EmptyDataset(f"the {source.kind} source offers not one image{': ' + why if why else ''}")
    yield first
    yield from tables


def _keep_refused(job: Job, ledger: Ledger) -> None:
    refused = [e for e in ledger.entries if (e.subject, e.fate) == ("image", "quarantined")]
    if refused:
        rows = [
            QuarantineRow(
                image_id=e.image_id,
                source="",
                stage="list",
                error_class="Refused",
                error=f"{e.reason}: {e.detail}".rstrip(": "),
            )
            for e in refused
        ]
        write_quarantine(Store.open(job.dataset_uri), job.plan_id, LISTED, rows)


def _items(source: Source, ledger: Ledger, counts: dict[str, int]) -> Iterator[SourceItem]:
    """Items with every coco_image_id given and no image_id twice; everything else goes into the ledger."""
    seen: set[str] = set()
    next_id = 1
    for found in source.scan():
        if isinstance(found, LedgerEntry):
            counts["images"] += found.subject == "image"
            counts["annotations"] += found.annotations + (found.subject == "annotation")
            ledger.add(found)
            continue
        objects = 0 if found.annotations is None else len(found.annotations)
        counts["images"] += 1
        counts["annotations"] += objects
        if found.image_id in seen:
            ledger.add(
                LedgerEntry(
                    subject="image",
                    fate="dropped",
                    reason="image id given twice",
                    image_id=found.image_id,
                    detail=redact(found.uri),
                    annotations=objects,
                )
            )
            continue
        seen.add(found.image_id)
        check_uri(found.uri, "image")
        if has_credentials(found.url):  # nobody reads by it
            found = replace(found, url=redact(found.url))
        if found.coco_image_id is None:
            found = replace(found, coco_image_id=next_id)
        next_id = max(next_id, (found.coco_image_id or 0) + 1)
        yield found


def cut_tasks(items: Iterable[SourceItem]) -> Iterator[list[SourceItem]]:
    """Consecutive items, at most 1,024 images or 256 MB a task: each becomes one shard."""
    task: list[SourceItem] = []
    size = 0
    for item in items:
        if task and (len(task) == MAX_SHARD_IMAGES or size + item.size > MAX_SHARD_BYTES):
            yield task
            task, size = [], 0
        task.append(item)
        size += item.size
    if task:
        yield task


def plan_ledger(plan: Plan) -> Ledger:
    """What the scan already decided."""
    values: Mapping[str, Any] = plan.metadata["ledger"]
    return Ledger.from_json(values)
