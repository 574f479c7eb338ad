"""Commits that change a label set's files: on top of the newest version, and made anew where another one was faster.

Label files of shards that a purge has rewritten are rewritten too, whoever committed them: a purge commits the images
first and looks at the labels then, everybody else commits labels and looks at the images then, so one of them sees it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import delta
from pipelines.commits import DatasetVersion, describe_version, version_digest
from pipelines.lineage import PURGE
from pipelines.records import LabelMap
from pipelines.references import EmptyDataset, Reference
from pipelines.shard_paths import image_path, index_path, shard_stem
from pipelines.shards import read_label_file
from pipelines.storage import Store, redact


def check_newest(wanted: Reference, before: delta.Snapshot) -> None:
    """Raises ValueError where a reference names a version that is not the newest."""
    if wanted.version not in (None, before.version):
        raise ValueError(
            f"{redact(str(wanted))} is not the newest version, which is {before.version}; leave the version out, "
            "or roll back first"
        )


def rewrite_label_file(store: Store, label_set: str, old_name: str, table: pa.Table) -> delta.TableFile:
    """Write changed rows of a label file under the name that its content gives it."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_index=True)
    content = bytes(sink.getvalue())
    *front, _, suffix = old_name.split(".")
    name = ".".join([*front, hashlib.sha256(content).hexdigest()[:32], suffix])
    store.write_bytes(f"labels/{label_set}/{name}", content)
    splits = table["split"].unique()
    split = splits[0].as_py() if len(splits) == 1 else None
    return delta.TableFile(path=name, size=len(content), rows=table.num_rows, split=split)


def revised_metadata(
    store: Store,
    label_set: str,
    old: Mapping[str, Any],
    files: Sequence[delta.TableFile],
    done: Mapping[str, Any],
    *,
    may_be_empty: bool = False,
) -> dict[str, Any]:
    """The counts of the files that remain; what the ledger says of past plans stays."""
    if not files and not may_be_empty:
        raise EmptyDataset(f"not one image would be left in {redact(store.uri)}, label set {label_set!r}")
    splits: dict[str, int] = {}
    objects = 0
    for file in files:
        table = read_label_file(store.uri, f"labels/{label_set}/{file.path}")
        objects += pc.sum(pc.list_value_length(pc.struct_field(table["objects"], "id"))).as_py() or 0
        for split in table["split"].to_pylist():
            splits[split] = splits.get(split, 0) + 1
    paths = sorted(f"labels/{label_set}/{file.path}" for file in files)
    return {
        **old,
        "digest": version_digest(LabelMap.from_json(old["categories"]), paths, label_set),
        "num_images": sum(splits.values()),
        "num_objects": objects,
        "splits": splits,
        "revision": dict(done),
    }


def commit_revision(
    store: Store, wanted: Reference, change: Callable[[delta.Snapshot], delta.Change]
) -> DatasetVersion:
    """Commit a change of a label set that exists."""
    # Asked for twice, a change is made twice: the id only tells a lost answer from a lost race.
    table = store.sub("labels", wanted.label_set)
    version, _ = delta.commit_change(table, change, transaction_id=f"revision-{uuid.uuid4().hex}")
    settled = settle(store, wanted.label_set)
    return settled or describe_version(store.uri, wanted.label_set, version, found=False)


def purged_shards(store: Store) -> dict[str, str]:
    """Stem of each shard that was purged -> stem of the one that holds the rest of its images, or nothing."""
    try:
        newest = next(delta.history(store.sub("images")), None)
    except delta.TableNotFound:
        return {}
    return dict(newest.metadata.get("purged", {})) if newest else {}


def settle(store: Store, label_set: str) -> DatasetVersion | None:
    """Rewrite the newest version's label files that belong to purged shards; None where there are none."""
    purged = purged_shards(store)
    table = store.sub("labels", label_set)
    if not purged or not any(shard_stem(f.path) in purged for f in delta.open_snapshot(table).files):
        return None

    def change(before: delta.Snapshot) -> delta.Change:
        files = moved_files(store, label_set, before.files, purged)
        done = {"operation": PURGE, "from_version": before.version}
        metadata = revised_metadata(store, label_set, before.metadata, files, done, may_be_empty=True)
        return file_changes(before.files, files, metadata)

    version, _ = delta.commit_change(table, change, transaction_id=f"revision-{uuid.uuid4().hex}")
    return describe_version(store.uri, label_set, version, found=False)


def file_changes(
    before: Sequence[delta.TableFile], after: Sequence[delta.TableFile], metadata: Mapping[str, Any]
) -> delta.Change:
    """What comes and what goes."""
    now, then = ({f.path: f for f in files} for files in (before, after))
    return delta.Change(
        add=tuple(then[path] for path in sorted(then.keys() - now.keys())),
        remove=tuple(now[path] for path in sorted(now.keys() - then.keys())),
        metadata=metadata,
    )


def moved_files(
    store: Store, label_set: str, files: Sequence[delta.TableFile], purged: Mapping[str, str]
) -> list[delta.TableFile]:
    """Label files, those of purged shards rewritten for the shards that hold the rest."""
    kept = []
    for file in files:
        stem = shard_stem(file.path)
        if stem not in purged:
            kept.append(file)
        elif purged[stem]:
            table = _move_rows(store, read_label_file(store.uri, f"labels/{label_set}/{file.path}"), purged[stem])
            if table.num_rows:
                name = purged[stem] + file.path.removeprefix(stem)
                kept.append(rewrite_label_file(store, label_set, name, table))
    return kept


def _move_rows(store: Store, labels: pa.Table, stem: str) -> pa.Table:
    """Labels of the images that a shard holds, with their places there."""
    ids = pq.read_table(pa.BufferReader(store.read_bytes(index_path(stem))), columns=["image_id"])["image_id"]
    with store.open_arrow(image_path(stem)) as stream:
        footer = pq.read_metadata(stream)
    groups = np.repeat(
        np.arange(footer.num_row_groups), [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    )
    rows = pc.index_in(labels["image_id"], value_set=ids.combine_chunks())
    labels = labels.filter(rows.is_valid())
    rows = np.asarray(rows.drop_null(), np.int64)
    for name, values in (("row", rows), ("row_group", groups[rows])):
        field = labels.schema.field(name)
        labels = labels.set_column(labels.schema.get_field_index(name), field, pa.array(values, field.type))
    return labels.take(pa.array(np.argsort(rows, kind="stable")))
