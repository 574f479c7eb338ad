"""Labels for images that a dataset has already: a further label set, or other labels in one. No image is rewritten."""

from __future__ import annotations

import pickle
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pipelines import delta
from pipelines.checks import BadImage, check_annotations
from pipelines.commits import DatasetVersion, commit_labels, describe_version, find_version
from pipelines.credentials import check_options
from pipelines.inputs import list_inputs
from pipelines.jobs import Job, make_plan_id
from pipelines.label_commits import check_newest, commit_revision, file_changes, revised_metadata, settle
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.ledger_listing import write_commit_ledger
from pipelines.lineage import REPLACE
from pipelines.records import Annotations, LabelMap
from pipelines.references import CategoryMismatch, EmptyDataset, check_label_set_name, parse_reference
from pipelines.schema import LabelRow
from pipelines.shard_paths import image_path, shard_stem
from pipelines.shard_writing import write_label_shard
from pipelines.shards import ShardFile, ShardRef, read_labels
from pipelines.sources import Described, LabelsOnly, Source, SourceItem
from pipelines.sources.coco_labels import NOT_THERE, CocoLabels
from pipelines.storage import Store, redact
from pipelines.versions import Dataset, open_dataset

Others = Literal["keep", "unlabelled", "leave out"]
"""What becomes of images that the source does not name: their labels stay, go, or the image is not in the set."""
_LOADERS = 8
_OTHER_SIZE = "labels of an image of another size"


class _Unchanged(Exception):
    """The newest version has these labels already."""


def coco_labels(reference: str, annotations: str, *, keypoints: Sequence[str] = ()) -> CocoLabels:
    """A COCO annotation file as a source of labels for a dataset's images; ``file_name`` is the ``image_id``."""
    return CocoLabels.of(annotations, open_dataset(reference).index()["image_id"].to_pylist(), keypoints=keypoints)


def add_labels(
    reference: str,
    source: Source,
    *,
    label_set: str | None = None,
    others: Others | None = None,
    strict: bool = False,
) -> DatasetVersion:
    """Put a source's labels on images of a dataset, matched by ``image_id``.

    Safe beside other changes: made anew on top of what was committed meanwhile.

    Args:
        reference: of the images. Where the labels are replaced, the newest version is changed.
        source: ``coco_labels(...)``, or any source; of the latter the images are read to place the boxes.
        label_set: a new label set; None (or the reference's own) replaces labels there.
        others: default ``keep`` where labels are replaced, ``leave out`` in a new label set.
        strict: refuse instead of mending or dropping.
    Returns:
        The version; ``found`` where it was there already.
    Raises:
        CategoryMismatch: kept labels have other categories than the source.
        EmptyDataset: the source names no image of the dataset.
        DuplicateImages: the new label set exists and has these images.
        ValueError: strict, and something was mended or dropped; a version that is not the newest is to be changed; an
            option of the source holds a password or the like.
    """
    base = open_dataset(reference)
    target = check_label_set_name(label_set or base.label_set)
    replacing = target == base.label_set
    others = others or ("keep" if replacing else "leave out")
    if others not in get_args(Others):
        raise ValueError(f"others={others!r}: choose one of {', '.join(get_args(Others))}")
    _check_base(base, source.label_map, replacing, others)
    check_options(source.kind, source.options)
    inputs = list_inputs(source)
    plan_id = make_plan_id(
        operation=REPLACE,
        kind=source.kind,
        options=dict(source.options),
        inputs=inputs.digest if inputs else "",
        base=base.digest,
        label_set=target,
        others=others,
    )
    store = Store.open(base.uri)
    with _spooled(source) as spool:
        work = _Relabelling(store=store, source=source, target=target, others=others, spool=spool)
        provenance = {
            "source": source.kind,
            "options": dict(source.options),
            "about": dict(source.about()) if isinstance(source, Described) else {},
            "labels_for": base.reference,
        }
        if replacing:
            return _replace(work, reference, plan_id, provenance, strict)
        found = find_version(base.uri, target, plan_id)
        return found or _commit_new(work, base, plan_id, provenance, strict)


def _check_base(base: Dataset, label_map: LabelMap, replacing: bool, others: Others) -> None:
    where = redact(base.reference)
    if replacing and base.metadata["kind"] != "truth":
        raise ValueError(f"{where} holds {base.metadata['kind']}; give a new label set's name")
    # Images of a set without categories were never labelled: there is nothing that could disagree.
    if others == "keep" and len(base.label_map) and base.label_map.digest != label_map.digest:
        raise CategoryMismatch(
            f"{where} has the categories {list(base.label_map.names[:10])}, the source has "
            f"{list(label_map.names[:10])}: labels of both cannot be in one label set; leave the others out, or "
            "unlabelled"
        )


