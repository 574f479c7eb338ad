"""The evaluation as Markdown: every number is in its place, and hostile names stay text."""

from __future__ import annotations

from pathlib import Path

from pipelines.records import LabelMap
from pipelines.report.markdown import to_markdown
from tests.evaluated import guessed_rows, make_evaluated, synthetic_records, write_dataset, write_guesses
from workers.evaluate import evaluate


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the table below a heading, without its head."""
    lines = text.partition(heading)[2].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_numbers_classes_errors_and_comparison(tmp_path: Path) -> None:
    made = make_evaluated(tmp_path / "d", num_train=0, num_val=8)
    found = evaluate(
        made.dataset.reference,
        made.predictions.reference,
        by=["split"],
        compare_ref=made.predictions.reference,
        resamples=50,
        markdown_uri=str(tmp_path / "r.md"),
    )
    text = (tmp_path / "r.md").read_text()
    assert found.analysis is not None
    assert found.analysis.intervals is not None
    table = {row[0]: row[1:] for row in rows(text, "· val\n")}
    between = found.analysis.intervals.overall["AP"]
    assert table["AP"] == [f"{found.stats['AP']:.3f}", f"{between.low:.3f} to {between.high:.3f}"]
    assert table["AP_large"][0] == ("n/a" if found.stats["AP_large"] == -1 else f"{found.stats['AP_large']:.3f}")
    classes = {row[0]: row[1:] for row in rows(text, "## Classes")}
    assert list(classes) == list(made.dataset.label_map.names)
    assert classes["star"][0] == f"{found.metrics.per_class['star'].AP:.3f}"
    errors = {row[0]: int(row[1]) for row in rows(text, "## Errors")}
    assert errors == dict(found.analysis.errors.overall.counts)
    compared = rows(text.partition("## Compared with")[2], "\n")
    # With itself: no difference, and nothing is as sure as that.
    assert [row[3:] for row in compared] == [["+0.000", "0.000 to 0.000", "1"]] * 2


def test_hostile_names_stay_in_their_cells(tmp_path: Path) -> None:
    records, label_map = synthetic_records(0, 2)
    hostile = LabelMap.from_json([{**c, "name": f"a|b<img src=x>\n`{c['name']}"} for c in label_map.to_json()])
    dataset = write_dataset(tmp_path / "d", records, hostile)
    predictions = write_guesses(dataset, guessed_rows(records), hostile)
    found = evaluate(dataset.reference, predictions.reference).to_json()
    text = to_markdown(found, title="<b>x", notes=["<script>"], gates=["AP is 0.1, wanted 0.5 or more"])
    assert "<" not in text
    assert "- AP is 0.1, wanted 0.5 or more" in text
    (star,) = [line for line in text.splitlines() if "star" in line]
    assert star.startswith(r"| a\|b&lt;img src=x&gt; \`star | ")
