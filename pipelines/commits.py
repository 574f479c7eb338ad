"""Committing a dataset version: images first, then labels, each once a plan.

The label commit is the one commit point: what the label set does not name is not in the dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import pyarrow as pa

from pipelines import delta
from pipelines.ledger import Ledger
from pipelines.lineage import PURGE, lineage, transaction_of
from pipelines.prediction_makers import check_made_alike
from pipelines.records import LabelMap
from pipelines.references import (
    CategoryMismatch,
    DuplicateImages,
    EmptyDataset,
    check_label_set_name,
    check_schema,
    format_reference,
)
from pipelines.schema import IMAGES, LABELS, SCHEMA_VERSION
from pipelines.shard_paths import image_path, shard_stem
from pipelines.shards import ShardFile, ShardRef, read_label_columns
from pipelines.storage import Store, absolute, redact

Kind = Literal["truth", "predictions"]
_READERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """What a commit returns and flows pass around.

    Attributes:
        reference: with its version.
        digest: sha256 over categories and the names (content hashes) of all files of the version.
        num_images, num_objects, splits: of the whole version.
        ledger: sums of the plan; see ``Ledger.sums``.
        duplicates: counts of images with the same bytes as an earlier one, as the plan's commit found them.
        near_duplicates: counts of images of the version that look like an earlier one, where that was asked for.
        found: True if an earlier run of the same plan had made it.
    """

    reference: str
    digest: str
    num_images: int
    num_objects: int
    splits: Mapping[str, int] = field(default_factory=dict)
    ledger: Mapping[str, Any] = field(default_factory=dict)
    duplicates: Mapping[str, int] = field(default_factory=dict)
    near_duplicates: Mapping[str, int] = field(default_factory=dict)
    found: bool = False

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def commit_images(uri: str, files: Sequence[ShardFile], *, plan_id: str) -> int:
    """Add image shards; they are in no dataset version until labels name them. Returns the images version."""
    stems = {shard_stem(f.path) for f in files}

    def metadata(before: delta.Snapshot) -> dict[str, Any]:
        # What was purged once may come again, under the same name: then it is there.
        purged = {old: new for old, new in before.metadata.get("purged", {}).items() if old not in stems}
        values = {"schema_version": SCHEMA_VERSION, "plan_id": plan_id}
        return {**values, "purged": purged} if purged else values

    version, _ = delta.commit_once(
        Store.open(uri).sub("images"),
        [_table_file(f) for f in files],
        schema=IMAGES,
        transaction_id=plan_id,
        metadata=metadata,
    )
    return version


def commit_labels(
    uri: str,
    label_set: str,
    files: Sequence[ShardFile],
    *,
    plan_id: str,
    label_map: LabelMap,
    images_version: int,
    ledger: Mapping[str, Any],
    kind: Kind = "truth",
    provenance: Mapping[str, Any] | None = None,
    unique_images: bool = True,
    schema: pa.Schema = LABELS,
) -> DatasetVersion:
    """Commit a plan's label files: the commit point of a dataset version or of a prediction set.

    A further plan on the same label set appends its images; its categories must be the same, and so must be the model
    and the settings of predictions.

    Args:
        uri, label_set: where.
        files: label files of the plan, one an image shard.
        plan_id: also the transaction id: of many callers exactly one commits, the others find it.
        label_map: categories of the label set.
        images_version: the version of the images table that the files belong to.
        ledger: the plan's sums.
        kind: truth or a model's predictions.
        provenance: JSON-ready facts about the source or the model.
        unique_images: refuse images whose id the label set already has.
        schema: of the files: LABELS, or more columns behind those.
    Raises:
        CategoryMismatch, DuplicateImages, EmptyDataset.
        ValueError: the label set is of the other kind, or its predictions were made otherwise.
    """
    if not sum(f.rows for f in files):
        raise EmptyDataset(f"not one image to commit to {redact(uri)}")
    store = Store.open(uri)

    def metadata(before: delta.Snapshot) -> dict[str, Any]:
        old = before.metadata
        if old:
            _check_kind(store.uri, label_set, before, label_map, kind)
            if kind == "predictions" and before.files:
                where = redact(format_reference(store.uri, label_set, before.version))
                check_made_alike(where, old.get("provenance") or {}, provenance or {})
            if unique_images:
                _check_new(store.uri, label_set, before, _image_ids(store.uri, label_set, [f.path for f in files]))
        paths = sorted({f"labels/{label_set}/{f.path}" for f in before.files} | {f.path for f in files})
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": kind,
            "plan_id": plan_id,
            "images_version": images_version,
            "categories": label_map.to_json(),
            "digest": version_digest(label_map, paths, label_set),
            "num_images": old.get("num_images", 0) + sum(f.rows for f in files),
            "num_objects": old.get("num_objects", 0) + sum(f.num_objects for f in files),
            "splits": _sum_counts([old.get("splits", {}), *(f.splits for f in files)]),
            "ledger": _sum_ledgers(old.get("ledger"), ledger),
            "plan_ledger": dict(ledger),
            "provenance": dict(provenance or {}),
        }

    table = store.sub("labels", check_label_set_name(label_set))
    version, found = delta.commit_once(
        table,
        [_table_file(f) for f in files],
        schema=schema,
        transaction_id=_transaction_id(table, plan_id),
        metadata=metadata,
    )
    return describe_version(store.uri, label_set, version, found=found)


def find_version(uri: str, label_set: str, plan_id: str) -> DatasetVersion | None:
    """The version that a plan has made, if it has and was not rolled back since."""
    table = Store.open(uri).sub("labels", label_set)
    try:
        _, version = transaction_of(table, plan_id)
    except delta.TableNotFound:
        return None
    if version is None:
        return None
    newest = delta.newest_version(table)
    for commit in lineage(table, newest):
        if commit.version <= version:
            break
        if (commit.metadata.get("revision") or {}).get("operation") == PURGE:
            version = newest  # of older versions images are missing
            break
    return describe_version(uri, label_set, version, found=True)


def _transaction_id(table: Store, plan_id: str) -> str:
    try:
        return transaction_of(table, plan_id)[0]
    except delta.TableNotFound:
        return plan_id


def check_appends(uri: str, label_set: str, *, label_map: LabelMap, image_ids: set[str], kind: Kind = "truth") -> None:
    """Refuse early what ``commit_labels`` would refuse after all the work.

    Raises:
        CategoryMismatch, DuplicateImages, ValueError: as there.
    """
    try:
        before = delta.open_snapshot(Store.open(uri).sub("labels", check_label_set_name(label_set)))
    except delta.TableNotFound:
        return
    if before.metadata:
        _check_kind(uri, label_set, before, label_map, kind)
        _check_new(uri, label_set, before, image_ids)


def describe_version(uri: str, label_set: str, version: int, *, found: bool) -> DatasetVersion:
    snapshot = delta.open_snapshot(Store.open(uri).sub("labels", label_set), version)
    values = snapshot.metadata
    return DatasetVersion(
        reference=format_reference(absolute(uri), label_set, version),
        digest=values["digest"],
        num_images=values["num_images"],
        num_objects=values["num_objects"],
        splits=values["splits"],
        ledger=values["plan_ledger"],
        duplicates=(values.get("provenance") or {}).get("duplicates", {}),
        found=found,
    )


def _table_file(file: ShardFile) -> delta.TableFile:
    split = next(iter(file.splits)) if len(file.splits) == 1 else None
    return delta.TableFile(path=file.path.rsplit("/", 1)[-1], size=file.size, rows=file.rows, split=split)


def version_digest(label_map: LabelMap, paths: Sequence[str], label_set: str) -> str:
    """Of a version: its categories and the names of its label files."""
    # Label files are named by their content and their image shard's, so names stand for everything. The name of
    # the label set is left out: equal content has equal digests.
    names = [p.removeprefix(f"labels/{label_set}/") for p in paths]
    content = {"schema_version": SCHEMA_VERSION, "categories": label_map.digest, "files": names}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sum_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for name, value in count.items():
            total[name] = total.get(name, 0) + value
    return total


def _sum_ledgers(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    if not old or "images" not in old or "images" not in new:
        return dict(new)
    total = Ledger.from_json(old)
    total.merge(Ledger.from_json(new))
    return total.sums()


def _check_kind(uri: str, label_set: str, before: delta.Snapshot, label_map: LabelMap, kind: Kind) -> None:
    where = redact(format_reference(uri, label_set, before.version))
    check_schema(before.metadata, where)
    if before.metadata["kind"] != kind:
        raise ValueError(f"{where} holds {before.metadata['kind']}, not {kind}; choose another label set name")
    if LabelMap.from_json(before.metadata["categories"]).digest != label_map.digest:
        old = [c["name"] for c in before.metadata["categories"]]
        raise CategoryMismatch(
            f"{where} has the categories {old[:10]}, what you add has {list(label_map.names[:10])} (names, ids and "
            "keypoints must all agree); add it to another dataset URI or label set"
        )


def _check_new(uri: str, label_set: str, before: delta.Snapshot, image_ids: set[str]) -> None:
    present = _image_ids(uri, label_set, [f"labels/{label_set}/{f.path}" for f in before.files])
    twice = sorted(present & image_ids)
    if twice:
        raise DuplicateImages(
            f"{redact(format_reference(uri, label_set, before.version))} already has {len(twice)} of these images, "
            f"e.g. {twice[0]!r}; ingest a changed source into a new dataset URI or label set"
        )


def _image_ids(uri: str, label_set: str, label_paths: Sequence[str]) -> set[str]:
    refs = [
        ShardRef(uri=uri, label_set=label_set, image_path=image_path(shard_stem(p)), label_path=p, rows=0)
        for p in label_paths
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        return set().union(*pool.map(_ids_of, refs))


# A commit that loses races asks again each time; files never change, so only those of the winners are new to it.
@lru_cache(maxsize=512)
def _ids_of(ref: ShardRef) -> frozenset[str]:
    return frozenset(read_label_columns(ref, ["image_id"])["image_id"].to_pylist())
