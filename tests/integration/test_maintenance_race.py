"""Commands that change a dataset, each a process of its own, all at once: everybody's change is there afterwards."""

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
