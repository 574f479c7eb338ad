"""Verify names what is wrong, vacuum takes only what nobody names, revisions touch no image."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.maintenance import Problem, vacuum, verify
from pipelines.near_duplicates import find_near_duplicates
from pipelines.references import DatasetNotFound, EmptyDataset
from pipelines.revisions import diff, remove_images, roll_back
from pipelines.versions import open_dataset
from tests.making import commit_records, record


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    commit_records(tmp_path / "d", [record(i) for i in range(10)], plan_id="one")
    commit_records(tmp_path / "d", [record(i, prefix="b") for i in range(5)], plan_id="two")
    return tmp_path / "d"


def ids(reference: str) -> set[str]:
    return {record.image_id for record in open_dataset(reference).records()}


def files(dataset: Path) -> dict[str, float]:
    return {str(p.relative_to(dataset)): p.stat().st_mtime for p in dataset.rglob("*.parquet")}


def test_a_sound_dataset_verifies(dataset: Path):
    assert verify(str(dataset)) == []


@pytest.mark.parametrize("pattern", ["images/part-*.parquet", "labels/gt/part-*.parquet", "images/_index/*.parquet"])
def test_verify_finds_any_flipped_bit(dataset: Path, pattern: str):
    path = sorted(dataset.glob(pattern))[0]
    sound = path.read_bytes()
    rng = random.Random(0)
    for _ in range(25):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        found = verify(str(dataset))
        if "_index" in pattern:
            # A bit of the file that carries nothing may flip unseen; what the index says of images may not.
            assert all("part-" in problem.path for problem in found)
        else:
            assert str(path.relative_to(dataset)) in {problem.path for problem in found}
    path.write_bytes(sound)
    assert verify(str(dataset)) == []


def test_verify_names_the_image_and_missing_files(dataset: Path):
    first, second = open_dataset(str(dataset)).shards
    path = dataset / first.image_path
    content = bytearray(path.read_bytes())
    victim = record(3, prefix="a" if first.rows == 10 else "b")
    content[content.find(victim.image) + 100] ^= 4
    path.write_bytes(content)
    (dataset / second.image_path).unlink()
    found = verify(str(dataset))
    assert any(p.path == first.image_path and repr(victim.image_id) in p.what for p in found)
    assert Problem(path=second.image_path, what="the file is missing") in found


def test_removed_images_are_gone_from_the_new_version_only(dataset: Path):
    before = files(dataset)
    old = open_dataset(str(dataset))
    version = remove_images(str(dataset), ["a/3.jpg", "b/0.jpg"])
    assert ids(version.reference) == ids(old.reference) - {"a/3.jpg", "b/0.jpg"}
    assert len(ids(old.reference)) == 15
    new = open_dataset(version.reference)
    assert (new.num_images, version.num_images) == (13, 13)
    assert new.num_objects == sum(len(a) for *_, a in new.annotations())
    after = files(dataset)
    assert {path: after[path] for path in before} == before
    assert all(path.startswith("labels/") for path in after.keys() - before.keys())
    assert verify(version.reference) == []


def test_what_cannot_be_removed(dataset: Path):
    with pytest.raises(ValueError, match=r"no image 'a/99\.jpg'"):
        remove_images(str(dataset), ["a/1.jpg", "a/99.jpg"])
    with pytest.raises(EmptyDataset):
        remove_images(str(dataset), ids(str(dataset)))
    with pytest.raises(ValueError, match="not the newest"):
        remove_images(f"{dataset}@labels/gt:1", ["a/1.jpg"])
    assert open_dataset(str(dataset)).version == 2


def test_roll_back_and_diff(dataset: Path):
    first, second = f"{dataset}@labels/gt:1", f"{dataset}@labels/gt:2"
    found = diff(first, second)
    assert (len(found.added), found.removed, found.relabelled, found.categories) == (5, (), (), False)
    third = remove_images(str(dataset), ["a/3.jpg"]).reference
    assert diff(second, third).removed == ("a/3.jpg",)
    back = roll_back(first)
    assert back.digest == open_dataset(first).digest
    assert ids(back.reference) == ids(first)
    assert not diff(first, back.reference)
    assert open_dataset(str(dataset)).version == 4
    forward = roll_back(second)
    assert forward.digest == open_dataset(second).digest and len(ids(forward.reference)) == 15
    with pytest.raises(DatasetNotFound):
        roll_back(f"{dataset}@labels/gt:99")
    with pytest.raises(ValueError, match="names no version"):
        roll_back(str(dataset))


def test_removals_at_once_all_land(dataset: Path):
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda i: remove_images(str(dataset), [f"a/{i}.jpg"]), range(5)))
    left = open_dataset(str(dataset))
    assert ids(left.reference) == {f"a/{i}.jpg" for i in range(5, 10)} | {f"b/{i}.jpg" for i in range(5)}
    assert left.num_images == 10 and left.version == 7


def test_vacuum_takes_only_old_files_that_no_version_names(dataset: Path):
    remove_images(str(dataset), ["a/3.jpg"])
    named = set(files(dataset))
    young = dataset / "images/part-young.parquet"
    orphans = [
        dataset / "images/part-orphan.parquet",
        dataset / "images/_index/part-orphan.parquet",
        dataset / "labels/gt/part-orphan.00.parquet",
        dataset / "images/.part-x.parquet.123.tmp",
    ]
    for path in (young, *orphans):
        path.write_bytes(b"x")
    long_ago = time.time() - 3 * 3600
    for path in dataset.rglob("*"):
        if path.is_file() and path != young:
            os.utime(path, (long_ago, long_ago))
    told = vacuum(str(dataset), grace_hours=2, dry_run=True)
    assert set(told.paths) == {str(p.relative_to(dataset)) for p in orphans} and told.size == 4
    assert all(path.exists() for path in orphans)
    assert vacuum(str(dataset), grace_hours=2).paths == told.paths
    assert not any(path.exists() for path in orphans)
    assert set(files(dataset)) == {*named, "images/part-young.parquet"}
    for version in (1, 2, 3):
        assert verify(f"{dataset}@labels/gt:{version}") == []
    with pytest.raises(ValueError, match="at least 1"):
        vacuum(str(dataset), grace_hours=0)
    with pytest.raises(DatasetNotFound):
        vacuum(str(dataset) + "-other")


def test_vacuum_keeps_what_the_newest_version_looks_things_up_in(dataset: Path):
    old = open_dataset(str(dataset))
    old.read("a/1.jpg")
    find_near_duplicates(old)
    version = remove_images(str(dataset), ["a/3.jpg"])
    open_dataset(version.reference).read("a/1.jpg")
    long_ago = time.time() - 3 * 3600
    for path in dataset.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert vacuum(str(dataset), grace_hours=2).paths == (f"_lookups/gt/{old.digest}.bin",)
    assert old.read("a/1.jpg").image == record(1).image
    assert len(list(dataset.glob("_hashes/*"))) == 2
