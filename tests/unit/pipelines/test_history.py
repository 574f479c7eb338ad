"""Versions are listed with what made them; one image by an id that somebody typed; a damaged log is told as such."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.delta import DamagedLog
from pipelines.history import list_versions
from pipelines.image_details import describe_image, read_one
from pipelines.maintenance import verify, verify_newest
from pipelines.purging import purge_images
from pipelines.references import DatasetNotFound
from pipelines.revisions import remove_images, roll_back
from pipelines.versions import open_dataset
from tests.making import LABEL_MAP, commit_records, record


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    commit_records(tmp_path / "d", [record(i) for i in range(8)], plan_id="one")
    return str(tmp_path / "d")


def test_each_version_says_what_made_it(dataset: str):
    remove_images(dataset, ["a/3.jpg"])
    roll_back(f"{dataset}@labels/gt:1")
    purge_images(dataset, ["a/4.jpg"])
    found = list_versions(dataset)
    assert [(v.version, v.operation, v.detail, v.images) for v in found] == [
        (4, "purge", "", 7),
        (3, "roll back", "to version 1", 8),
        (2, "remove", "1 images", 7),
        (1, "ingest", "", 8),
    ]
    assert [v.newest for v in found] == [True, False, False, False]
    assert found[1].reference == f"{dataset}@labels/gt:3"
    assert [v.version for v in list_versions(f"{dataset}@labels/gt:2")] == [2, 1]
    for wrong in ("@labels/none", "@labels/gt:9", "@labels/gt:0"):
        with pytest.raises(DatasetNotFound):
            list_versions(dataset + wrong)


def test_a_dry_purge_tells_what_a_purge_does_and_does_nothing(dataset: str):
    before = {path: path.read_bytes() for path in Path(dataset).rglob("*") if path.is_file()}
    told = purge_images(dataset, ["a/4.jpg"], dry_run=True)
    assert {path: path.read_bytes() for path in Path(dataset).rglob("*") if path.is_file()} == before
    done = purge_images(dataset, ["a/4.jpg"])
    assert (told.image_ids, told.shards, set(told.versions)) == (done.image_ids, done.shards, set(done.versions))
    assert (told.deleted, done.deleted) == (False, True)
    with pytest.raises(ValueError, match=r"no image 'a/4\.jpg'"):
        purge_images(dataset, ["a/4.jpg"], dry_run=True)


def test_what_was_purged_is_not_called_missing(dataset: str):
    purge_images(dataset, ["a/4.jpg"])
    problems = verify(f"{dataset}@labels/gt:1")
    assert len(problems) == 2 and all("purged" in problem.what for problem in problems)
    told: list[tuple[int, int]] = []
    assert verify_newest(dataset, progress=lambda done, total: told.append((done, total))) == []
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"{", lambda b: None])
def test_a_damaged_log_is_a_problem_that_names_it(dataset: str, damage):
    remove_images(dataset, ["a/3.jpg"])
    path = Path(dataset) / "labels/gt/_delta_log/00000000000000000001.json"
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    for check in (verify, verify_newest):
        (problem,) = check(dataset)
        assert problem.path == "labels/gt/_delta_log" and "restore it from a copy" in problem.what
    with pytest.raises(DamagedLog):
        open_dataset(dataset)


def test_one_image_with_all_that_is_said_of_it(dataset: str):
    opened = open_dataset(dataset)
    found = describe_image(read_one(opened, "a/3.jpg"), LABEL_MAP)
    truth = record(3)
    assert (found["image_id"], found["bytes"], found["sha256"]) == ("a/3.jpg", len(truth.image), truth.sha256)
    assert found["extra"] == {"number": 3} and len(found["objects"]) == 3
    first, second, _ = found["objects"]
    assert first["category"] == "ball" and first["polygons"] == truth.annotations.polygons[0]
    assert first["keypoints"] == [[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
    assert second["category"] == "person" and second["rle"] == {"size": (16, 24), "counts": (10, 5, 369)}
    assert describe_image(read_one(opened, "a/6.jpg"), LABEL_MAP)["objects"] is None


@pytest.mark.parametrize("typed", ["3.jpg", "a/3.png", "A/3", "b/3.jpg"])
def test_an_id_that_is_not_there_is_refused_with_one_that_is(dataset: str, typed: str):
    with pytest.raises(ValueError, match=r"did you mean 'a/3\.jpg'"):
        read_one(open_dataset(dataset), typed)
