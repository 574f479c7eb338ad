"""What the options of ``boxmill label`` ask for, and what is told where they ask for what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.cli import console
from flows.config import LabelConfig
from pipelines.records import Category, LabelMap
from tests.integration.labelling import make_model
from tests.unit.flows.test_cli import run


@pytest.fixture
def asked(monkeypatch) -> list[LabelConfig]:
    """The configs that commands would run with."""
    configs: list[LabelConfig] = []

    def executed(step: str, config: LabelConfig, **_: Any) -> dict[str, Any]:
        configs.append(config)
        return {"reference": "d@labels/p:0", "num_images": 3, "num_quarantined": 0}

    monkeypatch.setattr("flows.cli.stages.execute", executed)
    return configs


def test_thresholds_and_pictures_labelled_once_are_settings_like_others(capfd, asked, tmp_path):
    more = tmp_path / "more.json"
    more.write_text('{"near_duplicates": true, "near_duplicate_bits": 3}')
    run(capfd, "label", "d", "--model", "m")
    run(capfd, "label", "d", "--model", "m", "--thresholds", "t.json", "--near-duplicates")
    run(capfd, "label", "d", "--model", "m", "--config", str(more))
    told = [(config.thresholds, config.near_duplicates, config.near_duplicate_bits) for config in asked]
    assert told == [(None, False, 6), ("t.json", True, 6), (None, True, 3)]


def test_a_class_that_the_model_does_not_know_is_told_with_the_file_and_those_it_knows(capfd, tmp_path: Path):
    model = make_model(tmp_path / "m", LabelMap(categories=(Category(category_id=1, name="cat"),)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"never read")
    thresholds = tmp_path / "t.json"
    arguments = ["label", str(tmp_path / "in"), "--model", model, "--out", str(tmp_path / "o")]
    thresholds.write_text('{"cat": 0.25, "dog": 0.5}')
    code, _, err = run(capfd, *arguments, "--thresholds", str(thresholds), "--no-prefect")
    told = " ".join(err.split())
    assert (
        code == console.BAD_INPUT
        and f"{thresholds} names 'dog', a class that the model" in told
        and "it has cat" in told
    )
    code, _, err = run(capfd, *arguments, "--thresholds", str(tmp_path / "none.json"), "--no-prefect")
    assert code == console.BAD_INPUT and "none.json" in err