def _commit_new(
    work: _Relabelling, base: Dataset, plan_id: str, provenance: dict[str, Any], strict: bool
) -> DatasetVersion:
    ledger = work.ledger_of(base.shards)
    files = [file for file, _, _ in map(work.rewrite, base.shards) if file is not None]
    _check(work, ledger, strict, base.reference)
    write_commit_ledger(Job(base.uri, plan_id), ledger)
    version = commit_labels(
        base.uri,
        work.target,
        files,
        plan_id=plan_id,
        label_map=work.source.label_map,
        images_version=base.metadata["images_version"],
        ledger=ledger.sums(),
        provenance=provenance,
    )
    return settle(work.store, work.target) or version


def _replace(
    work: _Relabelling, reference: str, plan_id: str, provenance: dict[str, Any], strict: bool
) -> DatasetVersion:
    wanted = parse_reference(reference)
    newest = -1

    def change(before: delta.Snapshot) -> delta.Change:
        nonlocal newest
        newest = before.version
        check_newest(wanted, before)
        _check_base(open_dataset(replace(wanted, version=newest)), work.source.label_map, True, work.others)
        shards = [_shard(work.store, work.target, file) for file in before.files]
        ledger = work.ledger_of(shards)
        _check(work, ledger, strict, reference)
        written = [file for file, _, _ in map(work.rewrite, shards) if file is not None]
        files = [delta.TableFile(path=f.path.rsplit("/", 1)[-1], size=f.size, rows=f.rows) for f in written]
        categories = work.source.label_map.to_json()
        if {f.path for f in files} == {f.path for f in before.files} and categories == before.metadata["categories"]:
            raise _Unchanged
        write_commit_ledger(Job(work.store.uri, plan_id), ledger)
        whole = work.others != "keep"
        sums = ledger.sums()
        if not whole:
            both = Ledger.from_json(before.metadata["ledger"]) if before.metadata.get("ledger") else Ledger()
            both.merge(ledger)
            sums = both.sums()
        values = {
            "categories": categories,
            "plan_id": plan_id,
            "ledger": sums,
            "plan_ledger": ledger.sums(),
            "provenance": provenance,
        }
        done = {"operation": REPLACE, "whole": whole, "from_version": before.version}
        metadata = revised_metadata(work.store, work.target, {**before.metadata, **values}, files, done)
        return file_changes(before.files, files, metadata)

    try:
        return commit_revision(work.store, wanted, change)
    except _Unchanged:
        return describe_version(work.store.uri, work.target, newest, found=True)


def _check(work: _Relabelling, ledger: Ledger, strict: bool, reference: str) -> None:
    ledger.check(images=work.spool.images, annotations=work.spool.annotations + work.loaded)
    shown = "; ".join(f"{e.image_id!r} {e.fate}: {e.reason}" for e in ledger.entries[:5])
    if strict and ledger.reasons:
        raise ValueError(f"strict: {redact(reference)} is not changed, because of {shown}")
    if not ledger.kept("image"):
        raise EmptyDataset(f"the source names no image of {redact(reference)}{': ' + shown if shown else ''}")


def _shard(store: Store, label_set: str, file: delta.TableFile) -> ShardRef:
    return ShardRef(
        uri=store.uri,
        label_set=label_set,
        image_path=image_path(shard_stem(file.path)),
        label_path=f"labels/{label_set}/{file.path}",
        rows=file.rows,
    )


@dataclass(slots=True, kw_only=True)
class _Spool:
    """What a source offers, on disk by image id: shards come in another order."""

    db: sqlite3.Connection
    ledger: Ledger = field(default_factory=Ledger)
    images: int = 0
    annotations: int = 0

    def get(self, image_id: str) -> SourceItem | None:
        found = self.db.execute("SELECT item FROM items WHERE image_id = ?", (image_id,)).fetchone()
        return None if found is None else pickle.loads(found[0])  # our own, of a moment ago

    def sizes(self) -> Iterator[tuple[str, int]]:
        yield from self.db.execute("SELECT image_id, objects FROM items ORDER BY rowid")


@contextmanager
def _spooled(source: Source) -> Iterator[_Spool]:
    with tempfile.TemporaryDirectory(prefix="boxmill-labels-") as folder:
        spool = _Spool(db=sqlite3.connect(Path(folder) / "items.sqlite"))
        spool.db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE items (image_id UNIQUE, objects INTEGER, item BLOB);"
        )
        try:
            for found in source.scan():
                _spool(spool, found)
            yield spool
        finally:
            spool.db.close()


def _spool(spool: _Spool, found: SourceItem | LedgerEntry) -> None:
    if isinstance(found, LedgerEntry):
        spool.images += found.subject == "image"
        spool.annotations += found.annotations + (found.subject == "annotation")
        spool.ledger.add(found)
        return
    objects = 0 if found.annotations is None else len(found.annotations)
    spool.images += 1
    spool.annotations += objects
    try:
        spool.db.execute("INSERT INTO items VALUES (?, ?, ?)", (found.image_id, objects, pickle.dumps(found)))
    except sqlite3.IntegrityError:
        spool.ledger.add(_left_out("dropped", "image id given twice", found.image_id, "", objects))


def _left_out(
    fate: Literal["dropped", "quarantined"], reason: str, image_id: str, detail: str, objects: int
) -> LedgerEntry:
    return LedgerEntry(subject="image", fate=fate, reason=reason, image_id=image_id, detail=detail, annotations=objects)


