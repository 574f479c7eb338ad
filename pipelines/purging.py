"""Purge: rewrite the shards that hold some images without them, and delete the old ones. When the law asks.

Versions from before a purge keep their labels but lose the shards that were rewritten.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import delta
from pipelines.jobs import Job
from pipelines.label_commits import purged_shards, settle
from pipelines.ledger_listing import forget_decided
from pipelines.lineage import PURGE
from pipelines.near_duplicates import hashes_path
from pipelines.quarantine import forget_quarantined
from pipelines.records import ImageRecord
from pipelines.references import format_reference, parse_reference
from pipelines.resuming import uncommitted_plans
from pipelines.schema import SCHEMA_VERSION, LabelRow
from pipelines.shard_paths import image_path, index_path, shard_stem
from pipelines.shard_writing import write_image_shard
from pipelines.shards import ShardFile, ShardRef, join_records, verify_image
from pipelines.storage import Store, redact
from pipelines.versions import list_label_sets, open_dataset

_READERS = 16
_ATTEMPTS = 20


class _ShardMoved(Exception):
    """Another purge rewrote one of the shards meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What a purge did, or would do.

    Attributes:
        image_ids: that are gone, sorted.
        copies: images that are not, but have the same bytes as one of them.
        shards: paths of the image files that were deleted.
        uncommitted: those of them that no version named: of ingests that were refused or killed; their plans went too.
        versions: label set -> reference of its newest version, of those that had to change.
        deleted: False for a dry run; ``versions`` are then those that are there now.
    """

    image_ids: tuple[str, ...]
    copies: tuple[str, ...]
    shards: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    deleted: bool = True
    uncommitted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Held:
    """Images by the stem of their shard, stems of shards that no version names, and images with the same bytes."""

    stems: Mapping[str, frozenset[str]]
    uncommitted: tuple[str, ...]
    copies: tuple[str, ...]


def purge_images(uri: str, image_ids: Collection[str], *, dry_run: bool = False) -> Purged:
    """Take images out of all label sets and their bytes out of the store, at once and for good.

    Finished plans in ``_jobs``, ledger entries and the quarantine forget them too; counts stay. Label files of older
    versions keep their rows.

    Shards that no version names yet, of ingests that were refused or killed, go as a whole where they hold one of the
    images, and their plans before them: such an ingest starts anew. What a killed worker left half-written has no name
    that tells what is in it: vacuum takes it after its grace period.

    Safe beside ingests, other purges and other changes; after a crash call it again, and it is finished. An ingest that
    brings the images meanwhile is refused where it commits, but for the moment between its last look and its commit.

    Args:
        uri: the dataset; all its label sets are changed.
        image_ids: may be in no label set any more: what was removed still has its bytes until it is purged.
        dry_run: tell, but change nothing.
    Raises:
        ValueError: one of them is nowhere in the dataset; nothing is changed then.
        DatasetNotFound: nothing is there.
    """
    store = Store.open(parse_reference(uri).uri)
    if not delta.exists(store.sub("images")):
        open_dataset(store.uri)  # raises, and names near ones
    ids = frozenset(image_ids)
    if dry_run:
        return _would_purge(store, ids)
    versions, shards = _finish(store)
    for _ in range(_ATTEMPTS):
        held = _find(store, ids)
        # First of all: as long as the images are there, a purge that was killed can be called again.
        _forget(store, ids)
        rewritten = {stem: _rewrite(store, stem, gone) for stem, gone in held.stems.items()}
        try:
            if rewritten:
                _commit(store, rewritten)
        except _ShardMoved:
            _clean_up(store, rewritten)
            continue
        more, deleted = _finish(store)
        _forget(store, ids)  # again: another purge may have put back what it had read before
        # After the commit: what other purges have written of the old shards can be committed no more.
        uncommitted = _delete_uncommitted(store, ids)
        return Purged(
            image_ids=tuple(sorted(ids)),
            copies=held.copies,
            shards=shards + deleted + uncommitted,
            versions=versions | more,
            uncommitted=uncommitted,
        )
    raise ValueError(f"{redact(store.uri)}: its shards are purged by others all the time; try again later")


def _forget(store: Store, ids: frozenset[str]) -> None:
    """What plans, ledgers and the quarantine say of images, annotations included."""
    for plan_id in store.children("_jobs"):
        job = Job(store.uri, plan_id)
        job.forget(ids)
        forget_decided(job, ids)
    forget_quarantined(store.uri, ids)


def _would_purge(store: Store, ids: frozenset[str]) -> Purged:
    held = _find(store, ids)
    versions = {}
    for label_set in list_label_sets(store.uri):
        newest = delta.open_snapshot(store.sub("labels", label_set))
        if any(shard_stem(file.path) in held.stems for file in newest.files):
            versions[label_set] = format_reference(store.uri, label_set, newest.version)
    return Purged(
        image_ids=tuple(sorted(ids)),
        copies=held.copies,
        shards=tuple(image_path(stem) for stem in (*sorted(held.stems), *held.uncommitted)),
        versions=versions,
        deleted=False,
        uncommitted=tuple(image_path(stem) for stem in held.uncommitted),
    )


def _find(store: Store, ids: frozenset[str]) -> _Held:
    """Raises ValueError where one of the images is nowhere."""
    stems = [shard_stem(f.path) for f in delta.open_snapshot(store.sub("images")).files]
    with ThreadPoolExecutor(_READERS) as pool:
        indexes = list(pool.map(lambda stem: _index(store, stem), stems))
    stems_of = {
        stem: frozenset(ids.intersection(index)) for stem, index in zip(stems, indexes) if ids.intersection(index)
    }
    uncommitted = _uncommitted(store, ids)
    missing = sorted(ids - frozenset().union(*stems_of.values(), *uncommitted.values()))
    if missing:
        raise ValueError(f"{redact(store.uri)} has no image {missing[0]!r} ({len(missing)} of {len(ids)} missing)")
    digests = {index[i] for index in indexes for i in ids.intersection(index)}
    copies = sorted(i for index in indexes for i, digest in index.items() if digest in digests and i not in ids)
    return _Held(stems_of, tuple(sorted(uncommitted)), tuple(copies))


def _uncommitted(store: Store, ids: frozenset[str]) -> dict[str, frozenset[str]]:
    """Stems of the shards that the images table does not name, each with those of some images that it holds."""
    there = {shard_stem(f.path) for f in store.list_files("images/_index")}
    stems = sorted(stem for stem in there - _committed(store) if stem.startswith("part-"))
    with ThreadPoolExecutor(_READERS) as pool:
        held = pool.map(lambda stem: ids.intersection(_index_or_nothing(store, stem)), stems)
        return {stem: found for stem, found in zip(stems, held) if found}


def _committed(store: Store) -> set[str]:
    return {shard_stem(f.path) for f in delta.open_snapshot(store.sub("images")).files}


def _index_or_nothing(store: Store, stem: str) -> dict[str, str]:
    try:
        return _index(store, stem)
    except (FileNotFoundError, pa.ArrowException):  # vacuum was faster, or it is nothing of ours
        return {}


def _delete_uncommitted(store: Store, ids: frozenset[str]) -> tuple[str, ...]:
    """Plans first: whoever goes on with one finds its receipts gone. The index last: it tells what is still to do."""
    stems = set(_uncommitted(store, ids))
    labels: set[str] = set()
    for plan in list(uncommitted_plans(store)) if stems else []:
        files = {path for path in plan.files if shard_stem(path) in stems}
        if files:
            plan.job.delete()
            labels |= {path for path in files if path.startswith("labels/")}
    stems -= _committed(store)
    for path in sorted(labels):
        if shard_stem(path) in stems:
            store.remove(path)
    for stem in sorted(stems):
        for path in (hashes_path(stem), image_path(stem), index_path(stem)):
            store.remove(path)
    return tuple(image_path(stem) for stem in sorted(stems))


def _index(store: Store, stem: str) -> dict[str, str]:
    table = pq.read_table(pa.BufferReader(store.read_bytes(index_path(stem))), columns=["image_id", "sha256"])
    return dict(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def _rewrite(store: Store, stem: str, gone: frozenset[str]) -> ShardFile | None:
    """The shard without some images; None where none is left."""
    with store.open_arrow(image_path(stem)) as stream:
        table = pq.read_table(stream)
    records = list(_records(store, stem, table, gone))
    return write_image_shard(store, records) if records else None


def _records(store: Store, stem: str, table: pa.Table, gone: frozenset[str]) -> Iterator[ImageRecord]:
    splits = _splits(store, stem)
    columns = (table[name].to_pylist() for name in ("image_id", "coco_image_id", "width", "height"))
    rows = [
        LabelRow(
            image_id=image_id,
            row=row,
            row_group=0,
            split=splits.get(image_id, ""),  # row groups are never of two splits
            coco_image_id=coco_image_id,
            width=width,
            height=height,
            annotations=None,
        )
        for row, (image_id, coco_image_id, width, height) in enumerate(zip(*columns, strict=True))
        if image_id not in gone
    ]
    ref = ShardRef(uri=store.uri, label_set="", image_path=image_path(stem), label_path="", rows=len(rows))
    images = table.column("image").combine_chunks().field("bytes")
    for record in join_records(table, [row.row for row in rows], rows, [images[row.row].as_py() for row in rows]):
        verify_image(record.image, record.sha256, record.image_id, ref)
        yield record


def _splits(store: Store, stem: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for label_set in list_label_sets(store.uri):
        for file in delta.open_snapshot(store.sub("labels", label_set)).files:
            if shard_stem(file.path) == stem:
                content = pa.BufferReader(store.read_bytes(f"labels/{label_set}/{file.path}"))
                table = pq.read_table(content, columns=["image_id", "split"])
                found |= dict(zip(table["image_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    return found


def _commit(store: Store, rewritten: Mapping[str, ShardFile | None]) -> None:
    """The images first: from then on whoever commits labels of the old shards sees that they are purged."""

    def change(before: delta.Snapshot) -> delta.Change:
        files = {shard_stem(f.path): f for f in before.files}
        if not rewritten.keys() <= files.keys():
            raise _ShardMoved
        new = {stem: shard_stem(file.path) if file else "" for stem, file in rewritten.items()}
        purged = {old: new.get(to, to) for old, to in before.metadata.get("purged", {}).items()} | new
        add = {f.path.rsplit("/", 1)[-1]: f for f in rewritten.values() if f is not None}
        return delta.Change(
            add=tuple(
                delta.TableFile(path=path, size=f.size, rows=f.rows)
                for path, f in sorted(add.items())
                if shard_stem(path) not in files
            ),
            remove=tuple(files[stem] for stem in sorted(rewritten)),
            metadata={
                "schema_version": SCHEMA_VERSION,
                "plan_id": before.metadata.get("plan_id", ""),
                "purged": {old: to for old, to in purged.items() if old != to},
                "revision": {"operation": PURGE, "from_version": before.version},
            },
        )

    delta.commit_change(store.sub("images"), change, transaction_id=f"{PURGE}-{uuid.uuid4().hex}")


def _clean_up(store: Store, rewritten: Mapping[str, ShardFile | None]) -> None:
    """Delete what was written of shards that somebody else rewrote: it holds what they have purged."""
    there = {shard_stem(f.path) for f in delta.open_snapshot(store.sub("images")).files}
    for stem, file in rewritten.items():
        # While the old shard is there, another purge of the same images may commit the same new one.
        if file is not None and not there & {stem, shard_stem(file.path)}:
            for path in (file.path, index_path(shard_stem(file.path))):
                store.remove(path)


def _finish(store: Store) -> tuple[dict[str, str], tuple[str, ...]]:
    """Bring every label set up to the purges so far, then delete the shards; also what a killed one left."""
    versions = {}
    settled = True
    while settled:  # somebody may have committed labels of an old shard meanwhile
        settled = False
        for label_set in list_label_sets(store.uri):
            version = settle(store, label_set)
            if version is not None:
                versions[label_set] = version.reference
                settled = True
    deleted = []
    for stem in sorted(purged_shards(store)):
        store.remove(hashes_path(stem))
        for path in (index_path(stem), image_path(stem)):
            if store.exists(path) and store.remove(path):  # another purge may finish this one
                deleted.append(path)
    return versions, tuple(path for path in deleted if not path.startswith("images/_index/"))
