"""Images labelled where they lie: good ones, bad ones and refused ones, in a folder, tars and a zip."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipelines import open_predictions
from pipelines.ledger_listing import read_ledger
from pipelines.quarantine import read_quarantine
from pipelines.references import EmptyDataset
from pipelines.sources.synthetic import SyntheticSource
from tests.integration.labelling import THRESHOLD, make_model, rows_by_image
from workers.label import LabelConfig, label

pytestmark = pytest.mark.ray

SOURCE = SyntheticSource(seed=3, num_train=10, num_val=0, size=(160, 128))
GOOD = {f"scenes/{i:02d}.jpg": SOURCE.load(item).image for i, item in enumerate(SOURCE.scan())}
BAD = {
    "bad/cut.jpg": GOOD["scenes/00.jpg"][:-400],
    "bad/text.jpg": b"this is a text file, whatever its name says",
    "bad/empty.jpg": b"",
}
OTHER = {"readme.txt": b"no image"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_model(tmp_path_factory.mktemp("label") / "model", SOURCE.label_map)


def write(kind: str, path: Path) -> Path:
    files = {**GOOD, **BAD, **OTHER}
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        (path / "link.jpg").symlink_to("scenes/00.jpg")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            archive.writestr("../link.jpg", b"")
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "scenes/00.jpg"
            tar.addfile(link)
    return path


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip"])
def test_every_image_has_one_row_and_bad_ones_say_why(kind, model, tmp_path, ray_cluster):
    archive = write(kind, tmp_path / f"images.{kind}")
    config = LabelConfig(
        input=str(archive),
        model=model,
        out=str(tmp_path / "out"),
        score_threshold=THRESHOLD,
        coco_results=str(tmp_path / "results.json"),
        task_images=4,
        workers=1,
    )
    made = label(config)
    assert (made.num_images, made.num_quarantined) == (13, 3 + 1)

    predictions = open_predictions(made.reference)
    rows = {row[0]: row for row in rows_by_image(made.reference)}
    assert set(rows) == {*GOOD, *BAD} and len(rows_by_image(made.reference)) == 13
    assert predictions.status() == {"ok": 10, "failed": 3}
    errors = dict(predictions.errors())
    assert errors["bad/cut.jpg"].startswith("decode: BadImage: cut off")
    assert "not a JPEG" in errors["bad/text.jpg"]
    assert "empty" in errors["bad/empty.jpg"]

    quarantined = {q.image_id: q for q in read_quarantine(config.out, predictions.metadata["plan_id"])}
    assert {name: q.stage for name, q in quarantined.items() if name in BAD} == dict.fromkeys(BAD, "decode")
    (refused,) = quarantined.keys() - BAD.keys()
    assert quarantined[refused].stage == "list" and refused.endswith("link.jpg")
    listed = [entry.image_id for entry in read_ledger(made.reference).entries() if entry.fate == "quarantined"]
    assert sorted(listed) == sorted([*BAD, refused])

    records = {record.image_id: record for record in predictions.records()}
    assert {name: record.image for name, record in records.items()} == GOOD
    assert all(record.annotations.scores is not None for record in records.values())
    assert (records["scenes/00.jpg"].width, records["scenes/00.jpg"].height) == (160, 128)

    results = json.loads(Path(made.coco_results_uri).read_text())
    assert len(results) == made.num_objects > 0
    assert {r["image_id"] for r in results} == {rows[name][1] for name in GOOD}


def test_the_same_images_get_the_same_predictions_whatever_holds_them(model, tmp_path, ray_cluster):
    found = {}
    for kind in ("tar", "zip"):
        archive = write(kind, tmp_path / f"images.{kind}")
        made = label(
            LabelConfig(
                input=str(archive), model=model, out=str(tmp_path / "out"), score_threshold=THRESHOLD, workers=1
            )
        )
        found[kind] = [row for row in rows_by_image(made.reference) if row[0] in GOOD]
    assert [(r[0], r[5], r[6]) for r in found["tar"]] == [(r[0], r[5], r[6]) for r in found["zip"]]


def test_a_row_names_the_bytes_of_its_image(model, tmp_path, ray_cluster):
    import pyarrow.parquet as pq

    archive = write("tar", tmp_path / "images.tar")
    label(LabelConfig(input=str(archive), model=model, out=str(tmp_path / "out"), workers=1))
    raw, seen = archive.read_bytes(), {}
    for path in (tmp_path / "out/labels").glob("*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            assert row["source"] == str(archive)
            seen[row["member"]] = raw[row["offset"] : row["offset"] + row["length"]]
    assert seen == {**GOOD, **BAD}


def test_bad_input_is_told_before_anything_starts(model, tmp_path):
    archive = write("zip", tmp_path / "images.zip")
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match=r"images\.zip is no dataset.*out=URI"):
        label(LabelConfig(input=str(archive), model=model))
    with pytest.raises(FileNotFoundError, match=r"absent\.zip"):
        label(LabelConfig(input=str(tmp_path / "absent.zip"), model=model, out=out))
    with pytest.raises(FileNotFoundError, match="no model"):
        label(LabelConfig(input=str(archive), model=str(tmp_path / "nowhere"), out=out))
    (tmp_path / "void").mkdir()
    with pytest.raises(EmptyDataset, match="void"):
        label(LabelConfig(input=str(tmp_path / "void"), model=model, out=out))
    with pytest.raises(ValueError, match="no splits"):
        label(LabelConfig(input=str(archive), model=model, out=out, splits=("val",)))
