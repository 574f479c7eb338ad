"""The report's text: hostile names stay text, the size is bounded, odd inputs still give a page."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.metrics.coco import evaluate_boxes
from pipelines.metrics.matches import match_images
from pipelines.metrics.pairing import PairedImage, pair
from pipelines.records import Annotations, LabelMap
from pipelines.report import charts, pr_curve_svg, write_report
from pipelines.report.gallery import Match, choose, matches_of, thumbnail
from pipelines.shard_writing import label_rows
from tests.evaluated import HISTORY, guessed_rows, make_evaluated, synthetic_records, write_dataset, write_guesses

HOSTILE = "<script>alert('x')</script>\"onload=\"y"


def assert_no_injection(page: str) -> None:
    """Whatever came from outside is there as text only."""
    assert "<script>alert" not in page
    assert 'onload="y' not in page
    assert len(re.findall(r"<script[ >]", page)) <= 1


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    records, label_map = synthetic_records(4, 3)
    records = [replace(r, image_id=f"{HOSTILE}/{r.image_id}") for r in records]
    categories = [{**c, "name": HOSTILE + c["name"]} for c in label_map.to_json()]
    hostile_map = LabelMap.from_json(categories)
    dataset = write_dataset(tmp_path / "dataset", records, hostile_map)
    predictions = write_guesses(dataset, guessed_rows(records), hostile_map)
    pairs = pair(dataset, predictions)
    metrics = evaluate_boxes(
        [(i.image_id, i.truth) for i in pairs.images], [(i.image_id, i.found) for i in pairs.images], hostile_map
    )
    path = write_report(
        str(tmp_path / "report.html"),
        dataset=dataset,
        predictions=predictions,
        metrics=metrics,
        history=[{**row, f"loss_{HOSTILE}": 1.0} for row in HISTORY],
        title=HOSTILE,
        notes=[HOSTILE],
    )
    page = Path(path).read_text()
    assert_no_injection(page)
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") > 20
    svg = pr_curve_svg(metrics)
    assert "<script" not in svg
    assert "alert" in svg


def test_a_page_without_history_or_truth(tmp_path: Path) -> None:
    records, label_map = synthetic_records(3, 0)
    records = [replace(r, annotations=Annotations.empty()) for r in records]
    dataset = write_dataset(tmp_path / "dataset", records, label_map)
    rows = [replace(row, annotations=Annotations.empty(with_scores=True), status="ok") for row in label_rows(records)]
    predictions = write_guesses(dataset, rows, label_map)
    pairs = pair(dataset, predictions)
    metrics = evaluate_boxes([(i.image_id, i.truth) for i in pairs.images], [], label_map)
    page = Path(
        write_report(str(tmp_path / "r.html"), dataset=dataset, predictions=predictions, metrics=metrics)
    ).read_text()
    assert page.count("<strong>n/a</strong>") == 7
    assert "-1.000" not in page
    assert "nothing to draw" in page
    assert "no truth" in pr_curve_svg(metrics)


def test_the_page_stays_small_and_shows_the_stored_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (1500, 2400, 3), np.uint8))
    encoded = io.BytesIO()
    noise.save(encoded, "JPEG", quality=95)
    uri = thumbnail(encoded.getvalue(), 90_000)
    assert uri is not None
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 110_000
    assert thumbnail(b"not an image", 90_000) is None

    made = make_evaluated(tmp_path / "dataset", num_train=2, num_val=30)
    pairs = pair(made.dataset, made.predictions, ["val"])
    metrics = evaluate_boxes(
        [(i.image_id, i.truth) for i in pairs.images], [(i.image_id, i.found) for i in pairs.images], pairs.label_map
    )
    path = write_report(
        str(tmp_path / "r.html"),
        dataset=made.dataset,
        predictions=made.predictions,
        metrics=metrics,
        history=HISTORY,
        splits=["val"],
    )
    page = Path(path).read_text()
    assert len(page) < 3_000_000
    assert page.count('class="card picture"') == 24
    assert page.count("<em>worst</em>") == 8


def boxes(*rows: tuple[float, float, float, float], scores: list[float] | None = None) -> Annotations:
    return Annotations.from_boxes(
        np.array(rows, np.float64), np.ones(len(rows), np.int64), scores=None if scores is None else np.array(scores)
    )


def image_of(truth: Annotations, found: Annotations, name: str = "a") -> PairedImage:
    return PairedImage(image_id=name, coco_image_id=1, width=200, height=200, truth=truth, found=found)


def matched(images: list[PairedImage], threshold: float) -> list[Match]:
    label_map = LabelMap.from_json([{"id": 1, "name": "cell"}])
    named = [replace(image, image_id=f"{at}") for at, image in enumerate(images)]
    truths, found = ([(i.image_id, getattr(i, part)) for i in named] for part in ("truth", "found"))
    return matches_of(match_images(truths, found, label_map), named, threshold)


def test_gallery_counts_as_the_metrics_do() -> None:
    truth = boxes((0, 0, 10, 10), (50, 50, 20, 20), (100, 100, 50, 50))
    truth.iscrowd[2] = True
    found = boxes((0, 0, 10, 10), (1, 0, 10, 10), (110, 110, 10, 10), (50, 50, 20, 20), scores=[0.9, 0.8, 0.7, 0.2])
    image = image_of(truth, found)
    # Second hit on the same object is false, the one in the crowd is ignored, the last is below the threshold.
    assert matched([image], 0.5)[0].errors(image) == (1, 1, 1)
    assert matched([image], 0.1)[0].errors(image) == (2, 0, 1)


def test_gallery_shows_chance_and_the_worst() -> None:
    good = image_of(boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10), scores=[0.9]))
    poor = image_of(boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10), (50, 0, 10, 10), scores=[0.9, 0.8]))
    bad = image_of(boxes((0, 0, 10, 10)), boxes((50, 0, 10, 10), scores=[0.9]))
    images = [good] * 20 + [poor] * 10 + [bad] * 10
    matches = matched(images, 0.5)
    chosen = choose(images, matches, 12)
    assert [why for _, why in chosen] == ["random"] * 8 + ["worst"] * 4
    assert all(at >= 30 for at, why in chosen if why == "worst")
    assert len({at for at, _ in chosen}) == 12
    assert choose(images, matches, 12) == chosen
    perfect = [good] * 5
    assert sorted(choose(perfect, matched(perfect, 0.5), 24)) == [(at, "random") for at in range(5)]


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 1), (0.034, 0.04), (1, 1), (7.2, 8), (101, 150), (float("nan"), 1), (960, 1000)]
)
def test_axes_end_on_round_numbers(value: float, expected: float) -> None:
    assert charts.nice_ceiling(value) == pytest.approx(expected)


def test_charts_place_their_marks() -> None:
    line = charts.Series(name="up", points=((1, 0.0), (2, 0.5), (3, 1.0)), colour=1)
    svg = charts.line_chart([line], title="t", x_label="x", y_label="y", y_range=(0, 1))
    (path,) = re.findall(r'<path class="line c1" d="([^"]+)"', svg)
    xs, ys = zip(*re.findall(r"[ML]([\d.]+) ([\d.]+)", path), strict=True)
    assert [float(x) for x in xs] == sorted(float(x) for x in xs)
    assert [float(y) for y in ys] == sorted((float(y) for y in ys), reverse=True)
    assert svg.count('class="strip"') == 3
    assert charts.line_chart([], title="t", x_label="x", y_label="y") == ""
    assert charts.histogram([("a", 0)], title="t", x_label="x", y_label="y") == ""


def test_the_ledger_has_every_fate_and_its_sum(tmp_path: Path) -> None:
    made = make_evaluated(tmp_path / "d")
    pairs = pair(made.dataset, made.predictions)
    metrics = evaluate_boxes(
        [(i.image_id, i.truth) for i in pairs.images],
        [(i.image_id, i.found) for i in pairs.images],
        made.dataset.label_map,
    )
    page = Path(
        write_report(str(tmp_path / "r.html"), dataset=made.dataset, predictions=made.predictions, metrics=metrics)
    ).read_text()
    table = page[page.index('id="ledger"') :].partition("</table>")[0]
    heads = re.findall(r"<th[^>]*>([^<]+)", table)[:6]
    assert heads == ["imported", "mended", "dropped", "quarantined", "sum", "in the source"]
    images, objects = made.dataset.num_images, made.dataset.num_objects
    cells = [int(cell.replace(",", "")) for cell in re.findall(r"<td[^>]*>([\d,]+)", table)]
    assert cells == [images, 0, 0, 0, images, images, objects, 0, 1, 0, objects + 1, objects + 1]
