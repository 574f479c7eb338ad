"""What one prediction set may hold: the predictions of one model with one choice of settings."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.prediction_makers import check_made_alike, differences

SETTINGS = {"score_threshold": 0.05, "scales": [1.0, 1.5], "splits": ["train"], "task_images": 8}


def made(digest: str = "a" * 64, **settings: Any) -> dict[str, Any]:
    return {"model": {"uri": f"models/{digest[0]}", "digest": digest}, "settings": SETTINGS | settings}


def test_other_splits_in_other_tasks_are_of_one_set():
    assert differences(made(), made(splits=None, task_images=64)) == []


def test_another_model_or_setting_is_named_with_both_values_and_the_way_out():
    with pytest.raises(ValueError) as raised:
        check_made_alike("data@labels/x:0", made(), made("b" * 64, score_threshold=0.3, tile=640))
    for part in (
        "data@labels/x:0 ",
        "by the model models/a (digest aaaaaaaaaaaa), these by the model models/b (digest bbbbbbbbbbbb)",
        "with score_threshold=0.05, these with score_threshold=0.3",
        "without tile, these with tile=640",
        "--out",
    ):
        assert part in str(raised.value)


def test_what_several_models_made_together_is_no_models_set():
    assert differences({"fused": [], "settings": SETTINGS}, made()) == [
        "by no model alone, these by the model models/a (digest aaaaaaaaaaaa)"
    ]
