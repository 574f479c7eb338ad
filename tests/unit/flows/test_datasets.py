"""Datasets looked after from the command line: each command on real files, its exit code, document and refusals."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from flows.cli import app, console
from flows.config import Dedupe, IngestConfig, MaintainConfig
from flows.steps import maintain
from pipelines.duplicates import Dedupe as WorkersDedupe
from pipelines.versions import list_label_sets, open_dataset
from tests.making import coco_document, coco_images, commit_records, encoded, record, write_coco


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = app.run(arguments)
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def document(capfd, *arguments: str, code: int = console.OK) -> dict[str, Any]:
    """The one JSON document of a command that ends with ``code``."""
    found, out, err = run(capfd, *arguments, "--json")
    assert found == code, err
    return json.loads(out)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """10 and then 5 images more: versions 1 and 2."""
    commit_records(tmp_path / "d", [record(i) for i in range(10)], plan_id="one")
    commit_records(tmp_path / "d", [record(i, prefix="b", split="val") for i in range(5)], plan_id="two")
    return str(tmp_path / "d")


def content(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight images in two folders, one of them twice, and one whose last bytes are noise."""
    for folder in ("p1", "p2"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for i in range(4):
            path = tmp_path / "photos" / folder / f"{i}.jpg"
            path.write_bytes(encoded(64, 48, seed=i + 4 * (folder == "p2")))
    (tmp_path / "photos/p2/3.jpg").write_bytes((tmp_path / "photos/p1/0.jpg").read_bytes())
    damaged = bytearray(encoded(64, 48, seed=99, format="PNG"))
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "photos/p2/damaged.png").write_bytes(damaged)
    return tmp_path / "photos"


def test_every_check_and_split_of_ingest_can_be_asked_for(capfd, photos, tmp_path):
    config = tmp_path / "ingest.yaml"
    config.write_text("dedupe: keep\ndeep_check: true\n")
    call = ["ingest", "images", str(photos), "--dataset", str(tmp_path / "d"), "--config", str(config)]
    call += ["--dedupe", "drop", "--near-duplicates", "--split-ratio", "a=1,b=1", "--split-pattern", "^([^/]+)/"]
    code, _, err = run(capfd, *call)
    assert code == 0 and "1 x image dropped: same bytes as an earlier image" in err, err
    assert "1 x image quarantined" in err and "compare" in err
    found = document(capfd, *call)
    assert found["found"] and found["num_images"] == 7 and found["ledger"]["images"]["quarantined"] == 1
    records = {r.image_id: (r.group_id, r.split) for r in open_dataset(str(tmp_path / "d")).records()}
    assert {group for group, _ in records.values()} == {"p1", "p2"} and len(set(records.values())) == 2
    code, _, err = run(capfd, *call[:-4], "--strict", "--dataset", str(tmp_path / "e"))
    assert code == console.BAD_INPUT and "strict" in err and list_label_sets(str(tmp_path / "e")) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--split-by", "patient"], "split_by is about split_ratio"),
        (["--split-ratio", "train"], "write e.g. train=0.8,val=0.2"),
        (["--split-ratio", "a=1,a=1"], "write e.g."),
        (["--split-ratio", "a=1,b=0"], "must be positive"),
        (["--split-ratio", "a=1", "--split-by", "patient"], "no image has the column 'patient'"),
        (["--split-ratio", "a=1", "--split-by", "x", "--split-pattern", "x"], "not both"),
        (["--split-ratio", "a=1", "--split-pattern", "("], "no regular expression"),
    ],
)
def test_splits_that_cannot_be_made_are_refused_in_a_line(capfd, photos, tmp_path, options, said):
    code, _, err = run(capfd, "ingest", "images", str(photos), "--dataset", str(tmp_path / "d"), *options)
    assert code == console.BAD_INPUT and said in err and "Traceback" not in err
    assert not (tmp_path / "d/labels").exists()


