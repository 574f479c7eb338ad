"""Real data: COCO's values survive ingest and export, BCCD's broken boxes are accounted for, tasks run on Ray."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import pipelines.planning
from pipelines import open_dataset
from pipelines.exports.coco import export_coco
from pipelines.sources import open_source
from workers.ingest import ingest


def _coco(root: Path, part: str) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    folder = root / "coco-mini/annotations"
    files = {name: folder / f"{name}_{part}.json" for name in ("instances", "person_keypoints")}
    instances, points = (json.loads(path.read_text()) for path in files.values())
    options = {"annotations": str(files["instances"]), "keypoints": str(files["person_keypoints"])}
    return options, instances, points


@pytest.mark.parametrize(("part", "images", "objects"), [("train2017", 80, 739), ("val2017", 79, 624)])
def test_coco_comes_back_equal(tmp_path: Path, boxmill_data: Path, part: str, images: int, objects: int) -> None:
    options, instances, points = _coco(boxmill_data, part)
    version = ingest(open_source("coco", **options), str(tmp_path / "dataset"))
    assert (version.num_images, version.num_objects) == (images, objects)
    exported = export_coco(version.reference, str(tmp_path / "out"), images=True)
    (path,) = exported.files.values()
    found = json.loads(Path(path).read_text())

    expected = {a["id"]: dict(a) for a in instances["annotations"]}
    for a in points["annotations"]:
        expected[a["id"]] |= {k: a[k] for k in ("keypoints", "num_keypoints")}
    assert len(found["annotations"]) == objects
    assert {a["id"]: a for a in found["annotations"]} == expected
    assert any(isinstance(a["segmentation"], dict) for a in found["annotations"]), "no RLE was tested"
    assert found["images"] == instances["images"]
    assert {c["id"]: c for c in found["categories"]} == {
        c["id"]: c for c in [*instances["categories"], *points["categories"]]
    }
    assert (found["info"], found["licenses"]) == (instances["info"], instances["licenses"])
    split = part.removesuffix("2017")
    for image in instances["images"]:
        written = tmp_path / "out" / split / image["file_name"]
        assert written.read_bytes() == (boxmill_data / "coco-mini" / part / image["file_name"]).read_bytes()


def test_coco_splits_in_one_ingest(tmp_path: Path, boxmill_data: Path) -> None:
    splits = {part.removesuffix("2017"): _coco(boxmill_data, part)[0] for part in ("train2017", "val2017")}
    version = ingest(open_source("coco", splits=splits), str(tmp_path / "dataset"))
    assert version.splits == {"train": 80, "val": 79}
    exported = export_coco(version.reference, str(tmp_path / "out"), splits=["val"])
    found = json.loads(Path(exported.files["val"]).read_text())
    assert len(found["annotations"]) == 624
    assert found["info"]["description"] == "COCO 2017 Dataset"


def test_bccd_by_its_official_splits(tmp_path: Path, boxmill_data: Path) -> None:
    version = ingest(open_source("voc", root=str(boxmill_data / "bccd")), str(tmp_path / "dataset"))
    assert version.splits == {"train": 205, "val": 87, "test": 72}
    assert version.ledger["annotations"] == {
        "seen": 4888, "imported": 4886, "mended": 0, "dropped": 2, "quarantined": 0
    }  # fmt: skip
    assert version.ledger["reasons"] == {"annotation dropped: box has no area": 2}
    dataset = open_dataset(version.reference)
    assert dataset.label_map.names == ("Platelets", "RBC", "WBC")
    lists = boxmill_data / "bccd/ImageSets/Main"
    for split in ("train", "val", "test"):
        names = dataset.index([split])["image_id"].to_pylist()
        assert [Path(name).stem for name in names] == (lists / f"{split}.txt").read_text().split()


@pytest.mark.ray
def test_ray_writes_the_same_version(
    tmp_path: Path, boxmill_data: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.planning, "MAX_SHARD_IMAGES", 40)
    source = open_source("voc", root=str(boxmill_data / "bccd"))
    seen: list[tuple[str, int, int]] = []
    version = ingest(source, str(tmp_path / "ray"), progress=lambda *args, **_: seen.append(args))
    assert [s for s in seen if s[0] == "import"] == [("import", n, 10) for n in range(11)]
    assert version.num_images == 364
    dataset = open_dataset(version.reference)
    assert len(dataset.shards) == 10

    # The package gives the function under this name, import_module the module.
    ingesting = import_module("workers.ingest")
    monkeypatch.setattr(ingesting, "_TASKS_WITHOUT_RAY", 100)
    monkeypatch.setattr(ingesting, "_ray_is_running", lambda: False)
    alone = ingest(source, str(tmp_path / "alone"))
    assert alone.digest == version.digest
    one, other = (
        {p.name: p.read_bytes() for p in (tmp_path / n / "images").glob("*.parquet")} for n in ("ray", "alone")
    )
    assert one == other
