"""The browsable gallery in a real browser: what it shows, filters and sorts, keys, and names that mean harm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.predictions import PredictionSet
from pipelines.records import Annotations, LabelMap
from pipelines.report.browse import GalleryReport, write_gallery
from pipelines.schema import LabelRow
from pipelines.shard_writing import label_rows
from pipelines.uncertainty import object_uncertainty
from pipelines.versions import Dataset
from tests.archived import label_archive, write_archive
from tests.browsing import CHROMIUM, Browser, browser
from tests.evaluated import synthetic_records, write_dataset, write_guesses
from tests.making import encoded

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
HOSTILE = 'val/"><script>alert(1)</script>.jpg'
COUNT = 70  # more than the page draws at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    page: Path
    rows: dict[str, LabelRow]
    dataset: Dataset
    predictions: PredictionSet
    report: GalleryReport


def detected(truth: Annotations, rng: np.random.Generator) -> Annotations:
    """Most of the truth with its masks and keypoints, each at a score, and something false."""
    kept = np.flatnonzero(rng.random(len(truth)) < 0.8)
    order = [*kept.tolist(), 0]
    boxes = truth.boxes_xywh[order]
    boxes[-1] = (2, 2, 9, 7)
    scores = np.append(np.sort(rng.uniform(0.3, 1.0, len(kept)))[::-1], 0.25)
    return replace(
        truth,
        ids=np.arange(1, len(order) + 1),
        boxes_xywh=boxes,
        category_ids=truth.category_ids[order],
        area=truth.area[order],
        iscrowd=np.zeros(len(order), np.bool_),
        polygons=(*(truth.polygons[i] for i in order[:-1]), None),
        rles=(None,) * len(order),
        keypoints=(*(truth.keypoints[i] for i in order[:-1]), None),
        num_keypoints=truth.num_keypoints[order],
        scores=scores,
        attributes=({},) * len(order),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("gallery")
    records, label_map = synthetic_records(2, COUNT - 2)
    records[3] = replace(records[3], image_id=HOSTILE)
    star, *others = label_map.categories
    label_map = LabelMap(categories=(replace(star, name="<svg onload=alert(4)>"), *others))
    dataset = write_dataset(folder / "data", records, label_map)
    rng = np.random.default_rng(5)
    rows = [
        replace(row, annotations=detected(row.annotations, rng), status="ok")
        for row in label_rows(records)
        if row.annotations is not None
    ]
    rows[7] = replace(rows[7], annotations=None, status="failed", error="<img src=x onerror=alert(3)>")
    predictions = write_guesses(dataset, rows, label_map)
    title = "</title><script>alert(2)</script>"
    report = write_gallery(str(folder / "page"), dataset, predictions, size=160, title=title)
    by_id = {row.image_id: row for row in rows}
    return Made(page=folder / "page/index.html", rows=by_id, dataset=dataset, predictions=predictions, report=report)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def gallery(running: Browser, made: Made) -> Browser:
    running.window(1280, 900)
    running.complaints.clear()
    running.asked.clear()
    running.open(made.page)
    running.wait("document.querySelectorAll('.shot .mark').length > 50")
    return running


def count(found: Browser) -> str:
    return str(found.value("document.getElementById('count').textContent"))


def set_to(found: Browser, control: str, value: Any) -> None:
    found.value(
        f"(() => {{ const c = document.getElementById({json.dumps(control)}); c.value = {json.dumps(value)};"
        "c.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def names(found: Browser) -> list[str]:
    """Of all images that the filters let through; the page is scrolled to its end."""
    found.wait("(scrollTo(0, 1e7), !document.getElementById('more').textContent)")
    return list(found.value("[...document.querySelectorAll('.shot .path')].map(e => e.textContent)"))


def objects(row: LabelRow) -> list[tuple[int, float]]:
    found = row.annotations
    return [] if found is None else list(zip(found.category_ids.tolist(), found.scores.tolist(), strict=True))


def test_everything_is_there_and_the_console_is_silent(gallery: Browser, made: Made) -> None:
    total = sum(len(objects(row)) for row in made.rows.values())
    assert count(gallery) == f"{COUNT} of {COUNT} images · {total} objects"
    assert (made.report.num_images, made.report.num_objects, made.report.unreadable) == (COUNT, total, 0)
    assert sorted(names(gallery)) == sorted(made.rows)
    gallery.wait("[...document.querySelectorAll('.shot image')].length > 5")
    assert gallery.complaints == []
    assert {url.rpartition(":")[0] for url in gallery.asked} <= {"file", "data", "about"}
    # Far cards are empty again: thousands of images stay light.
    assert gallery.value("document.querySelectorAll('.shot svg').length") < COUNT


def test_the_most_uncertain_come_first(gallery: Browser, made: Made) -> None:
    def uncertainty(row: LabelRow) -> float:
        return max((float(object_uncertainty(np.array([s]))[0]) for _, s in objects(row)), default=0.0)

    shown = [round(uncertainty(made.rows[name]), 4) for name in names(gallery)]
    assert shown == sorted(shown, reverse=True)
    set_to(gallery, "sort", "many")
    lengths = [len(objects(made.rows[name])) for name in names(gallery)]
    assert lengths == sorted(lengths, reverse=True)
    set_to(gallery, "sort", "name")
    assert names(gallery) == sorted(made.rows)


@pytest.mark.parametrize(("label", "low", "high"), [(5, 0.9, 1.0), (None, 0.0, 0.31), (2, 0.0, 1.0)])
def test_class_and_score_filter(gallery: Browser, made: Made, label: int | None, low: float, high: float) -> None:
    if label is not None:
        set_to(gallery, "class", str(label))
    set_to(gallery, "low", str(low))
    set_to(gallery, "high", str(high))
    category = None if label is None else made.predictions.label_map.categories[label].category_id
    fitting = {
        name: kept
        for name, row in made.rows.items()
        if (kept := [o for o in objects(row) if category in (None, o[0]) and low <= round(o[1], 4) <= high])
    }
    assert 0 < len(fitting) < COUNT
    shown = f"{len(fitting)} of {COUNT} images · {sum(map(len, fitting.values()))} objects"
    assert count(gallery) == shown
    assert set(names(gallery)) == set(fitting)
    # Another page at the same address shows the same.
    fragment = gallery.value("location.hash")
    gallery.open(made.page, fragment)
    gallery.wait("document.getElementById('count').textContent.includes('of')")
    assert count(gallery) == shown


def test_errors_are_found(gallery: Browser, made: Made) -> None:
    """Each image has one false alarm of score .25; without it the images with no miss have no error."""
    truth = {row[0]: len(row[4]) for row in made.dataset.annotations()}
    set_to(gallery, "show", "false")
    assert set(names(gallery)) == {name for name, row in made.rows.items() if objects(row)}
    set_to(gallery, "low", "0.28")
    assert names(gallery) == []
    set_to(gallery, "show", "missed")
    incomplete = {name for name, row in made.rows.items() if truth[name] > max(0, len(objects(row)) - 1)}
    assert set(names(gallery)) == incomplete
    set_to(gallery, "show", "right")
    assert set(names(gallery)) == set(made.rows) - incomplete
    set_to(gallery, "show", "empty")
    assert [name for name in names(gallery) if made.rows[name].status == "failed"]


def test_keys_walk_through_the_images(gallery: Browser, made: Made) -> None:
    order = names(gallery)
    gallery.value("scrollTo(0, 0)")
    place, name = "document.getElementById('place').textContent", "document.getElementById('name').textContent"
    gallery.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Enter")
    assert gallery.value(place) == f"2 / {COUNT}" and gallery.value(name) == order[1]
    gallery.press("ArrowRight", "j", "k")
    assert gallery.value(name) == order[2]
    gallery.press("End", "ArrowRight")
    assert gallery.value(place) == f"{COUNT} / {COUNT}" and gallery.value(name) == order[-1]
    gallery.press("Escape")
    assert not gallery.value("document.getElementById('detail').open")
    assert gallery.value("Number(document.activeElement.dataset.place)") == COUNT - 1
    columns = gallery.value("getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length")
    gallery.press("ArrowUp")
    assert gallery.value("Number(document.activeElement.dataset.place)") == COUNT - 1 - columns
    assert gallery.complaints == []


def test_masks_skeletons_boxes_and_truth_come_and_go(gallery: Browser, made: Made) -> None:
    name, row = next((i, r) for i, r in made.rows.items() if any(k is not None for k in r.annotations.keypoints))
    gallery.open(made.page, f"#image={name}&high=1")
    gallery.wait("document.querySelectorAll('#stage .mark').length > 0")
    drawn = len(objects(row))
    missed = gallery.value("document.querySelectorAll('#stage .missed').length")

    def number(what: str) -> int:
        return int(gallery.value(f"document.querySelectorAll('#stage {what}').length"))

    def pressed(key: str, until: str) -> None:
        gallery.press(key)
        gallery.wait(until)

    masks = sum(p is not None for p in row.annotations.polygons)
    assert number(".mark:not(.missed) .mask") == masks > 0 and number("rect") == drawn + missed
    pressed("m", "!document.querySelector('#stage .mask')")
    assert number(".joint") > 5 and number(".bone") > 3 and number("rect") == drawn + missed
    pressed("s", "!document.querySelector('#stage .joint')")
    pressed("b", "!document.querySelector('#stage rect')")
    pressed("m", "document.querySelector('#stage .mask')")
    assert number(".mark:not(.missed) .mask") == masks and number(".truth") == 0
    pressed("t", "document.querySelector('#stage .truth')")
    assert number(".truth") + missed == next(len(r[4]) for r in made.dataset.annotations() if r[0] == name)
    assert not gallery.value("document.querySelector('[data-toggle=boxes]').ariaPressed === 'true'")


def test_names_that_mean_harm_do_nothing(gallery: Browser, made: Made) -> None:
    set_to(gallery, "text", "<script>ALERT")
    assert names(gallery) == [HOSTILE]
    gallery.press("Tab")
    gallery.value("document.querySelector('.shot').click()")
    gallery.wait("document.querySelectorAll('#stage .mark').length > 0")
    assert gallery.value("document.getElementById('name').textContent") == HOSTILE
    gallery.open(made.page, gallery.value("location.hash"))
    gallery.wait("document.getElementById('detail').open")
    assert gallery.value("document.getElementById('name').textContent") == HOSTILE
    assert gallery.value("document.title") == "</title><script>alert(2)</script>"
    assert "<svg onload=alert(4)>" in gallery.value("document.getElementById('class').textContent")
    assert gallery.dialogs == 0 and gallery.complaints == []
    assert gallery.value("[...document.scripts].every(s => s.src && !s.textContent)")
    assert gallery.value("document.querySelectorAll('img').length") == 0
    written = [str(p.relative_to(made.page.parent)) for p in made.page.parent.rglob("*") if p.is_file()]
    assert len(written) == made.report.files == COUNT + 5
    assert not [name for name in written if "script" in name]


def test_a_failed_image_says_why(gallery: Browser) -> None:
    set_to(gallery, "show", "empty")
    assert gallery.value("document.querySelector('.shot .soft').textContent").startswith("<img src=x")


def test_an_image_that_cannot_be_read_says_why_on_its_card_and_opened(running: Browser, tmp_path: Path) -> None:
    images = {"lost.jpg": encoded(seed=1), "text.jpg": b"no image"}
    write_archive(tmp_path / "photos", images)
    predictions = label_archive(str(tmp_path / "photos"), str(tmp_path / "out"))
    (tmp_path / "photos/lost.jpg").unlink()
    write_gallery(str(tmp_path / "g"), predictions.labels, size=64)
    running.open(tmp_path / "g/index.html")
    running.wait("document.querySelectorAll('.shot .broken').length === 2")
    told = running.value("[...document.querySelectorAll('.shot .soft')].map(e => e.textContent)")
    assert told[0].startswith("1 object · uncertainty 0.10 · lost.jpg is no file of")
    assert told[1].startswith("decode: BadImage: not a")
    # The image that never had a size still has a picture with letters in it.
    wide = "[...document.querySelectorAll('.shot .broken')].map(e => e.getBoundingClientRect().width > 20)"
    assert running.value(wide) == [True, True]
    running.value("document.querySelectorAll('.shot')[1].click()")
    assert running.value("document.getElementById('why').textContent").startswith("decode: BadImage")
    assert running.value("document.getElementById('facts').textContent") == ""


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (1280, True), (390, False)], ids=["desktop", "dark", "phone"]
)
def test_it_fits_the_window(gallery: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    gallery.window(width, 844, dark=dark, mobile=width < 500)
    assert gallery.value("document.documentElement.scrollWidth - innerWidth") <= 0
    gallery.screenshot(tmp_path / "shot.png")
    corner = Image.open(tmp_path / "shot.png").convert("L").getpixel((width - 2, 840))
    assert isinstance(corner, int)
    assert (corner < 60) if dark else (corner > 200)
    gallery.value("document.querySelector('.shot').click()")
    gallery.wait("document.querySelectorAll('#stage .mark').length > 0")
    assert gallery.value("document.documentElement.scrollWidth - innerWidth") <= 0
    tops = "['stage', 'place'].map(id => document.getElementById(id).getBoundingClientRect().top)"
    stage, place = gallery.value(tops)
    assert (place > stage + 300) == (width < 500)


def test_truth_alone_has_no_scores(running: Browser, made: Made, tmp_path: Path) -> None:
    report = write_gallery(str(tmp_path / "g"), made.dataset, splits=["train"], size=64)
    assert report.num_images == 2
    running.open(tmp_path / "g/index.html")
    running.wait("document.querySelectorAll('.shot .mark').length > 0")
    assert running.value("document.getElementById('low') === null && document.querySelectorAll('.missed').length === 0")
    shutil.rmtree(tmp_path / "g/data")
    running.open(tmp_path / "g/index.html")
    assert count(running) == "…"


def test_doubtful_crowds_are_hidden_at_first(running: Browser, made: Made, tmp_path: Path) -> None:
    """A label set that is made to be measured has many boxes an image that hide the picture."""
    records, label_map = synthetic_records(2, 2)
    dataset = write_dataset(tmp_path / "data", records, label_map)

    def crowd(truth: Annotations) -> Annotations:
        one, times = [0] * 30, 30
        return replace(
            truth,
            ids=np.arange(1, times + 1),
            **{name: getattr(truth, name)[one] for name in ("boxes_xywh", "category_ids", "area", "iscrowd")},
            polygons=(None,) * times,
            rles=(None,) * times,
            keypoints=(None,) * times,
            num_keypoints=np.zeros(times, np.int64),
            scores=np.linspace(0.9, 0.025, times),
            attributes=({},) * times,
        )

    rows = [replace(row, annotations=crowd(row.annotations), status="ok") for row in label_rows(records)]
    write_gallery(str(tmp_path / "g"), dataset, write_guesses(dataset, rows, label_map), size=64)
    running.open(tmp_path / "g/index.html")
    running.wait("document.querySelectorAll('.shot .mark').length > 0")
    shown = len([score for score in np.linspace(0.9, 0.025, 30) if score >= 0.3])
    assert running.value("document.getElementById('low').value") == "0.3"
    assert count(running) == f"4 of 4 images · {4 * shown} objects · {4 * (30 - shown)} below a score of 0.30"
    set_to(running, "low", "0")
    assert count(running) == "4 of 4 images · 120 objects"
    running.open(tmp_path / "g/index.html", running.value("location.hash"))
    running.wait("document.getElementById('count').textContent.includes('of')")
    assert count(running) == "4 of 4 images · 120 objects"
