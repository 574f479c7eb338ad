"""What is written down names no secret: a source with one is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipelines.credentials import check_options, has_credentials, redact
from pipelines.relabelling import add_labels
from pipelines.sources import Source, SourceItem, open_source
from tests.making import LABEL_MAP, coco_document, coco_images, commit_records, record, write_coco
from workers.ingest import ingest
from workers.label_config import LabelConfig
from workers.label_listing import open_input

SECRET = "SECRETPW"


@pytest.mark.parametrize(
    ("uri", "shown", "refused"),
    [
        ("s3://AK:se/cret@b/k", "s3://b/k", True),
        ("s3://AK:12/cret@b/k@labels/gt:3", "s3://b/k@labels/gt:3", True),
        ("s3://AK:p@ss@b/k", "s3://b/k", True),
        ("s3://AK:se/cret@labels/k", "s3://labels/k", True),
        ("s3://AK:pw@b@labels/gt", "s3://b@labels/gt", True),
        ("simplecache::https://u:p@h/a?b=1", "simplecache::https://h/a", True),
        ("zip://a.jpg::s3://k:s@b/a.zip", "zip://a.jpg::s3://b/a.zip", True),
        ("https://token@h/a", "https://h/a", True),
        ("https://h/a?sig=1", "https://h/a", True),
        ("https://h/a?se=2&X-Goog-Signature=1", "https://h/a", True),
        ("https://h/a?id=7&design=2", "https://h/a", False),
        ("https://h:8080/a@b/c", "https://h:8080/a@b/c", False),
        ("https://[::1]:8080/a@b", "https://[::1]:8080/a@b", False),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://account.dfs.core.windows.net/a", False),
        ("s3://b/a:b@labels/gt:1", "s3://b/a:b@labels/gt:1", False),
        ("/a:b@c/d?sig=1", "/a:b@c/d?sig=1", False),
    ],
)
def test_secrets_are_told_from_what_only_looks_like_them(uri: str, shown: str, refused: bool):
    assert redact(uri) == shown and has_credentials(uri) == refused


def in_memory(folder: Path, host: str) -> tuple[dict[str, str], Path]:
    """A COCO source on a store whose URI may hold anything."""
    images = coco_images(2)
    options = write_coco(folder, "train", coco_document(2), images)
    root = f"memory://user:{SECRET}@{host}"
    fsspec.filesystem("memory").pipe(
        {f"{root}/instances.json": Path(options["annotations"]).read_bytes()}
        | {f"{root}/train/{name}": content for name, content in images.items()}
    )
    return {"annotations": f"{root}/instances.json", "images": f"{root}/train"}, folder / "d"


def assert_nothing_tells(folder: Path, error: BaseException) -> None:
    assert SECRET not in str(error) and "environment" in str(error)
    assert not any(SECRET.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_source_with_a_password_is_refused_and_nothing_tells_it(tmp_path: Path):
    options, dataset = in_memory(tmp_path / "s", "plain")
    source = open_source("coco", **options)
    with pytest.raises(
        ValueError, match=r"option splits\.train\.annotations of the source 'coco': memory://plain/instances\.json"
    ) as e:
        ingest(source, str(dataset))
    assert_nothing_tells(tmp_path, e.value)
    assert not dataset.exists()


def test_options_are_looked_into_however_deep(tmp_path: Path):
    options, dataset = in_memory(tmp_path / "s", "deep")
    with pytest.raises(
        ValueError, match=r"option source\.options\.splits\.train\.annotations of the source 'resplit'"
    ) as e:
        ingest(open_source("resplit", source={"kind": "coco", "options": options}, ratios={"a": 1}), str(dataset))
    assert_nothing_tells(tmp_path, e.value)
    with pytest.raises(ValueError, match=r"option tars of the source 'webdataset': https://h/1\.tar holds"):
        check_options("webdataset", {"tars": ["https://h/0.tar", f"https://h/1.tar?sig={SECRET}"], "split": ""})
    check_options("yolo", {"uri": "https://h/data.yaml?raw=1", "splits": ["train"], "n": 1})


def test_labels_with_a_password_are_refused(tmp_path: Path):
    commit_records(tmp_path / "d", [record(1)], plan_id="one")
    options, _ = in_memory(tmp_path / "s", "labels-only")
    with pytest.raises(ValueError, match=r"option splits\.train\.annotations") as e:
        add_labels(str(tmp_path / "d"), open_source("coco", **options), label_set="new")
    assert_nothing_tells(tmp_path, e.value)


def test_a_dataset_with_a_password_is_refused(tmp_path: Path):
    source = open_source("coco", **write_coco(tmp_path, "train", coco_document(1), coco_images(1)))
    with pytest.raises(ValueError, match=r"dataset s3://bucket/d holds") as e:
        ingest(source, f"s3://AK:{SECRET}/x@bucket/d")
    assert_nothing_tells(tmp_path, e.value)


class Links:
    """A source that names images by links, as exports of labelling tools do."""

    kind, options, label_map = "links", {}, LABEL_MAP

    def __init__(self, item: SourceItem) -> None:
        self._item = item

    def scan(self):
        yield self._item

    def load(self, item: SourceItem):
        raise FileNotFoundError(item.uri)


def test_an_image_behind_a_signed_url_is_refused_and_a_signed_url_beside_it_is_cut(tmp_path: Path):
    source: Source = Links(SourceItem(image_id="a", uri=f"https://h/a.jpg?X-Amz-Signature={SECRET}"))
    with pytest.raises(ValueError, match=r"image https://h/a\.jpg holds .* `url_list`") as e:
        ingest(source, str(tmp_path / "d"))
    assert_nothing_tells(tmp_path, e.value)
    beside = Links(SourceItem(image_id="a", uri=str(tmp_path / "none.jpg"), url=f"https://h/a.jpg?sig={SECRET}"))
    with pytest.raises(ValueError, match="not one image could be imported"):
        ingest(beside, str(tmp_path / "d"))
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_tars_with_a_password_are_not_labelled_by_a_plan_that_names_them(tmp_path: Path):
    uri = f"memory://user:{SECRET}@tars/a.tar"
    fsspec.filesystem("memory").pipe({uri: b"\0" * 10240})
    with pytest.raises(ValueError, match=r"option tars of the source 'webdataset': memory://tars/a\.tar holds") as e:
        open_input(LabelConfig(model="m", input=uri, input_format="webdataset", out=str(tmp_path / "out")))
    assert_nothing_tells(tmp_path, e.value)