def test_any_kind_is_ingested_by_its_place(capfd, tmp_path):
    options = write_coco(tmp_path, "val", coco_document(3), coco_images(3))
    call = ["ingest", "from", "coco", options["annotations"], "--set", f"images={options['images']}"]
    assert document(capfd, *call, "--dataset", str(tmp_path / "d"))["splits"] == {"val": 3}
    code, _, err = run(capfd, "ingest", "from", "synthetic", "x", "--dataset", str(tmp_path / "e"))
    assert code == console.BAD_INPUT and "not read from one place" in err


def test_settings_of_ingest_are_the_workers_own():
    assert set(get_args(Dedupe)) == set(get_args(WorkersDedupe))
    assert IngestConfig(dataset="d", split_ratio="a=1, b=.5").split_ratio == {"a": 1.0, "b": 0.5}


def test_the_ledger_adds_up_and_lists_what_is_asked_for(capfd, tmp_path):
    source = coco_document(4)
    source["annotations"][0]["bbox"] = [1, 2, 0, 6]
    source["annotations"][1]["bbox"] = [20, 2, 10, 6]
    source["images"].append({"id": 9, "file_name": "gone.jpg", "width": 24, "height": 16})
    options = write_coco(tmp_path, "val", source, coco_images(4))
    uri = str(tmp_path / "d")
    document(capfd, "ingest", "coco", options["annotations"], "--images", options["images"], "--dataset", uri)
    found = document(capfd, "inspect", uri, "--ledger")
    for subject, seen in (("images", 5), ("annotations", 8)):
        counts = found[subject]
        assert seen == counts["seen"] == sum(counts[f] for f in ("imported", "mended", "dropped", "quarantined"))
    assert {entry["fate"] for entry in found["entries"]} == {"mended", "dropped", "quarantined"}
    assert not found["more_entries"]
    (entry,) = document(capfd, "inspect", uri, "--fate", "quarantined")["entries"]
    assert entry["image_id"] == "gone.jpg"
    (entry,) = document(capfd, "inspect", uri, "--ledger", "--reason", "AREA")["entries"]
    assert (entry["fate"], entry["annotation_id"]) == ("dropped", 100)
    assert document(capfd, "inspect", uri, "--ledger", "--limit", "1")["more_entries"]
    code, out, err = run(capfd, "inspect", uri, "--ledger", "--limit", "1")
    assert code == 0 and out.count("adds up") == 2 and "and more" in err


def test_versions_are_listed_compared_and_gone_back_to(capfd, dataset):
    found = document(capfd, "remove", dataset, "a/3.jpg", "b/0.jpg")
    assert found["num_images"] == 13
    changed = document(capfd, "diff", f"{dataset}@labels/gt:2")
    assert (changed["removed"], changed["added"], changed["differ"]) == (["a/3.jpg", "b/0.jpg"], [], True)
    back = document(capfd, "rollback", f"{dataset}@labels/gt:2")
    assert not document(capfd, "diff", f"{dataset}@labels/gt:2", back["reference"])["differ"]
    listed = document(capfd, "versions", dataset)["versions"]
    assert [v["operation"] for v in listed] == ["roll back", "remove", "ingest", "ingest"]
    code, out, _ = run(capfd, "versions", dataset)
    assert code == 0 and "to version 2" in out
    code, out, _ = run(capfd, "diff", f"{dataset}@labels/gt:1", "--limit", "2")
    assert code == 0 and out.count("b/") == 2
    code, _, err = run(capfd, "rollback", dataset)
    assert code == console.BAD_INPUT and "boxmill versions" in err


