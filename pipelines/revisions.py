"""Changes of a label set that rewrite no image: remove images, roll back; and what differs between two versions.

Each is one commit on top of the newest version, made anew where another commit was faster, so that they are safe
beside ingests and beside each other. Older versions stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import delta
from pipelines.commits import DatasetVersion
from pipelines.label_commits import (
    check_newest,
    commit_revision,
    file_changes,
    moved_files,
    purged_shards,
    revised_metadata,
    rewrite_label_file,
)
from pipelines.lineage import ROLL_BACK
from pipelines.references import Reference, check_schema, parse_reference
from pipelines.shard_paths import index_path, shard_stem
from pipelines.shards import read_label_file
from pipelines.storage import Store, redact
from pipelines.versions import Dataset, open_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What the second of two versions has otherwise than the first; image ids, sorted.

    Attributes:
        added, removed: images that only the second, only the first has.
        relabelled: images whose annotations or split differ.
        replaced: images of the same id with other bytes.
        categories: whether the categories differ.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    relabelled: tuple[str, ...]
    replaced: tuple[str, ...]
    categories: bool

    def __bool__(self) -> bool:
        return self.categories or any((self.added, self.removed, self.relabelled, self.replaced))


def remove_images(reference: str, image_ids: Collection[str]) -> DatasetVersion:
    """A new version of a label set without some images. Label files are rewritten, image files are not touched.

    Args:
        reference: ``URI`` or ``URI@labels/<set>``; the newest version is changed.
        image_ids: to leave out; all must be in the newest version.
    Raises:
        ValueError: one of them is not in the label set, or the reference names a version that is not the newest.
        EmptyDataset: not one image would be left.
    """
    wanted = parse_reference(reference)
    store = Store.open(wanted.uri)
    ids = sorted(set(image_ids))

    open_dataset(Reference(uri=wanted.uri, label_set=wanted.label_set))

    def change(before: delta.Snapshot) -> delta.Change:
        check_newest(wanted, before)
        add, remove, left = [], [], set(ids)
        for file in before.files:
            path = f"labels/{wanted.label_set}/{file.path}"
            table = read_label_file(store.uri, path)
            gone = pc.is_in(table["image_id"], value_set=pa.array(ids, pa.string()))
            found = table.filter(gone)["image_id"].to_pylist()
            if not found:
                continue
            left -= set(found)
            remove.append(file)
            kept = table.filter(pc.invert(gone))
            if kept.num_rows:
                add.append(rewrite_label_file(store, wanted.label_set, file.path, kept))
        if left:
            raise ValueError(
                f"{redact(str(wanted))} has no image {sorted(left)[0]!r} ({len(left)} of {len(ids)} missing)"
            )
        gone_paths = {file.path for file in remove}
        files = [file for file in before.files if file.path not in gone_paths] + add
        done = {"operation": "remove", "images": len(ids), "from_version": before.version}
        metadata = revised_metadata(store, wanted.label_set, before.metadata, files, done)
        return delta.Change(add=tuple(add), remove=tuple(remove), metadata=metadata)

    return commit_revision(store, wanted, change)


def roll_back(reference: str) -> DatasetVersion:
    """A new version equal to an older one, which ``reference`` names: ``URI@labels/<set>:<version>``.

    Raises:
        ValueError: no version is named.
        DatasetNotFound: there is none of that number.
    """
    wanted = parse_reference(reference)
    if wanted.version is None:
        raise ValueError(
            f"{reference!r} names no version to go back to; write URI@labels/<set>:<version>, as `boxmill versions` "
            "lists them"
        )
    open_dataset(wanted)
    store = Store.open(wanted.uri)
    old = delta.open_snapshot(store.sub("labels", wanted.label_set), wanted.version)
    check_schema(old.metadata, redact(reference))
    missing = [f.path for f in old.files if not store.exists(f"labels/{wanted.label_set}/{f.path}")]
    if missing:
        raise ValueError(f"{redact(reference)} cannot be gone back to: {missing[0]} was vacuumed")

    def change(before: delta.Snapshot) -> delta.Change:
        done = {"operation": ROLL_BACK, "to_version": old.version, "from_version": before.version}
        metadata = {**old.metadata, "images_version": before.metadata["images_version"], "revision": done}
        # What was purged since does not come back.
        files = moved_files(store, wanted.label_set, old.files, purged_shards(store))
        if files != list(old.files):
            metadata = revised_metadata(store, wanted.label_set, metadata, files, done)
        return file_changes(before.files, files, metadata)

    return commit_revision(store, wanted, change)


def diff(first: str, second: str) -> Difference:
    """What the second version has otherwise than the first. Files that both have are not read.

    Whether bytes differ cannot be told of shards that were purged since: they count as equal.
    """
    one, other = open_dataset(first), open_dataset(second)
    same = {s.label_path.rsplit("/", 1)[-1] for s in one.shards} & {
        s.label_path.rsplit("/", 1)[-1] for s in other.shards
    }
    old, new = (_labels_by_id(dataset, same) for dataset in (one, other))
    both = old.keys() & new.keys()
    # An image in an untouched file of both is in neither table; one that moved between shards is compared by bytes.
    moved = sorted(i for i in both if old[i].stem != new[i].stem)
    before, after = (_hashes(dataset, labels, moved) for dataset, labels in ((one, old), (other, new)))
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        relabelled=tuple(sorted(i for i in both if old[i].digest != new[i].digest)),
        replaced=tuple(i for i in moved if i in before and i in after and before[i] != after[i]),
        categories=one.label_map.digest != other.label_map.digest,
    )


@dataclass(frozen=True, slots=True)
class _Label:
    stem: str
    row: int
    digest: str


def _labels_by_id(dataset: Dataset, skip: Collection[str]) -> dict[str, _Label]:
    labels = {}
    for shard in dataset.shards:
        if shard.label_path.rsplit("/", 1)[-1] in skip:
            continue
        for values in read_label_file(shard.uri, shard.label_path).to_pylist():
            row, image_id = values.pop("row"), values.pop("image_id")
            del values["row_group"]
            digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
            labels[image_id] = _Label(shard_stem(shard.image_path), row, digest)
    return labels


def _hashes(dataset: Dataset, labels: Mapping[str, _Label], image_ids: Collection[str]) -> dict[str, str]:
    """sha256 by image id, from the byte-offset indexes."""
    store = Store.open(dataset.uri)
    found: dict[str, str] = {}
    for stem in {labels[i].stem for i in image_ids}:
        try:
            content = store.read_bytes(index_path(stem))
        except FileNotFoundError:  # purged since
            continue
        table = pq.read_table(pa.BufferReader(content), columns=["image_id", "sha256"])
        hashes = dict(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
        # A shard may also hold an image that was removed and came again in another.
        found |= {i: hashes[i] for i in image_ids if labels[i].stem == stem}
    return found
