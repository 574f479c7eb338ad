"""What splits are called in file names, and what a split without a name becomes beside others."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.exports import find_export
from pipelines.exports.names import split_names
from tests.scenes import box_object, commit, read_source, record


def test_most_splits_keep_their_name():
    splits = ["train", "val", "test", "val2017", "fold 3", "my-split"]
    assert split_names(splits) == {split: split for split in splits}
    assert split_names([""]) == {"": "all"}
    assert split_names([""], unnamed="train") == {"": "train"}


def test_a_name_is_given_once():
    assert split_names(["", "all"]) == {"": "unnamed", "all": "all"}
    assert split_names(["", "all", "unnamed"])[""] == "unnamed_2"
    assert split_names(["", "Train"], unnamed="train") == {"": "unnamed", "Train": "Train"}
    assert split_names(["a/b", "a_b", "Train", "train"]) == {
        "a_b": "a_b",
        "a/b": "a_b_2",
        "train": "train",
        "Train": "Train_2",
    }
    assert split_names(["names"], without=("names",)) == {"names": "names_2"}


@settings(deadline=None)
@given(st.sets(st.text(max_size=20) | st.sampled_from(["", "all", "..", "../..", "/a", "a", "A", "con", "é" * 200])))
def test_names_are_safe_and_unique(splits):
    names = split_names(splits)
    assert set(names) == splits
    assert len({name.casefold() for name in names.values()}) == len(splits)
    for name in names.values():
        assert name not in ("", ".", "..") and not set(name) & set('/\\<>:"|?*\x00')
        assert len(name.encode("utf-8", "replace")) < 220


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """An image without a split, as a folder gives it, and one each of splits with names that formats use for it."""
    splits = ("", "train", "all", "val")
    scene = [record(f"{i}.jpg", [box_object(i)], seed=i, split=split) for i, split in enumerate(splits)]
    return commit(tmp_path / "d", scene).reference


def test_splits_with_and_without_a_name_have_a_file_each(dataset, tmp_path):
    coco = find_export("coco")(dataset, str(tmp_path / "coco"), images=True)
    names = {split: json.loads(Path(uri).read_text())["images"][0]["file_name"] for split, uri in coco.files.items()}
    assert names == {"": "0.jpg", "train": "1.jpg", "all": "2.jpg", "val": "3.jpg"}
    assert sorted(str(p.relative_to(tmp_path / "coco")) for p in (tmp_path / "coco").rglob("*.jpg")) == [
        "all/2.jpg",
        "train/1.jpg",
        "unnamed/0.jpg",
        "val/3.jpg",
    ]
    lvis = find_export("lvis")(dataset, str(tmp_path / "lvis"))
    assert sorted(Path(uri).name for uri in lvis.files.values()) == [
        f"lvis_{name}.json" for name in ("all", "train", "unnamed", "val")
    ]
    voc = find_export("voc")(dataset, str(tmp_path / "voc"))
    lists = {split: (Path(uri).name, Path(uri).read_text()) for split, uri in voc.files.items()}
    assert lists == {
        "": ("unnamed.txt", "0\n"),
        "train": ("train.txt", "1\n"),
        "all": ("all.txt", "2\n"),
        "val": ("val.txt", "3\n"),
    }
    hf = find_export("hf_parquet")(dataset, str(tmp_path / "hf"))
    rows = {name: pq.read_table(uri)["image"].to_pylist()[0]["path"] for name, uri in hf.files.items()}
    assert rows == {"unnamed": "0.jpg", "train": "1.jpg", "all": "2.jpg", "val": "3.jpg"}


def test_one_split_alone_is_called_as_in_an_export_of_all(dataset, tmp_path):
    for split in ("", "train"):
        find_export("voc")(dataset, str(tmp_path), splits=[split])
    assert (tmp_path / "ImageSets/Main/unnamed.txt").read_text() == "0\n"
    assert (tmp_path / "ImageSets/Main/train.txt").read_text() == "1\n"


def test_what_has_no_split_is_in_data_yaml_for_training(dataset, tmp_path):
    find_export("yolo")(dataset, str(tmp_path / "yolo"), splits=["", "train", "all"])
    config = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert config["train"] == config["val"] == ["images/train", "images/unnamed"]
    assert config["all"] == "images/all"
    _, records, _ = read_source("yolo", uri=str(tmp_path / "yolo/data.yaml"), splits=["train"])
    assert {Path(image_id).name: r.split for image_id, r in records.items()} == {"0.jpg": "train", "1.jpg": "train"}


def test_a_split_called_like_a_word_of_data_yaml_has_another_name_there(tmp_path):
    scene = [record("a.jpg", [box_object(1)], split="names"), record("b.jpg", [box_object(2)], seed=1, split="val")]
    find_export("yolo")(commit(tmp_path / "d", scene).reference, str(tmp_path / "yolo"))
    config = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert config["names"][0] == "ball & <bat>" and config["names_2"] == "images/names_2"
