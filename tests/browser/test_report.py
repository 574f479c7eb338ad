"""The report in a real browser: it draws everything, runs its script without an error and asks for nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluated import BASELINE, HISTORY, guessed_rows, make_evaluated, write_guesses
from workers.evaluate import evaluate

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    made = make_evaluated(folder / "dataset")
    path = folder / "report.html"
    better = [row for row in guessed_rows(list(made.dataset.records()), skill=0.97, seed=3) if row.split == "val"]
    other = write_guesses(made.dataset, better, made.dataset.label_map, label_set="better")
    evaluate(
        made.dataset.reference,
        made.predictions.reference,
        ["val"],
        str(path),
        HISTORY,
        baseline=BASELINE,
        title="Shapes & <friends>",
        by=["split", "format"],
        compare_ref=other.reference,
        resamples=200,
    )
    return path


def browse(page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    return subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--enable-logging=stderr",
            "--hide-scrollbars",
            f"--user-data-dir={page.parent / 'browser'}",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


class Elements(HTMLParser):
    """(tag, attributes) of every element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of_class(self, tag: str, name: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.found if t == tag and name in (a.get("class") or "").split()]


def test_everything_is_drawn_and_the_console_is_silent(report: Path) -> None:
    shown = browse(report, "--dump-dom")
    assert not re.findall(r"CONSOLE.*", shown.stderr)
    page = Elements(shown.stdout)
    labels = {a.get("aria-label") for a in page.of_class("svg", "chart")}
    assert labels == {
        "Precision over recall",
        "Training loss by epoch",
        "Validation AP by epoch",
        "Kinds of error",
        "Confusion matrix",
        "Calibration of scores",
        "Confidence intervals of AP",
        "Difference of AP by class",
        "Objects by class and size",
        "Objects an image",
        "Box sizes",
    }
    headlines = {a["data-stat"] for a in page.of_class("div", "headline")}
    assert {"AP", "AP50", "AP75"} <= headlines
    assert "untrained 0.004" in shown.stdout
    assert "<title>Shapes &amp; &lt;friends&gt;</title>" in shown.stdout
    focused = page.of_class("figure", "focused")
    assert len(page.of_class("figure", "picture")) == 12 + len(focused)
    assert len(focused) >= 4
    # Each picture of a mistake is about one truth, one detection, or one of each.
    assert len(focused) <= len(page.of_class("g", "focus")) <= 2 * len(focused)
    assert len(page.of_class("g", "mark")) > 100
    assert len(page.of_class("path", "mask")) > 30
    # Bars of errors lead to examples that are there.
    ids = {a["id"] for _, a in page.found if "id" in a}
    links = [a["href"] for tag, a in page.found if tag == "a" and (a.get("href") or "").startswith("#mistakes-")]
    assert links
    assert {(link or "#")[1:] for link in links} <= ids
    # A square for each pair of the six classes and background.
    assert len(page.of_class("rect", "cell")) == 49
    assert len(page.of_class("span", "interval")) == 2
    sections = [a.get("id") for tag, a in page.found if tag == "section"]
    assert sections == [
        *("curves", "errors", "comparison", "classes", "slices", "gallery"),
        *("dataset", "ledger", "provenance"),
    ]


def test_it_asks_nothing_of_the_network(report: Path) -> None:
    page = Elements(report.read_text())
    for tag, attributes in page.found:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert "@import" not in report.read_text()
    assert not [a for tag, a in page.found if tag in ("iframe", "object", "embed", "form", "base")]


def test_tips_and_sorting_work(report: Path) -> None:
    """Drive the page's own script from a second one, in the browser."""
    probe = """<script>
      const bar = document.querySelector("#dataset .bar"), box = bar.getBoundingClientRect();
      bar.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: box.x, clientY: box.y}));
      const tip = document.getElementById("tip");
      document.body.dataset.tipShown = tip.hidden ? "" : tip.textContent;
      document.querySelectorAll("#classes .sortable thead th")[1].click();
      const rows = [...document.querySelectorAll("#classes .sortable tbody tr")];
      document.body.dataset.order = rows.map(r => r.cells[1].textContent).join(" ");
    </script></body>"""
    driven = report.with_name("driven.html")
    driven.write_text(report.read_text().replace("</body>", probe))
    body = next(a for tag, a in Elements(browse(driven, "--dump-dom").stdout).found if tag == "body")
    assert re.fullmatch(r"\w+, (small|medium|large): \d+ of \d+", body["data-tip-shown"] or "")
    order = [float(value) for value in (body["data-order"] or "").split()]
    assert len(order) == 6
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (1280, 0), (420, 1)], ids=["desktop", "dark", "narrow"])
def test_it_fits_the_window(report: Path, width: int, scheme: int) -> None:
    """Nothing sticks out sideways, and the two colour schemes differ."""
    probe = (
        "<script>document.body.dataset.overflow = document.documentElement.scrollWidth - innerWidth;</script></body>"
    )
    driven = report.with_name(f"fit-{width}.html")
    driven.write_text(report.read_text().replace("</body>", probe))
    window = (f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}")
    body = next(a for tag, a in Elements(browse(driven, "--dump-dom", *window).stdout).found if tag == "body")
    assert int(body["data-overflow"] or "1") <= 0
    shot = report.with_name(f"shot-{width}-{scheme}.png")
    browse(report, f"--screenshot={shot}", *window)
    corner = Image.open(shot).convert("L").getpixel((width - 4, 890))
    assert isinstance(corner, int)
    assert (corner < 60) if scheme == 0 else (corner > 200)