def test_images_are_named_by_arguments_a_file_or_standard_input(capfd, dataset, tmp_path, monkeypatch):
    (tmp_path / "ids").write_text("a/1.jpg\n\na/2.jpg\n")
    assert document(capfd, "remove", dataset, "a/3.jpg", "--ids-from", str(tmp_path / "ids"))["num_images"] == 12
    monkeypatch.setattr("sys.stdin", io.StringIO("a/4.jpg\n"))
    assert document(capfd, "remove", dataset, "--ids-from", "-")["num_images"] == 11
    (tmp_path / "ids").write_bytes(b"\xff\xfe")
    for arguments, said in (
        ([], "no image is named"),
        (["--ids-from", str(tmp_path / "ids")], "no text file"),
        (["--ids-from", str(tmp_path / "none")], "none"),
        (["a/99.jpg"], "no image 'a/99.jpg'"),
    ):
        code, _, err = run(capfd, "remove", dataset, *arguments)
        assert code == console.BAD_INPUT and said in err, err


def test_damage_ends_with_5_and_names_file_and_image(capfd, dataset):
    assert document(capfd, "verify", dataset) == {"dataset": dataset, "sound": True, "problems": []}
    shard = Path(dataset) / open_dataset(f"{dataset}@labels/gt:1").shards[0].image_path
    damaged = bytearray(shard.read_bytes())
    damaged[damaged.find(record(3).image) + 100] ^= 4
    shard.write_bytes(damaged)
    found = document(capfd, "verify", dataset, code=console.DAMAGED)
    assert not found["sound"] and {p["path"] for p in found["problems"]} == {f"images/{shard.name}"}
    code, out, _ = run(capfd, "verify", f"{dataset}@labels/gt:1")
    assert code == 5 and "'a/3.jpg'" in out and shard.name in out
    done = maintain(MaintainConfig(dataset=dataset))
    assert len(done["problems"]) == 2 and done["vacuumed"] is None


def test_vacuum_tells_first_and_deletes_only_when_told(capfd, dataset, monkeypatch):
    orphan = Path(dataset) / "images/part-orphan.parquet"
    orphan.write_bytes(b"x" * 10)
    long_ago = time.time() - 200 * 3600
    os.utime(orphan, (long_ago, long_ago))
    before = content(dataset)
    told = document(capfd, "vacuum", dataset, "--dry-run")
    assert (told["paths"], told["size"], told["deleted"]) == (["images/part-orphan.parquet"], 10, False)
    code, _, err = run(capfd, "vacuum", dataset)
    assert code == console.USAGE and "--yes" in err
    code, out, _ = run(capfd, "vacuum", dataset, "--json")
    assert code == json.loads(out)["exit_code"] == console.USAGE
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert run(capfd, "vacuum", dataset)[0] == console.USAGE
    assert content(dataset) == before
    assert document(capfd, "vacuum", dataset, "--yes")["deleted"] and not orphan.exists()
    assert maintain(MaintainConfig(dataset=dataset))["vacuumed"] == {
        "paths": (),
        "size": 0,
        "deleted": True,
        "plans": (),
    }


def test_purge_tells_first_and_deletes_only_when_told(capfd, dataset):
    victim = record(8).image
    before = content(dataset)
    assert document(capfd, "purge", dataset, "a/8.jpg", "--dry-run")["deleted"] is False
    code, _, err = run(capfd, "purge", dataset, "a/3.jpg", "--dry-run")
    assert code == 0 and "b/3.jpg has the same bytes as one of them and is not purged" in err
    code, out, err = run(capfd, "purge", dataset, "a/8.jpg")
    assert code == console.USAGE and "To purge" in out and "--yes" in err
    assert content(dataset) == before and any(victim in data for data in before.values())
    done = document(capfd, "purge", dataset, "a/8.jpg", "--yes")
    assert done["deleted"] and done["versions"] == {"gt": f"{dataset}@labels/gt:3"}
    assert not any(victim in data for data in content(dataset).values())
    assert document(capfd, "verify", dataset)["sound"]
    assert run(capfd, "purge", dataset, "a/8.jpg", "--yes")[0] == console.BAD_INPUT


