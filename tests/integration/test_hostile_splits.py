"""A data set names its splits as it likes; what is exported stays in its folder whatever they are called."""

from __future__ import annotations

import hashlib
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from pipelines.exports import EXPORTS, find_export
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.hostile.case import jpeg
from workers.ingest import ingest

SPLITS = (
    "../../../evil",
    "..",
    ".",
    "/absolute",
    "a/../../b",
    "..\\..\\evil",
    "con",
    "annotations",
    "names",
    "Train",
    "train",
    "",
    "x" * 300,
)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("cvat")
    (root / "images").mkdir()
    entries = []
    for number, split in enumerate(SPLITS):
        (root / f"images/{number}.jpg").write_bytes(jpeg(number))
        box = '<box label="cat" xtl="1" ytl="2" xbr="9" ybr="8"/>'
        head = f'id="{number}" name="{number}.jpg" width="32" height="24"'
        entries.append(f"<image {head} subset={quoteattr(split)}>{box}</image>")
    labels = "<meta><task><labels><label><name>cat</name></label></labels></task></meta>"
    (root / "annotations.xml").write_text(
        f"<annotations><version>1.1</version>{labels}{''.join(entries)}</annotations>"
    )
    return ingest(open_source("cvat", annotations=str(root / "annotations.xml")), str(root / "dataset"))


@pytest.mark.parametrize("kind", sorted(EXPORTS))
def test_no_split_leads_out_of_the_export(version, tmp_path: Path, kind: str):
    out = tmp_path / "a/b/c/d/out"
    out.mkdir(parents=True)
    report = find_export(kind)(version.reference, str(out), images=True)
    assert report.num_images == open_dataset(version.reference).num_images
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(out in path.parents for path in written)
    if kind != "hf_parquet":  # it has the images in its tables
        images = {hashlib.sha256(p.read_bytes()).hexdigest() for p in written if p.suffix == ".jpg"}
        assert len(images) == report.num_images
    # One split's list is never written over another's, not even where case does not count.
    assert len(set(report.files.values())) == len(report.files)
    assert len({str(path).casefold() for path in written}) == len(written)
    assert all(Path(uri).is_file() for uri in report.files.values())
