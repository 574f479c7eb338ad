"""Open Images CSV and Hugging Face Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.checks import BadImage
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.hostile.case import jpeg
from tests.scenes import read_source
from workers.ingest import ingest

_HEAD = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
_HIERARCHY = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [{"LabelName": "/m/animal", "Subcategory": [{"LabelName": "/m/cat"}, {"LabelName": "/m/dog"}]}],
}


def open_images(root: Path, rows: str, **files: str) -> dict[str, Any]:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("a", "b", "c", "d")):
        (root / f"images/{name}.jpg").write_bytes(jpeg(number))
    texts = {
        "boxes": _HEAD + rows,
        "classes": "/m/cat,Cat\n/m/dog,Dog\n/m/animal,Animal\n",
        "hierarchy": json.dumps(_HIERARCHY),
        **files,
    }
    for key, text in texts.items():
        (root / f"{key}.csv").write_text(text)
    return {key: str(root / f"{key}.csv") for key in texts}


def test_open_images(tmp_path):
    options = open_images(
        tmp_path,
        "b,xclick,/m/dog,1,0.25,0.75,0.5,1,0,1,-1,0,0\n"
        "a,xclick,/m/cat,1,0,0.5,0,0.5,1,0,1,0,0\n"
        "b,activemil,/m/cat,1,0,1,0,1,0,0,0,0,0\n",
        image_labels="ImageID,Source,LabelName,Confidence\na,v,/m/dog,0\na,v,/m/cat,1\nc,v,/m/dog,0\na,v,/m/tree,1\n",
    )
    label_map, records, entries = read_source("open_images", **options)
    assert not entries
    assert label_map.names == ("Cat", "Dog", "Animal")
    assert label_map.categories[0].supercategory == "Animal"
    assert label_map.categories[0].extra == {"mid": "/m/cat", "parents": ["/m/animal"]}
    found = records["b.jpg"].annotations
    np.testing.assert_allclose(found.boxes_xywh, [[8, 12, 16, 12], [0, 0, 32, 24]])
    assert found.category_ids.tolist() == [2, 1]
    assert found.attributes[0]["IsTruncated"] == 1 and found.attributes[0]["IsGroupOf"] == -1
    assert not records["a.jpg"].annotations.iscrowd.any()
    assert records["a.jpg"].extra == {
        "neg_category_ids": [2],
        "pos_category_ids": [1],
        "other_image_labels": [["/m/tree", "1"]],
    }
    assert [None if r.annotations is None else len(r.annotations) for r in records.values()] == [1, 2, 0, None]
    assert open_source("open_images", **options).about()["hierarchy"] == _HIERARCHY
    crowds = read_source("open_images", **options, group_of_as_crowd=True)[1]
    assert crowds["a.jpg"].annotations.iscrowd.tolist() == [True]


def test_open_images_ledger_and_negatives_in_the_labels(tmp_path):
    options = open_images(
        tmp_path / "in",
        "a,x,/m/cat,1,0,0.5,0,0.5,0,0,0,0,0\n"
        "a,x,/m/tree,1,0,0.5,0,0.5,0,0,0,0,0\n"
        "a,x,/m/cat,1,0.5,,0,0.5,0,0,0,0,0\n"
        "a,x,/m/cat,1,nan,1,0,0.5,0,0,0,0,0\n"
        "a,x,/m/cat\n"
        "\n"
        "missing,x,/m/cat,1,0,0.5,0,0.5,0,0,0,0,0\n"
        "missing,x,/m/dog,1,0,0.5,0,0.5,0,0,0,0,0\n",
        image_labels="ImageID,Source,LabelName,Confidence\na,v,/m/dog,0\n",
    )
    version = ingest(open_source("open_images", **options), str(tmp_path / "out"))
    assert version.ledger["images"] == {"seen": 5, "imported": 4, "mended": 0, "dropped": 0, "quarantined": 1}
    assert version.ledger["annotations"] == {"seen": 7, "imported": 1, "mended": 0, "dropped": 4, "quarantined": 2}
    from pipelines.shards import read_labels

    rows = {row.image_id: row for shard in open_dataset(version.reference).shards for row in read_labels(shard)}
    assert rows["a.jpg"].neg == (2,) and rows["b.jpg"].neg is None


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("boxes", "", "no columns"),
        ("boxes", "ImageID,LabelName\n", "XMin"),
        ("boxes", _HEAD + 'a,"' + "x" * 200_000 + '"\n', "CSV"),
        ("hierarchy", "[", "JSON"),
        ("hierarchy", "[]", "hierarchy"),
        ("classes", "", "no classes"),
    ],
)
def test_open_images_files_that_are_not_theirs(tmp_path, key, text, says):
    options = open_images(tmp_path, "")
    Path(options[key]).write_text(text)
    with pytest.raises(ValueError, match=says):
        read_source("open_images", **options)


def parquet(path: Path, rows: list[dict[str, Any]], names: list[str] | None = None, **options: Any) -> str:
    table = pa.Table.from_pylist(rows)
    if names is not None:
        feature = {"bbox": {}, "category": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": {"objects": feature, "image": {"_type": "Image"}}}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def hf_row(number: int, *objects: tuple[list[float], Any], path: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "image": {"bytes": jpeg(number), "path": path},
        "objects": {"bbox": [o[0] for o in objects], "category": [o[1] for o in objects]},
        **more,
    }


def test_hugging_face_rows(tmp_path):
    rows = [
        hf_row(0, ([1, 2, 3, 4], 1), ([0, 0, 5, 5], 0), path="x/a.jpg", image_id=77),
        hf_row(1, path="b.jpg", image_id=78),
    ]
    rows.append({"image": {"bytes": jpeg(2), "path": "c.jpg"}, "objects": None, "image_id": 79})
    parquet(tmp_path / "data/train-00000-of-00002.parquet", rows[:1], ["cat", "dog"])
    parquet(tmp_path / "data/validation-00000-of-00001.parquet", rows[1:], ["cat", "dog"], row_group_size=1)
    label_map, records, entries = read_source("hf_parquet", uri=str(tmp_path))
    assert label_map.names == ("cat", "dog") and not entries
    assert [(i, r.split) for i, r in records.items()] == [
        ("x/a.jpg", "train"),
        ("b.jpg", "validation"),
        ("c.jpg", "validation"),
    ]
    found = records["x/a.jpg"].annotations
    assert found.boxes_xywh.tolist() == [[1, 2, 3, 4], [0, 0, 5, 5]] and found.category_ids.tolist() == [1, 0]
    assert len(records["b.jpg"].annotations) == 0 and records["c.jpg"].annotations is None
    assert records["x/a.jpg"].extra == {"image_id": 77}


@pytest.mark.parametrize(
    ("bbox_format", "box"),
    [
        ("xywh", [8, 6, 16, 12]),
        ("xyxy", [8, 6, 24, 18]),
        ("cxcywh", [16, 12, 16, 12]),
        ("xyxy_relative", [0.25, 0.25, 0.75, 0.75]),
        ("cxcywh_relative", [0.5, 0.5, 0.5, 0.5]),
        ("xywh_relative", [0.25, 0.25, 0.5, 0.5]),
    ],
)
def test_hugging_face_box_formats_and_text_categories(tmp_path, bbox_format, box):
    uri = parquet(tmp_path / "a.parquet", [hf_row(0, (box, "zebra"), ([1, 1, 2, 2], "ant"))])
    label_map, records, _ = read_source("hf_parquet", uri=uri, bbox_format=bbox_format)
    (record,) = records.values()
    assert record.image_id == "a/0-0" and label_map.names == ("ant", "zebra")
    np.testing.assert_allclose(record.annotations.boxes_xywh[0], [8, 6, 16, 12])
    assert record.annotations.area[0] == 192


def test_hugging_face_lists_of_structs_and_images_beside(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_bytes(jpeg(1))
    rows = [
        {"image": {"bytes": None, "path": path}, "objects": [{"bbox": [1.0, 2.0, 3.0, 4.0], "label": 7, "id": 9}]}
        for path in ("pictures/a.jpg", "../secret.jpg")
    ]
    source = open_source("hf_parquet", uri=parquet(tmp_path / "a.parquet", rows))
    good, bad = source.scan()
    assert source.label_map.names == ("class7",)
    assert source.load(good).annotations.ids.tolist() == [9]
    with pytest.raises(BadImage, match="leads out"):
        source.load(bad)


def test_hugging_face_files_of_one_name_in_several_folders_stay_apart(tmp_path):
    row = hf_row(0, ([1, 2, 3, 4], 0))
    for number, name in enumerate(("train/0000", "train/0001", "test/0000")):
        rows = [{**row, "image": {"bytes": jpeg(number), "path": "0.jpg"}}]  # a path that is not unique
        parquet(tmp_path / f"data/default/{name}.parquet", rows, ["cat"])
    _, records, _ = read_source("hf_parquet", uri=str(tmp_path))
    assert {image_id: r.split for image_id, r in records.items()} == {
        "test/0000/0-0": "test",
        "train/0000/0-0": "train",
        "train/0001/0-0": "train",
    }


def test_hugging_face_bad_rows_have_their_fate(tmp_path):
    good = ([1.0, 2.0, 3.0, 4.0], 0)
    rows = [
        hf_row(0, good, ([1.0, 2.0, 3.0], 0), ([1.0, float("nan"), 3.0, 4.0], 1), ([1.0, 2.0, 3.0, 4.0], 99)),
        {"image": {"bytes": b"no image", "path": None}, "objects": {"bbox": [good[0]], "category": [0]}},
        {"image": None, "objects": {"bbox": [good[0]], "category": [0]}},
        {"image": {"bytes": jpeg(3), "path": None}, "objects": {"bbox": [good[0], good[0]], "category": [0]}},
    ]
    uri = parquet(tmp_path / "in/a.parquet", rows, ["cat", "dog"])
    version = ingest(open_source("hf_parquet", uri=uri), str(tmp_path / "out"))
    assert version.ledger["images"] == {"seen": 4, "imported": 2, "mended": 0, "dropped": 0, "quarantined": 2}
    assert version.ledger["annotations"] == {"seen": 8, "imported": 2, "mended": 0, "dropped": 4, "quarantined": 2}


def test_hugging_face_files_that_are_not_theirs(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="not a Parquet file"):
        open_source("hf_parquet", uri=str(tmp_path / "a.parquet"))
    uri = parquet(tmp_path / "b.parquet", [{"image": "path.jpg"}])
    with pytest.raises(ValueError, match="not a struct"):
        open_source("hf_parquet", uri=uri)
    with pytest.raises(ValueError, match="no column 'picture'"):
        open_source("hf_parquet", uri=uri, image_column="picture")
    with pytest.raises(ValueError, match="bbox_format 'yolo'"):
        open_source("hf_parquet", uri=uri, bbox_format="yolo")
    with pytest.raises(ValueError, match="no Parquet file"):
        open_source("hf_parquet", uri=str(tmp_path / "none.parquet"))
