"""Commands that look after a dataset: all at once, each a process of its own; and one by one, on an S3 server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import app
from pipelines.maintenance import verify, verify_newest
from pipelines.revisions import diff
from pipelines.versions import open_dataset
from tests.conftest import S3Server
from tests.making import coco_document, coco_images, encoded, write_coco

BOXMILL = Path(sys.executable).parent / "boxmill"


@pytest.mark.timeout(300)
def test_every_change_lands_beside_every_other(tmp_path: Path):
    first = write_coco(tmp_path / "one", "val", coco_document(12), coco_images(12))
    second = write_coco(tmp_path / "two", "val", coco_document(6, first_id=13), coco_images(6, first_id=13))
    corrected = coco_document(12, objects_each=1)
    (tmp_path / "corrected.json").write_text(json.dumps(corrected))
    uri = str(tmp_path / "d")

    def ingest(options: dict[str, str]) -> list[str]:
        return ["ingest", "coco", options["annotations"], "--images", options["images"], "--dataset", uri]

    assert app.run([*ingest(first), "--json"]) == 0
    commands = [
        ingest(second),
        ["remove", uri, "1.jpg", "2.jpg"],
        ["purge", uri, "3.jpg", "--yes"],
        ["relabel", uri, str(tmp_path / "corrected.json")],
        ["vacuum", uri, "--grace-hours", "1", "--yes"],
        ["verify", uri],
    ]
    running = [
        subprocess.Popen([BOXMILL, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    told = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(commands), told

    left = open_dataset(uri)
    assert set(left.index()["image_id"].to_pylist()) == {f"{i}.jpg" for i in range(4, 19)}
    objects = {image_id: len(found) for image_id, *_, found in left.annotations()}
    assert {objects[f"{i}.jpg"] for i in range(4, 13)} == {1} and {objects[f"{i}.jpg"] for i in range(13, 19)} == {2}
    assert left.num_images == 15 and left.num_objects == 9 + 12
    assert verify_newest(uri) == []
    gone = encoded(seed=3)
    assert not any(gone in path.read_bytes() for path in Path(uri).rglob("*") if path.is_file())
    # What the purge took is told of; everything else of the first version is still what it was.
    assert {problem.what for problem in verify(f"{uri}@labels/gt:1")} <= {
        "images of this file were purged since, which older versions then lack"
    }
    assert "3.jpg" in diff(f"{uri}@labels/gt:1", left.reference).removed


def test_every_command_on_s3(s3_server: S3Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    options = write_coco(tmp_path, "val", coco_document(6), coco_images(6))
    (tmp_path / "corrected.json").write_text(json.dumps(coco_document(6, objects_each=1)))
    uri = s3_server.uri("maintained/d")

    def told(*command: str) -> dict:
        assert app.run([*command, "--json"]) == 0
        out = capfd.readouterr().out
        assert s3_server.secret_key not in out
        return json.loads(out)

    told("ingest", "coco", options["annotations"], "--images", options["images"], "--dataset", uri)
    assert told("get", uri, "2.jpg", "--out", s3_server.uri("maintained/2.jpg"))["out"].endswith("maintained/2.jpg")
    assert told("relabel", uri, str(tmp_path / "corrected.json"))["num_objects"] == 6
    assert told("remove", uri, "1.jpg")["num_images"] == 5
    assert told("rollback", f"{uri}@labels/gt:1")["num_objects"] == 12
    assert told("diff", f"{uri}@labels/gt:1")["differ"] is False
    assert told("purge", uri, "3.jpg", "--yes")["versions"] == {"gt": f"{uri}@labels/gt:5"}
    assert told("versions", uri)["versions"][0]["operation"] == "purge"
    assert told("verify", uri)["sound"] and told("duplicates", uri)["duplicates"] == []
    assert told("vacuum", uri, "--dry-run")["paths"] == []
    assert told("inspect", uri, "--ledger")["images"]["seen"] == 6
