"""Verify and vacuum: is everything there as it was written, and what may go."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import delta
from pipelines.ages import DatedFile, dated_files, written_at
from pipelines.label_commits import purged_shards
from pipelines.lookup import lookup_path
from pipelines.near_duplicates import hashes_path
from pipelines.references import EmptyDataset, Reference, parse_reference
from pipelines.resuming import UncommittedPlan, last_change, uncommitted_plans
from pipelines.shard_digest import ShardDigest
from pipelines.shard_paths import index_path, shard_stem
from pipelines.storage import Store
from pipelines.versions import Dataset, list_label_sets, open_dataset

GRACE_HOURS = 168.0
_READERS = 8
_CHUNK = 8 * 2**20
_MISSING = "the file is missing"
_PURGED = "images of this file were purged since, which older versions then lack"
_ATTEMPTS = 5
# Made again when they are asked for: kept for the newest versions only.
_DERIVED = ("_lookups", "_hashes", "_matches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A file of a version that is not what was committed; ``path`` is relative to the dataset."""

    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacuumed:
    """Files that no version names.

    Attributes:
        paths: relative to the dataset, sorted.
        size: of all of them, bytes.
        deleted: False for a dry run.
        plans: ids of the plans that counted on some of them and go with them.
    """

    paths: tuple[str, ...]
    size: int
    deleted: bool
    plans: tuple[str, ...] = ()


