"""Images with the same bytes: in one dataset version, or among the files that a plan is about to commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.label_commits import rewrite_label_file
from pipelines.ledger import SUBJECTS, Ledger, LedgerEntry
from pipelines.records import Annotations
from pipelines.schema import annotations_to_arrow
from pipelines.shard_paths import image_path, index_path, shard_stem
from pipelines.shards import ShardFile, ShardRef, read_label_columns, read_label_file, read_labels
from pipelines.storage import Store
from pipelines.versions import Dataset, DatasetNotFound, EmptyDataset, Reference, open_dataset

Dedupe = Literal["keep", "report", "drop"]
"""What to do with images of the same bytes: not look, tell, or leave the later ones out."""

Labels = Literal["same", "differ", "first is unlabelled", "unlabelled"]
Mended = Mapping[str, Mapping[str, Sequence[int]]]
"""Path of a label file -> number of a row of it, as JSON has it -> mended images (0 or 1) and annotations there."""

_READERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """An image whose bytes an earlier image has as well.

    Attributes:
        image_id: of the later one.
        first: id of the earliest with these bytes, in plan order.
        split, first_split: where they are: one picture in two splits spoils a measurement.
        labels: how the later one's annotations compare with the first's; ids of annotations do not count.
    """

    image_id: str
    first: str
    split: str
    first_split: str
    labels: Labels

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class _Place:
    shard: int
    row: int
    split: str
    image_id: str


def find_new_duplicates(uri: str, label_set: str, files: Sequence[ShardFile]) -> list[Duplicate]:
    """Duplicates among label files that are not committed yet, of each other and of the newest version's images."""
    try:
        before = open_dataset(Reference(uri=uri, label_set=label_set)).shards
    except (DatasetNotFound, EmptyDataset):
        before = ()
    new = [
        ShardRef(
            uri=uri, label_set=label_set, image_path=image_path(shard_stem(f.path)), label_path=f.path, rows=f.rows
        )
        for f in files
    ]
    return find_duplicates([*before, *new], first=len(before))


def find_duplicates(dataset: Dataset | Sequence[ShardRef], *, first: int = 0) -> list[Duplicate]:
    """All duplicates, in order.

    Reads the byte-offset indexes and of each label file two columns, and the whole label files of what is double.

    Args:
        dataset: a version, or its shards in order.
        first: duplicates that lie in the shards before this one are left out.
    """
    shards = dataset.shards if isinstance(dataset, Dataset) else tuple(dataset)
    originals: dict[bytes, _Place] = {}
    pairs: list[tuple[_Place, _Place]] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for number, rows in enumerate(pool.map(_hashed_rows, shards)):
            for digest, row, split, image_id in rows:
                place = _Place(number, row, split, image_id)
                original = originals.setdefault(digest, place)
                if original is not place and number >= first:
                    pairs.append((place, original))
    labels = _annotations(shards, (place for pair in pairs for place in pair))
    return [
        Duplicate(
            image_id=place.image_id,
            first=original.image_id,
            split=place.split,
            first_split=original.split,
            labels=_compare(labels[original], labels[place]),
        )
        for place, original in pairs
    ]


def leave_out_duplicates(
    store: Store,
    label_set: str,
    files: Sequence[ShardFile],
    found: Sequence[Duplicate],
    mended: Mended,
    ledger: Ledger,
    dropped: Ledger,
) -> list[ShardFile]:
    """Label files without later copies, where the first one is labelled or neither is; the ledger tells of each.

    A labelled copy of an unlabelled image stays: leaving it out would lose the labels.

    Args:
        store: the dataset.
        label_set: of the files.
        files: label files that are not committed yet; those that change are written anew.
        found: duplicates among them.
        mended: what was mended in the files; the ledger counts all of it, but lists only so many entries.
        ledger: the plan's; what goes is moved from imported (or mended) to dropped.
        dropped: gets the same entries alone.
    """
    going = {d.image_id: d for d in found if d.labels != "first is unlabelled"}
    kept = []
    for file in files:
        table = read_label_file(store.uri, file.path)
        gone = pc.is_in(table["image_id"], value_set=pa.array(list(going), pa.string()))
        leaving = table.filter(gone)
        if not leaving.num_rows:
            kept.append(file)
            continue
        changed = mended[file.path] if file.path in mended else _listed(ledger, table)
        rows = np.flatnonzero(gone).tolist()
        for row, image_id, objects in zip(rows, leaving["image_id"].to_pylist(), _num_objects(leaving), strict=True):
            entry = _move(ledger, going[image_id], objects, changed.get(str(row), (0, 0)))
            ledger.add(entry)
            dropped.add(entry)
        rest = table.filter(pc.invert(gone))
        if rest.num_rows:
            written = rewrite_label_file(store, label_set, file.path.rsplit("/", 1)[-1], rest)
            kept.append(
                ShardFile(
                    path=f"labels/{label_set}/{written.path}",
                    size=written.size,
                    rows=written.rows,
                    num_objects=sum(_num_objects(rest)),
                    splits=dict(Counter(rest["split"].to_pylist())),
                )
            )
    return kept