@dataclass(slots=True, kw_only=True)
class _Relabelling:
    """Label files made anew, each once however often the commit is tried."""

    store: Store
    source: Source
    target: str
    others: Others
    spool: _Spool
    loaded: int = 0
    done: dict[str, tuple[ShardFile | None, Ledger, frozenset[str]]] = field(default_factory=dict)

    def ledger_of(self, shards: Sequence[ShardRef]) -> Ledger:
        """What became of everything that the source offers."""
        ledger = Ledger()
        ledger.merge(self.spool.ledger)
        matched: set[str] = set()
        self.loaded = 0
        for shard in shards:
            _, own, ids = self.rewrite(shard)
            ledger.merge(own)
            matched |= ids
        for image_id, objects in self.spool.sizes():
            if image_id not in matched:
                ledger.add(_left_out("dropped", NOT_THERE, image_id, "", objects))
        central = sum(objects for _, objects in self.spool.sizes())
        self.loaded = ledger.seen("annotation") - self.spool.ledger.seen("annotation") - central
        return ledger

    def rewrite(self, shard: ShardRef) -> tuple[ShardFile | None, Ledger, frozenset[str]]:
        """The shard's new label file (None where none of its images is in the set), its ledger, the ids it matched."""
        if shard.label_path not in self.done:
            self.done[shard.label_path] = self._rewrite(shard)
        return self.done[shard.label_path]

    def _rewrite(self, shard: ShardRef) -> tuple[ShardFile | None, Ledger, frozenset[str]]:
        ledger = Ledger()
        rows = read_labels(shard)
        items = [self.spool.get(row.image_id) for row in rows]
        with ThreadPoolExecutor(_LOADERS) as pool:
            labels = list(pool.map(lambda item: None if item is None else _load(self.source, item), items))
        new = [self._row(row, found, ledger) for row, found in zip(rows, labels, strict=True)]
        kept = [row for row in new if row is not None]
        matched = frozenset(row.image_id for row, found in zip(rows, labels, strict=True) if found is not None)
        if not kept:
            return None, ledger, matched
        return write_label_shard(self.store, self.target, shard.image_path, kept), ledger, matched

    def _row(self, row: LabelRow, found: _Labels | None, ledger: Ledger) -> LabelRow | None:
        if found is not None:
            made = _relabelled(row, found, self.source.label_map, ledger)
            if made is not None:
                return made
        match self.others:
            case "keep":
                return row
            case "unlabelled":
                return replace(row, annotations=None, neg=None, not_exhaustive=None, **_TRUTH)
            case _:
                return None


_TRUTH: dict[str, Any] = {"status": None, "error": None, "input_sha256": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """What a source says of one image; ``refusal`` where it cannot be read, or, ``of_another``, was not drawn on it."""

    item: SourceItem
    annotations: Annotations | None = None
    size: tuple[int, int] | None = None
    refusal: str = ""
    of_another: bool = False


def _load(source: Source, item: SourceItem) -> _Labels:
    if isinstance(source, LabelsOnly):
        try:
            return _Labels(item=item, annotations=source.labels_of(item), size=item.declared_size)
        except BadImage as error:
            return _Labels(item=item, refusal=str(error), of_another=True)
    try:
        record = source.load(item)
    except (BadImage, FileNotFoundError) as error:
        return _Labels(item=item, refusal=str(error))
    return _Labels(item=item, annotations=record.annotations, size=(record.width, record.height))


def _relabelled(row: LabelRow, found: _Labels, label_map: LabelMap, ledger: Ledger) -> LabelRow | None:
    """The row with the source's labels; None where they are not of this image."""
    item, labels = found.item, found.annotations
    held = item.annotations if found.refusal else labels
    objects = 0 if held is None else len(held)
    if found.refusal:
        if found.of_another:
            ledger.add(_left_out("dropped", _OTHER_SIZE, row.image_id, found.refusal, objects))
        else:
            ledger.add(_left_out("quarantined", "image cannot be read", row.image_id, found.refusal, objects))
        return None
    if found.size not in (None, (row.width, row.height)):
        detail = f"labels are of {found.size}, the dataset's image has {row.width}x{row.height} pixels"
        ledger.add(_left_out("dropped", _OTHER_SIZE, row.image_id, detail, objects))
        return None
    ledger.imported("image")
    if labels is not None:
        labels = check_annotations(
            labels,
            width=row.width,
            height=row.height,
            category_ids=frozenset(c.category_id for c in label_map.categories),
            ledger=ledger,
            image_id=row.image_id,
            clip_tolerance=item.clip_tolerance,
            mended=item.mended,
        )
    neg, not_exhaustive = (item.extra.get(f"{name}_category_ids") for name in ("neg", "not_exhaustive"))
    return replace(
        row,
        annotations=labels,
        neg=tuple(neg) if isinstance(neg, list) else None,
        not_exhaustive=tuple(not_exhaustive) if isinstance(not_exhaustive, list) else None,
        **_TRUTH,
    )