def verify(reference: str, *, progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Read every file of a version again and compare it with the digests that were taken when it was written.

    Args:
        reference: of one version; see ``open_dataset``.
        progress: called as ``progress(done, total)`` with files.
    Returns:
        One problem a missing, cut or changed file, images named; sorted, empty where all is well.
    """
    wanted = parse_reference(reference)
    try:
        return _verify([open_dataset(wanted)], progress)
    except delta.DamagedLog as error:
        return [_damaged_log(wanted.label_set, error)]


def verify_newest(uri: str, *, progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """As ``verify``, of the newest version of every label set; files that several of them name are read once."""
    dataset_uri = parse_reference(uri).uri
    for _ in range(_ATTEMPTS):
        problems = _verify_newest(dataset_uri, progress)
        # A purge that ran beside us has deleted files of what was the newest version: look at what is it now.
        if not any(problem.what == _PURGED for problem in problems):
            break
    return problems


def _verify_newest(uri: str, progress: Callable[[int, int], None] | None) -> list[Problem]:
    datasets, problems = [], []
    for label_set in list_label_sets(uri):
        try:
            datasets.append(open_dataset(Reference(uri=uri, label_set=label_set)))
        except EmptyDataset:  # all its images were purged
            continue
        except delta.DamagedLog as error:
            problems.append(_damaged_log(label_set, error))
    if not datasets and not problems:
        datasets.append(open_dataset(uri))
    return problems + (_verify(datasets, progress) if datasets else [])


def _damaged_log(label_set: str, error: delta.DamagedLog) -> Problem:
    return Problem(path=f"labels/{label_set}/_delta_log", what=str(error))


def _verify(datasets: Sequence[Dataset], progress: Callable[[int, int], None] | None) -> list[Problem]:
    store = Store.open(datasets[0].uri)
    label_paths = {ref.label_path for dataset in datasets for ref in dataset.shards}
    # Predictions have several label files an image shard, or none of our image shards at all.
    image_paths = {ref.image_path for dataset in datasets if dataset.has_images for ref in dataset.shards}
    problems: list[Problem] = []
    with ThreadPoolExecutor(_READERS) as pool:
        checks = [pool.submit(_verify_name, store, path, path.split(".")[-2]) for path in label_paths]
        checks += [pool.submit(_verify_shard, store, path) for path in image_paths]
        for done, check in enumerate(as_completed(checks), 1):
            problems += check.result()
            if progress is not None:
                progress(done, len(checks))
    purged = purged_shards(store) if problems else {}
    problems = [_explained(problem, purged) for problem in problems]
    return sorted(problems, key=lambda problem: (problem.path, problem.what))


def _explained(problem: Problem, purged: Mapping[str, str]) -> Problem:
    """A file that is missing because its images were purged is no damage of the store, but its version has lost it."""
    if problem.what == _MISSING and problem.path.startswith("images/") and shard_stem(problem.path) in purged:
        return Problem(path=problem.path, what=_PURGED)
    return problem


def _verify_shard(store: Store, path: str) -> list[Problem]:
    """The shard and its index, which has no digest of its own: what it says of each image is checked.

    A shard is named by its ``ShardDigest``, older ones by the sha256 of the file.
    """
    stem = shard_stem(path)
    index = index_path(stem)
    try:
        rows = pq.read_table(pa.BufferReader(store.read_bytes(index))).to_pylist()
    except FileNotFoundError:
        return [*_missing(store, path), Problem(path=index, what=_MISSING)]
    except (OSError, ValueError, pa.ArrowException) as error:
        return [*_missing(store, path), Problem(path=index, what=f"the file cannot be read: {error}")]
    try:
        digest, differing = _digest_shard(store, path, rows)
    except FileNotFoundError:
        return [Problem(path=path, what=_MISSING)]
    except OSError as error:
        return [Problem(path=path, what=f"the file cannot be read: {error}")]
    except (ValueError, KeyError, TypeError) as error:
        return [*_missing(store, path), Problem(path=index, what=f"it names places that cannot be: {error}")]
    if digest[:32] == stem.removeprefix("part-"):
        return [Problem(path=index, what=f"it gives another sha256 of image {image_id!r}") for image_id in differing]
    return _verify_name(store, path, stem.removeprefix("part-")) + [
        Problem(path=path, what=f"image {image_id!r} differs from its sha256 in {index}") for image_id in differing
    ]


def _digest_shard(store: Store, path: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Its ``ShardDigest``, and the ids of images that differ from their sha256 in the index."""
    digest, differing, position = ShardDigest(), [], 0
    with store.open_read(path) as stream:
        for row in rows:
            offset, length = int(row["offset"]), int(row["length"])
            if offset < position or length < 0:
                raise ValueError(f"image {row['image_id']!r} at {offset}, {length} bytes")
            while content := stream.read(min(_CHUNK, offset - position)):
                digest.rest(content)
                position += len(content)
            found = hashlib.sha256(stream.read(length)).hexdigest()
            digest.image(found)
            position += length
            if found != row["sha256"]:
                differing.append(row["image_id"])
        while content := stream.read(_CHUNK):
            digest.rest(content)
    return digest.hexdigest(), differing


def _missing(store: Store, path: str) -> list[Problem]:
    return [] if store.exists(path) else [Problem(path=path, what=_MISSING)]


def _verify_name(store: Store, path: str, digest: str) -> list[Problem]:
    """Files are named by the first half of their sha256."""
    try:
        with store.open_read(path) as stream:
            sha256 = hashlib.sha256()
            while content := stream.read(_CHUNK):
                sha256.update(content)
    except FileNotFoundError:
        return [Problem(path=path, what=_MISSING)]
    except OSError as error:
        return [Problem(path=path, what=f"the file cannot be read: {error}")]
    if sha256.hexdigest()[:32] == digest:
        return []
    return [Problem(path=path, what="its bytes differ from the digest in its name")]


def vacuum(uri: str, *, grace_hours: float = GRACE_HOURS, dry_run: bool = False) -> Vacuumed:
    """Delete files that no version of any label set names: of killed workers, lost races, abandoned plans.

    Every version stays readable. A running ingest has written files that no version names yet, so only files older
    than the grace period go; it must be longer than the longest ingest takes. Files that a plan counts on stay as long
    as anything happened in its folder within the period; after that the plan goes, and then its files: the same ingest
    or labelling starts anew.

    Safe beside whoever works on the dataset, but for one moment: between the last look at a file's age and its deletion
    (one request) it must not be written again and committed.

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
    old = {file.path: file for file in _candidates(store) if file.written < before}
    going = old.keys() - set(_named_files(store))
    plans = list(uncommitted_plans(store)) if going else []
    for plan in plans:
        if last_change(plan.job) >= before:
            going -= plan.files
    plans = [plan for plan in plans if not going.isdisjoint(plan.files)]
    if not dry_run:
        going = _delete(store, going, plans, before)
    return Vacuumed(
        paths=tuple(sorted(going)),
        size=sum(old[path].size for path in going),
        deleted=not dry_run,
        plans=tuple(sorted(plan.job.plan_id for plan in plans)),
    )


def _delete(store: Store, going: Set[str], plans: Sequence[UncommittedPlan], before: float) -> set[str]:
    """Receipts first: whoever goes on with a plan finds them gone and does the tasks again.

    What happened since the files were listed is looked at now: a plan that somebody has taken up, a commit, a file that
    was written again under its name, which is that of its content.
    """
    left = set(going)
    for plan in plans:
        plan.job.take_back(plan.job.done())
        if last_change(plan.job) >= before:
            left -= plan.files
        else:
            plan.job.delete()
    left -= set(_named_files(store))
    deleted = set()
    for path in sorted(left):
        written = written_at(store, path)
        if written is not None and written < before and store.remove(path):
            deleted.add(path)
    return deleted


def _candidates(store: Store) -> Iterator[DatedFile]:
    """Every data file and leftover; never of a log, receipt or quarantine."""
    for folder in ("images", "labels", *_DERIVED):
        yield from (file for file in dated_files(store, folder) if "/_delta_log/" not in file.path)


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