def _num_objects(table: pa.Table) -> list[int]:
    ids = pc.struct_field(table["objects"], "id")
    return list(pc.fill_null(pc.list_value_length(ids), 0).to_pylist())


def _listed(ledger: Ledger, table: pa.Table) -> dict[str, list[int]]:
    """As in ``Mended``, of a task whose receipt does not tell: an older boxmill's."""
    ids = set(table["image_id"].to_pylist())
    counts = Counter((e.subject, e.image_id) for e in ledger.entries if e.fate == "mended" and e.image_id in ids)
    names = enumerate(table["image_id"].to_pylist())
    return {str(row): [counts[subject, image_id] for subject in SUBJECTS] for row, image_id in names}


def _move(ledger: Ledger, duplicate: Duplicate, objects: int, mended: Sequence[int]) -> LedgerEntry:
    """Each image and object has one fate: it is no longer what the task told."""
    for subject, total, changed in zip(SUBJECTS, (1, objects), mended, strict=True):
        ledger.counts[subject]["mended"] -= changed
        ledger.counts[subject]["imported"] -= total - changed
    return LedgerEntry(
        subject="image",
        fate="dropped",
        reason="same bytes as an earlier image",
        image_id=duplicate.image_id,
        detail=f"first is {duplicate.first!r}, labels: {duplicate.labels}, "
        f"splits {duplicate.first_split!r} and {duplicate.split!r}",
        annotations=objects,
    )


def count_duplicates(found: Sequence[Duplicate]) -> dict[str, int]:
    """Totals for a commit's metadata; empty where nothing is double."""
    counts = {
        "images": len(found),
        "labels_differ": sum(d.labels == "differ" for d in found),
        "first_unlabelled": sum(d.labels == "first is unlabelled" for d in found),
        "across_splits": sum(d.split != d.first_split for d in found),
    }
    return counts if found else {}


def _hashed_rows(ref: ShardRef) -> list[tuple[bytes, int, str, str]]:
    index = pq.read_table(
        pa.BufferReader(Store.open(ref.uri).read_bytes(index_path(shard_stem(ref.image_path)))), columns=["sha256"]
    )
    hashes = index["sha256"].to_pylist()
    table = read_label_columns(ref, ["row", "split", "image_id"])
    columns = (table[name].to_pylist() for name in ("row", "split", "image_id"))
    return [(bytes.fromhex(hashes[row]), row, split, image_id) for row, split, image_id in zip(*columns, strict=True)]


def _annotations(shards: Sequence[ShardRef], places: Iterable[_Place]) -> dict[_Place, Annotations | None]:
    wanted: dict[int, dict[int, _Place]] = {}
    for place in places:
        wanted.setdefault(place.shard, {})[place.row] = place
    found: dict[_Place, Annotations | None] = {}
    for number, rows in wanted.items():
        for label in read_labels(shards[number]):
            if label.row in rows:
                found[rows[label.row]] = label.annotations
    return found


def _compare(one: Annotations | None, other: Annotations | None) -> Labels:
    if other is None:
        return "unlabelled"
    if one is None:
        return "first is unlabelled"
    return "same" if _objects(one) == _objects(other) else "differ"


def _objects(annotations: Annotations) -> list[str]:
    """The objects without their ids and in no order: copies are often numbered and listed otherwise."""
    (row,) = annotations_to_arrow([annotations]).to_pylist()
    columns = [values for name, values in row.items() if name != "id" and values is not None]
    return sorted(map(repr, zip(*columns, strict=True)))
