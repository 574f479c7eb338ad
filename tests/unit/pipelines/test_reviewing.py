"""Out to a labelling tool and back: the images are found again, and what does not fit is counted and listed."""

from __future__ import annotations

import hashlib
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.exports.cvat import export_cvat
from pipelines.exports.label_studio import export_label_studio
from pipelines.ledger_listing import read_ledger
from pipelines.predictions import PredictionSet
from pipelines.records import Annotations
from pipelines.relabelling import add_labels
from pipelines.reviewing import LabelSetLabels, reviewed_labels
from pipelines.route_rules import RouteRules
from pipelines.routing import Routed, route
from pipelines.shard_writing import label_rows
from pipelines.sources.known_images import KnownImage, KnownImages
from pipelines.versions import open_dataset
from tests.evaluated import write_guesses
from tests.making import LABEL_MAP, commit_records, record

NAMES = ("p/a/0.jpg", "p/a/1.jpg", 'p/b/"><script>x</script>.jpg', "p/b/1.jpg", "p/upside.jpg", "p/b/bare")


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.new("RGB", (24, 16), (90, 120, 30)).save(sink, "JPEG", exif=exif)
    return sink.getvalue()


def predicted(count: int, score: float) -> Annotations:
    boxes = np.array([[1.0 + i, 2.0, 6.0, 9.0] for i in range(count)])
    return Annotations.from_boxes(boxes, np.array([0, 7, 0][:count]), scores=np.full(count, score))


@pytest.fixture
def predictions(tmp_path: Path) -> PredictionSet:
    """Six images of which one shows turned by a quarter; the first is sure, the others are in doubt."""
    records = [replace(record(0), image_id=name, coco_image_id=i, annotations=None) for i, name in enumerate(NAMES)]
    image = turned(6)
    digest = hashlib.sha256(image).hexdigest()
    records[4] = replace(records[4], image=image, sha256=digest, exif_orientation=6)
    uri = str(tmp_path / "data")
    commit_records(uri, records, plan_id="first")
    rows = [
        replace(row, annotations=predicted(2, 0.95 if i == 0 else 0.4 + i / 50), status="ok")
        for i, row in enumerate(label_rows(records))
    ]
    return write_guesses(open_dataset(uri), rows, LABEL_MAP)


@pytest.fixture
def routed(predictions: PredictionSet) -> Routed:
    return route(predictions.reference, RouteRules(accept=0.9, reject=0.1))