def test_labels_are_replaced_or_added_without_an_image(capfd, tmp_path):
    options = write_coco(tmp_path, "val", coco_document(4), coco_images(4))
    uri = str(tmp_path / "d")
    document(capfd, "ingest", "coco", options["annotations"], "--images", options["images"], "--dataset", uri)
    images = content(f"{uri}/images")
    corrected = coco_document(2)
    corrected["annotations"][0]["bbox"] = [1, 2, 3, 4]
    (tmp_path / "corrected.json").write_text(json.dumps(corrected))
    new = document(capfd, "relabel", uri, str(tmp_path / "corrected.json"), "--label-set", "new")
    assert (new["num_images"], new["reference"]) == (2, f"{uri}@labels/new:1")
    kept = document(capfd, "relabel", uri, str(tmp_path / "corrected.json"))
    assert kept["num_images"] == 4
    assert document(capfd, "diff", f"{uri}@labels/gt:1")["relabelled"] == ["1.jpg"]
    left = document(capfd, "relabel", uri, str(tmp_path / "corrected.json"), "--others", "leave-out")
    assert left["num_images"] == 2
    assert content(f"{uri}/images") == images
    assert [v["operation"] for v in document(capfd, "versions", f"{uri}@labels/new")["versions"]] == ["add labels"]
    code, _, err = run(capfd, "relabel", uri, str(tmp_path / "none.json"))
    assert code == console.BAD_INPUT and "none.json" in err
    code, _, err = run(capfd, "relabel", uri)
    assert code == console.BAD_INPUT and "annotations" in err


def test_one_image_comes_out_as_it_went_in(capfd, dataset, tmp_path):
    found = document(capfd, "get", dataset, "a/3.jpg", "--out", str(tmp_path / "x.jpg"))
    assert (tmp_path / "x.jpg").read_bytes() == record(3).image and len(found["objects"]) == 3
    code, out, _ = run(capfd, "get", dataset, "a/3.jpg")
    assert code == 0 and "ball" in out and "person" in out
    code, _, err = run(capfd, "get", dataset, "a/6.jpg")
    assert code == 0 and "nobody has labelled it" in err
    code, _, err = run(capfd, "get", dataset, "3.jpg")
    assert code == console.BAD_INPUT and "did you mean 'a/3.jpg' or 'b/3.jpg'" in err
    assert run(capfd, "get", dataset, "a/3.jpg", "--out", "-", "--json")[0] == console.BAD_INPUT


def test_an_image_goes_to_standard_output_as_bytes(capfdbinary, dataset):
    assert app.run(["get", dataset, "a/3.jpg", "--out", "-"]) == 0
    assert capfdbinary.readouterr().out == record(3).image


def test_duplicates_are_listed_by_bytes_and_by_looks(capfd, dataset):
    found = document(capfd, "duplicates", dataset)["duplicates"]
    # Which of two comes first depends on the names of their shards.
    pairs = {frozenset((f"b/{i}.jpg", f"a/{i}.jpg")) for i in range(5)}
    assert len(found) == 5 and {d["labels"] for d in found} == {"same"}
    assert {frozenset((d["image_id"], d["first"])) for d in found} == pairs
    alike = document(capfd, "duplicates", dataset, "--near", "--threshold", "0")["duplicates"]
    assert len(alike) == 5 and {frozenset((d["image_id"], d["near"])) for d in alike} == pairs
    code, out, err = run(capfd, "duplicates", dataset, "--limit", "2")
    assert code == 0 and out.count("b/") == 2 and "3 more" in err


def test_what_a_format_cannot_carry_is_told(capfd, dataset, tmp_path):
    written = document(capfd, "export", "to", "voc", dataset, "--out", str(tmp_path / "voc"))
    assert written["losses"]["keypoints"] > 0 and written["examples"]["keypoints"] and written["never_carried"]
    code, out, err = run(capfd, "export", "to", "voc", dataset, "--out", str(tmp_path / "voc2"))
    assert code == 0 and "Not carried over" in out and "keypoints" in out and "no place at all for" in err
