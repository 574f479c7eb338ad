"""Verify and vacuum: is everything there as it was written, and what may go."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import delta
from pipelines.lookup import lookup_path
from pipelines.near_duplicates import hashes_path
from pipelines.references import parse_reference
from pipelines.shards import index_path, shard_stem
from pipelines.storage import Store, redact
from pipelines.versions import list_label_sets, open_dataset

GRACE_HOURS = 168.0
_READERS = 8
_CHUNK = 8 * 2**20
# Made again when they are asked for: kept for the newest versions only.
_DERIVED = ("_lookups", "_hashes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A file of a version that is not what was committed; ``path`` is relative to the dataset."""

    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacuumed:
    """Files that no version names, with their sizes in bytes; ``deleted`` is False for a dry run."""

    paths: tuple[str, ...]
    size: int
    deleted: bool


def verify(reference: str) -> list[Problem]:
    """Read every file of a version again and compare it with the digests that were taken when it was written.

    Args:
        reference: of one version; see ``open_dataset``.
    Returns:
        One problem a missing, cut or changed file, images named; empty where all is well.
    """
    dataset = open_dataset(reference)
    store = Store.open(dataset.uri)
    # Predictions have several label files an image shard, or none of our image shards at all.
    image_paths = sorted({ref.image_path for ref in dataset.shards}) if dataset.has_images else []
    with ThreadPoolExecutor(_READERS) as pool:
        labels = pool.map(
            lambda ref: _verify_name(store, ref.label_path, ref.label_path.split(".")[-2]), dataset.shards
        )
        images = pool.map(lambda path: _verify_shard(store, path), image_paths)
        return [problem for problems in (*labels, *images) for problem in problems]


def _verify_shard(store: Store, path: str) -> list[Problem]:
    stem = shard_stem(path)
    found = _verify_name(store, path, stem.removeprefix("part-"))
    return found + _verify_images(store, path, index_path(stem))


def _verify_name(store: Store, path: str, digest: str) -> list[Problem]:
    """Files are named by the first half of their sha256."""
    try:
        with store.open_read(path) as stream:
            sha256 = hashlib.sha256()
            while content := stream.read(_CHUNK):
                sha256.update(content)
    except FileNotFoundError:
        return [Problem(path=path, what="the file is missing")]
    except OSError as error:
        return [Problem(path=path, what=f"the file cannot be read: {error}")]
    if sha256.hexdigest()[:32] == digest:
        return []
    return [Problem(path=path, what="its bytes differ from the digest in its name")]


def _verify_images(store: Store, image_path: str, index: str) -> list[Problem]:
    """The index has no digest of its own: what it says of each image is checked against the shard."""
    try:
        rows = pq.read_table(pa.BufferReader(store.read_bytes(index))).to_pylist()
    except FileNotFoundError:
        return [Problem(path=index, what="the file is missing")]
    except (OSError, ValueError, pa.ArrowException) as error:
        return [Problem(path=index, what=f"the file cannot be read: {error}")]
    problems = []
    try:
        with store.open_read(image_path) as stream:
            for row in rows:
                stream.seek(row["offset"])
                if hashlib.sha256(stream.read(row["length"])).hexdigest() != row["sha256"]:
                    what = f"image {row['image_id']!r} differs from its sha256 in {index}"
                    problems.append(Problem(path=image_path, what=what))
    except OSError:
        return []  # told of already
    except (ValueError, KeyError, TypeError) as error:
        return [Problem(path=index, what=f"it names places that cannot be: {error}")]
    return problems


def vacuum(uri: str, *, grace_hours: float = GRACE_HOURS, dry_run: bool = False) -> Vacuumed:
    """Delete files that no version of any label set names: of killed workers, lost races, abandoned plans.

    Every version stays readable. A running ingest has written files that no version names yet, so only files older
    than the grace period go; it must be longer than the longest ingest takes.

    Args:
        uri: the dataset.
        grace_hours: at least 1; a file younger than this stays.
        dry_run: tell, but delete nothing.
    Raises:
        ValueError: a grace period of under an hour.
        DatasetNotFound: nothing is there.
    """
    if grace_hours < 1:
        raise ValueError(f"grace_hours={grace_hours}: give at least 1, a running ingest's files are not committed yet")
    dataset_uri = parse_reference(uri).uri
    if not list_label_sets(dataset_uri):
        open_dataset(dataset_uri)  # raises, and names near ones
    store = Store.open(dataset_uri)
    before = time.time() - grace_hours * 3600
    # Listed first: what is committed after this is in the list of named files, or too young.
    old = [entry for entry in _candidates(store) if entry[2] < before]
    named = set(_named_files(store))
    going = sorted((path, size) for path, size, _ in old if path not in named)
    if not dry_run:
        for path, _ in going:
            store.fs.rm_file(f"{store.root}/{path}")
    return Vacuumed(paths=tuple(p for p, _ in going), size=sum(size for _, size in going), deleted=not dry_run)


def _candidates(store: Store) -> Iterator[tuple[str, int, float]]:
    """(path, size, seconds since 1970) of every data file and leftover; never of a log, receipt or quarantine."""
    for folder in ("images", "labels", *_DERIVED):
        try:
            found: dict[str, dict[str, Any]] = store.fs.find(f"{store.root}/{folder}", detail=True)
        except FileNotFoundError:
            continue
        for name, entry in found.items():
            path = name.removeprefix(f"{store.root}/").lstrip("/")
            if "/_delta_log/" not in path:
                yield path, int(entry["size"] or 0), _modified(entry, redact(store.join(path)))


def _modified(entry: dict[str, Any], where: str) -> float:
    value = entry.get("mtime", entry.get("LastModified", entry.get("created")))
    if isinstance(value, datetime):
        return value.timestamp()
    if not isinstance(value, (int, float)):
        raise ValueError(f"{where}: the store does not tell when it was written, so nothing can be vacuumed there")
    return float(value)


def _named_files(store: Store) -> Iterator[str]:
    """Every file that any version of any table names, the shards of label files included."""
    for label_set in list_label_sets(store.uri):
        for path in delta.all_files(store.sub("labels", label_set)):
            yield f"labels/{label_set}/{path}"
            stem = shard_stem(path)
            yield from (f"images/{stem}.parquet", index_path(stem))
        newest = delta.open_snapshot(store.sub("labels", label_set))
        yield lookup_path(label_set, str(newest.metadata.get("digest", "")))
        yield from (hashes_path(shard_stem(file.path)) for file in newest.files)
    if delta.exists(store.sub("images")):
        for path in delta.all_files(store.sub("images")):
            yield from (f"images/{path}", index_path(shard_stem(path)))