def reviewed_by_people(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Label Studio's export after somebody took every pre-annotation over and moved the first box by 5 %."""
    done = []
    for task in tasks:
        (guess,) = task.pop("predictions")
        results = [{**r, "value": dict(r["value"])} for r in guess["result"]]
        if results:
            results[0]["value"]["x"] += 5.0
        done.append({**task, "annotations": [{"id": 900 + task["id"], "result": results, "was_cancelled": False}]})
    return done


def sent_to_label_studio(routed: Routed, folder: Path) -> list[dict[str, Any]]:
    export_label_studio(routed.sets["review"].reference, str(folder))
    return json.loads((folder / "tasks.json").read_text())


def labels(reference: str) -> dict[str, list]:
    return {i: a.boxes_xywh.tolist() for i, *_, a in open_dataset(reference).annotations()}


def test_label_studio_gets_scores_and_the_most_uncertain_first(routed: Routed, tmp_path: Path):
    tasks = sent_to_label_studio(routed, tmp_path / "out")
    assert [t["data"]["image_id"] for t in tasks] == [NAMES[i] for i in (5, 4, 3, 2, 1)]
    assert tasks[0]["data"]["uncertainty"] == 1.0
    assert tasks[0]["data"]["reason"] == "a score between the thresholds"
    assert [r["score"] for r in tasks[0]["predictions"][0]["result"]] == [0.5, 0.5]
    assert len(list((tmp_path / "out/images").rglob("*.*"))) == 5


@pytest.mark.parametrize("by", ["image_id", "name"])
def test_label_studio_and_back(routed: Routed, tmp_path: Path, by: str):
    tasks = reviewed_by_people(sent_to_label_studio(routed, tmp_path / "out"))
    for task in tasks:
        if by == "name":
            del task["data"]["image_id"]
    (tmp_path / "done.json").write_text(json.dumps(tasks))
    review = routed.sets["review"].reference
    source = reviewed_labels(review, "label_studio", str(tmp_path / "done.json"))
    version = add_labels(review, source, label_set="corrected")
    before, after = labels(review), labels(version.reference)
    assert version.num_images == 5 and after.keys() == before.keys() == set(NAMES[1:])
    for name in NAMES[1:]:
        # To the right, which is upwards in the stored frame of the picture that EXIF turns.
        moved = [0, -0.05 * 16, 0, 0] if name == "p/upside.jpg" else [0.05 * 24, 0, 0, 0]
        np.testing.assert_allclose(after[name][0], np.add(before[name][0], moved), atol=1e-9)
        np.testing.assert_allclose(after[name][1], before[name][1], atol=1e-9)
    opened = open_dataset(version.reference)
    assert opened.metadata["kind"] == "truth"
    assert opened.label_map.digest == LABEL_MAP.digest
    assert all(found.scores is None for *_, found in opened.annotations())
    assert source.about() == {"returned": 5, "missing": 0, "missing_images": []}
    assert add_labels(review, source, label_set="corrected").found


def test_what_does_not_fit_is_counted_and_listed(routed: Routed, tmp_path: Path):
    tasks = reviewed_by_people(sent_to_label_studio(routed, tmp_path / "out"))
    by_id = {task["data"]["image_id"]: task for task in tasks}
    del by_id["p/upside.jpg"]
    by_id["p/b/1.jpg"]["annotations"][0]["result"][1]["value"]["rectanglelabels"] = ["zebra"]
    by_id["p/b/bare"]["annotations"] = []
    strange = json.loads(json.dumps(by_id["p/a/1.jpg"]))
    strange["data"] = {"image": "/data/upload/7/who.jpg", "image_id": "p/who.jpg"}
    unclear = json.loads(json.dumps(strange))
    unclear["data"] = {"image": "/data/upload/7/1.jpg"}
    twice = json.loads(json.dumps(by_id["p/a/1.jpg"]))
    (tmp_path / "done.json").write_text(json.dumps([*by_id.values(), strange, unclear, twice, {"id": 3}]))
    review = routed.sets["review"].reference
    source = reviewed_labels(review, "label_studio", str(tmp_path / "done.json"))
    version = add_labels(review, source, label_set="corrected")
    assert version.num_images == 3
    assert version.ledger["images"] == {"seen": 8, "imported": 3, "mended": 0, "dropped": 5, "quarantined": 0}
    assert version.ledger["annotations"]["dropped"] == 1 + 2 + 2 + 2
    assert version.ledger["reasons"] == {
        "annotation dropped: unknown category": 1,
        "image dropped: image already used by another task": 1,
        "image dropped: nobody has annotated the task": 1,
        "image dropped: not a Label Studio task with an image": 1,
        "image dropped: several images of the dataset have this name": 1,
        "image dropped: the dataset has no such image": 1,
    }
    listed = {(e.reason, e.image_id) for e in read_ledger(version.reference).entries() if e.subject == "image"}
    assert ("nobody has annotated the task", "p/b/bare") in listed
    assert ("image already used by another task", "p/a/1.jpg") in listed
    assert source.about() == {"returned": 3, "missing": 2, "missing_images": ["p/b/bare", "p/upside.jpg"]}


def test_cvat_and_back(routed: Routed, tmp_path: Path):
    report = export_cvat(routed.sets["review"].reference, str(tmp_path / "out"))
    assert "score" not in report.losses
    root = ET.parse(tmp_path / "out/annotations.xml").getroot()
    assert {a.text for a in root.iterfind(".//label/attributes/attribute/name")} == {"score"}
    shapes = list(root.iterfind("image/box"))
    assert {shape.get("source") for shape in shapes} == {"auto"}
    assert shapes[0].find("attribute[@name='score']").text == "0.4200"
    for image in root.iterfind("image"):
        first = image.find("box")
        first.set("xtl", str(float(first.get("xtl")) + 1))
    for image in [i for i in root.iterfind("image") if i.get("name").endswith("bare.jpg")]:
        image.set("width", "99")
    ET.SubElement(root, "image", {"id": "77", "name": "other.jpg", "width": "24", "height": "16"})
    ET.ElementTree(root).write(tmp_path / "done.xml")
    review = routed.sets["review"].reference
    version = add_labels(review, reviewed_labels(review, "cvat", str(tmp_path / "done.xml")), label_set="corrected")
    before, after = labels(review), labels(version.reference)
    assert after.keys() == set(NAMES[1:5])
    for name in NAMES[1:4]:
        left, top, width, height = before[name][0]
        np.testing.assert_allclose(after[name][0], [left + 1, top, width - 1, height], atol=1e-9)
        np.testing.assert_allclose(after[name][1], before[name][1], atol=1e-9)
    assert version.ledger["reasons"] == {
        "image dropped: labels of an image of another size": 1,
        "image dropped: the dataset has no such image": 1,
    }


def test_accepted_and_corrected_labels_become_truth(routed: Routed, tmp_path: Path):
    """Two versions of the truth on top of images that nobody had labelled."""
    accept, review = (routed.sets[one].reference for one in ("accept", "review"))
    uri = accept.partition("@")[0]
    first = add_labels(uri, LabelSetLabels.of(accept))
    assert labels(first.reference) == labels(accept)
    tasks = reviewed_by_people(sent_to_label_studio(routed, tmp_path / "out"))
    (tmp_path / "done.json").write_text(json.dumps(tasks[1:]))
    source = reviewed_labels(uri, "label_studio", str(tmp_path / "done.json"), sent=review)
    second = add_labels(uri, source)
    assert second.reference == f"{uri}@labels/gt:3" and second.num_images == 6
    found = labels(second.reference)
    assert found.keys() == set(NAMES) - {"p/b/bare"}
    assert found[NAMES[0]] == labels(accept)[NAMES[0]]
    assert source.about()["missing_images"] == ["p/b/bare"]
    assert all(a.scores is None for *_, a in open_dataset(second.reference).annotations())


def test_categories_must_be_known_to_read_a_review(tmp_path: Path, routed: Routed):
    (tmp_path / "done.json").write_text("[]")
    with pytest.raises(ValueError, match="no file of corrected labels at"):
        reviewed_labels(routed.sets["review"].reference, "cvat", str(tmp_path / "none.xml"))


def test_images_are_found_by_what_tools_call_them():
    images = KnownImages.of(KnownImage(image_id=i, width=2, height=2) for i in ("a/x.jpg", "b/x.jpg", "a/y?.png", "z"))
    expected = {
        "a/x.jpg": "a/x.jpg",
        "x.jpg": None,
        "/a/x.jpg": "a/x.jpg",
        "y_.png": "a/y?.png",
        "y?.png": "a/y?.png",
        "z.jpg": "z",
        "z": "z",
        "jpg": None,
        "": None,
    }
    for name, image_id in expected.items():
        found = images.find(name)
        assert (None if found is None else found.image_id) == image_id, name
    assert images.is_ambiguous("x.jpg") and not images.is_ambiguous("w.jpg")
