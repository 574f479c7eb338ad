"""What a flow takes from its cache is checked against what lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.tasks import dataset_is_there, may_succeed_later, predictions_are_there, verified
from tests.evaluated import make_evaluated


class Cached:
    """A task that remembers: its cache says ``old`` until it is told to refresh."""

    def __init__(self) -> None:
        self.refreshed = 0

    def __call__(self, config: str) -> dict[str, Any]:
        return {"uri": f"{config}/{'new' if self.refreshed else 'old'}"}

    def with_options(self, *, refresh_cache: bool) -> Cached:
        self.refreshed += refresh_cache
        return self


def test_a_cached_reference_that_leads_nowhere_is_made_again():
    task: Any = Cached()
    assert verified(task, "m", lambda _: True) == {"uri": "m/old"} and task.refreshed == 0
    assert verified(task, "m", lambda result: result["uri"] != "m/old") == {"uri": "m/new"} and task.refreshed == 1


def test_predictions_are_there_with_their_digest_and_their_results_file(tmp_path: Path):
    made = make_evaluated(tmp_path / "dataset").predictions
    result = {"reference": made.reference, "digest": made.digest, "coco_results_uri": None}
    assert dataset_is_there(result) and predictions_are_there(result)
    assert not predictions_are_there(result | {"digest": "0" * 64})
    assert not predictions_are_there(result | {"reference": str(tmp_path / "gone")})
    results = tmp_path / "results.json"
    assert not predictions_are_there(result | {"coco_results_uri": str(results)})
    results.write_text("[]")
    assert predictions_are_there(result | {"coco_results_uri": str(results)})
    assert predictions_are_there(result | {"others": [result]})
    assert not predictions_are_there(result | {"others": [result, result | {"digest": "0" * 64}]})


class Ended:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def result(self, *, raise_on_failure: bool) -> BaseException | None:
        return self.error


def test_only_what_may_go_better_is_tried_again():
    for error in (ConnectionError("store"), RuntimeError("a worker died")):
        assert may_succeed_later(Ended(error)), error
    for error in (None, ValueError("no such split"), FileNotFoundError("x"), KeyError("a mistake of ours")):
        assert not may_succeed_later(Ended(error)), error
