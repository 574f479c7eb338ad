"""WebDataset tars, lists of URLs, and sources divided anew."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.checks import BadImage
from pipelines.jobs import Job
from pipelines.sources import SourceItem, open_source
from pipelines.sources.archive import ArchiveSource
from pipelines.sources.resplit import ResplitSource
from pipelines.storage import Store
from pipelines.versions import open_dataset
from tests.hostile.case import jpeg
from tests.scenes import read_source
from workers.ingest import ingest


def tar(path: Path, files: dict[str, bytes], links: tuple[str, ...] = ()) -> str:
    with tarfile.open(path, "w") as opened:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
        for name in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            opened.addfile(entry)
    return str(path)


def sidecar(*objects: dict, **more) -> bytes:
    return json.dumps({"annotations": list(objects), **more}).encode()


def test_samples_of_a_webdataset(tmp_path):
    cat = {"bbox": [1, 2, 10, 8], "category": "cat", "id": 5}
    for number in range(2):
        tar(
            tmp_path / f"shard-{number:03d}.tar",
            {
                "a/0001.jpg": jpeg(number),
                "a/0001.json": sidecar(cat, {**cat, "category": "ant", "id": 6}, place="Rome"),
                "a/0002.cls": b"7",
                "a/0002.jpg": jpeg(10 + number),
                "a/0003.seg.png": b"not the image",
                "a/0004.txt": b"no image",
            },
        )
    label_map, records, entries = read_source("webdataset", uri=f"{tmp_path}/shard-{{000..001}}.tar", split="train")
    assert label_map.names == ("ant", "cat")
    assert [(e.fate, e.image_id) for e in entries] == [("dropped", f"shard-00{i}/a/0003.seg.png") for i in range(2)]
    assert list(records)[:2] == ["shard-000/a/0001.jpg", "shard-000/a/0002.jpg"]
    found = records["shard-001/a/0001.jpg"]
    assert found.annotations.boxes_xywh.tolist() == [[1, 2, 10, 8]] * 2
    assert found.annotations.category_ids.tolist() == [1, 0] and found.annotations.ids.tolist() == [5, 6]
    assert found.extra == {"place": "Rome"} and found.image == jpeg(1)
    assert records["shard-001/a/0002.jpg"].annotations is None
    assert records["shard-001/a/0002.jpg"].extra == {"cls": "7"}
    assert read_source("webdataset", uri=str(tmp_path))[1].keys() == records.keys()


def test_what_goes_wrong_in_a_webdataset(tmp_path):
    path = tar(
        tmp_path / "s.tar",
        {
            "good.jpg": jpeg(1),
            "good.json": sidecar({"bbox": [1, 2, 10, 8], "category_id": 3}, {"bbox": "x", "category_id": 3}, 7),
            "../out.jpg": jpeg(2),
            "cut.jpg": jpeg(3)[:50],
            "odd.jpg": jpeg(4),
            "odd.json": b"{no",
            "two.jpg": jpeg(5),
            "two.png": jpeg(6),
            "lonely.json": sidecar({"bbox": [1, 2, 10, 8], "category_id": 3}),
        },
        links=("link.jpg",),
    )
    version = ingest(open_source("webdataset", uri=path), str(tmp_path / "out"))
    assert sorted(r.image_id for r in open_dataset(version.reference).records()) == ["s/good.jpg", "s/two.jpg"]
    assert version.ledger["images"] == {"seen": 8, "imported": 2, "mended": 0, "dropped": 2, "quarantined": 4}
    assert version.ledger["annotations"] == {"seen": 4, "imported": 1, "mended": 0, "dropped": 3, "quarantined": 0}


def test_every_file_beside_bad_json_has_a_fate(tmp_path):
    files = {"a.jpg": jpeg(1), "a.json": b"{no", "a.png": jpeg(2), "b.json": b"{no"}
    _, records, entries = read_source("webdataset", uri=tar(tmp_path / "s.tar", files))
    assert not records
    assert [(e.fate, e.image_id) for e in entries] == [
        ("dropped", "s/a.png"),
        ("quarantined", "s/a.jpg"),
        ("quarantined", "s/b.json"),
    ]


def test_tars_that_are_none(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"x" * 3000)
    with pytest.raises(ValueError, match=r"s\.tar cannot be read as a tar"):
        list(open_source("webdataset", uri=str(tmp_path / "s.tar")).scan())
    with pytest.raises(ValueError, match="compressed"):
        open_source("webdataset", uri=str(tmp_path / "s.tar.gz"))
    with pytest.raises(ValueError, match="empty or too long"):
        open_source("webdataset", uri=str(tmp_path / "s-{0..99999999}.tar"))
    with pytest.raises(ValueError, match="same name"):
        open_source("webdataset", tars=["a/s.tar", "b/s.tar"])


def test_a_list_of_urls(tmp_path, s3_server):
    store, key = Store.open(s3_server.uri("urls")), f"{s3_server.bucket}/urls"
    for name in ("a.jpg", "b.jpg"):
        store.write_bytes(name, jpeg(ord(name[0])))
    store.write_bytes("bad.jpg", b"no image")
    lines = [
        "# comment",
        f"s3://{key}/a.jpg",
        "",
        f"s3://{key}/b.jpg  ",
        f"s3://{key}/a.jpg",
        f"s3://{key}/bad.jpg",
        f"s3://{key}/gone.jpg",
        "file:///etc/passwd",
        "/etc/passwd",
        "images/relative.jpg",
        f"zip://a.jpg::s3://{key}/a.zip",
        "s3://" + "x" * 20_000,
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    version = ingest(open_source("url_list", uri=str(tmp_path / "list.txt")), str(tmp_path / "out"))
    records = {r.image_id: r for r in open_dataset(version.reference).records()}
    assert list(records) == [f"{key}/a.jpg", f"{key}/b.jpg"] and records[f"{key}/a.jpg"].annotations is None
    assert records[f"{key}/b.jpg"].url == f"s3://{key}/b.jpg"
    assert version.ledger["images"] == {"seen": 10, "imported": 2, "mended": 0, "dropped": 1, "quarantined": 7}


def test_signed_urls_leave_no_secret(tmp_path):
    lines = [
        "https://127.0.0.1:9/x.jpg?sig=hunter2",
        "https://127.0.0.1:9/x.jpg?sig=hunter3",
        "https://u:hunter4@127.0.0.1:9/y.jpg",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    source = open_source("url_list", uri=str(tmp_path / "list.txt"))
    items = list(source.scan())
    assert len({item.image_id for item in items}) == 3
    assert not any("hunter" in repr(item) for item in items)
    with pytest.raises(BadImage, match="cannot be fetched") as error:
        source.load(items[0])
    assert "hunter" not in str(error.value) and error.value.__cause__ is None
    (tmp_path / "list.txt").write_text("\n".join(reversed(lines)))
    with pytest.raises(BadImage, match="has changed"):
        source.load(items[2])
    with pytest.raises(ValueError):
        ingest(source, str(tmp_path / "out"))
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"hunter" not in path.read_bytes()


def test_divided_anew_by_group(tmp_path):
    for patient in range(12):
        for shot in range(3):
            path = tmp_path / f"in/p{patient}/{shot}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(patient * 3 + shot))
    options = {
        "source": {"kind": "archive", "options": {"uri": str(tmp_path / "in")}},
        "ratios": {"train": 2, "val": 1},
        "group_pattern": r"^(p\d+)/",
    }
    version = ingest(open_source("resplit", **options), str(tmp_path / "out"))
    found = {r.image_id: (r.split, r.group_id) for r in open_dataset(version.reference).records()}
    assert len(found) == 36 and set(version.splits) == {"train", "val"}
    assert len(set(found.values())) == 12  # a group is in one split
    assert all(image_id.startswith(group + "/") for image_id, (_, group) in found.items())
    same = read_source("resplit", **options)[1]
    assert {i: r.split for i, r in same.items()} == {i: split for i, (split, _) in found.items()}
    plan = Job(str(tmp_path / "out"), next((tmp_path / "out/_jobs").iterdir()).name).plan()
    assert plan.metadata["kind"] == "resplit"


def test_a_group_is_not_in_a_kept_split_and_in_another_one(tmp_path):
    for name in ("train/p1/a", "train/p2/a", "test/p1/b", "test/p3/a"):
        path = tmp_path / f"in/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(len(name)))

    class Folders(ArchiveSource):
        def scan(self):
            return (replace(item, split=item.image_id.split("/")[0]) for item in super().scan())

    inner = Folders.open(uri=str(tmp_path / "in"))
    by_patient = {"inner": inner, "group_pattern": "(p.)/", "keep": ("test",)}
    with pytest.raises(ValueError, match=r"1 groups .* e\.g\. 'p1' in 'test', which is kept, and in 'a'"):
        list(ResplitSource(ratios={"a": 1}, **by_patient).scan())
    assert {item.split for item in ResplitSource(ratios={"test": 1}, **by_patient).scan()} == {"test"}
    by_image = ResplitSource(inner=inner, ratios={"a": 1}, group_column="image_id", keep=("test",))
    assert [item.split for item in by_image.scan()] == ["test", "test", "a", "a"]


def test_splits_that_stay_and_groups_of_a_column(tmp_path):
    row = {"image": {"bytes": jpeg(0), "path": None}, "objects": {"bbox": [[1.0, 1.0, 2.0, 2.0]], "category": [0]}}
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in ("train", "test"):
        rows = [{**row, "video": f"{'t' if split == 'test' else 'v'}{i // 5}"} for i in range(20)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}-00000-of-00001.parquet")
    inner = {"kind": "hf_parquet", "options": {"uri": str(tmp_path)}}
    source = open_source("resplit", source=inner, ratios={"a": 1, "b": 1}, group_column="video", keep=["test"])
    items = [item for item in source.scan() if isinstance(item, SourceItem)]
    assert sum(item.split == "test" for item in items) == 20
    groups = {(item.group_id, item.split) for item in items if item.split != "test"}
    assert len(groups) == 4 and {g for g, _ in groups} == {"v0", "v1", "v2", "v3"}
    with pytest.raises(ValueError, match="not both"):
        open_source("resplit", source=inner, ratios={"a": 1}, group_column="video", group_pattern="x")
    with pytest.raises(ValueError, match="regular expression"):
        open_source("resplit", source=inner, ratios={"a": 1}, group_pattern="(")
