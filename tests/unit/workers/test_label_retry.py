"""What failed is found and tried again, as often as it is asked for; the model is one whose bad images a test names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import open_predictions
from pipelines.commits import DatasetVersion
from pipelines.jobs import Job
from pipelines.records import Annotations
from pipelines.routing import route
from tests.making import LABEL_MAP, commit_records, encoded, record
from workers import label_retry
from workers.label import _commit, plan_facts
from workers.label_account import add_up
from workers.label_config import LabelConfig, PredictionSetRef
from workers.label_inputs import DecodedImage
from workers.label_listing import LabelInput, open_input
from workers.label_plan import LabelPlan, ModelFacts, find_or_check, make_plan
from workers.label_readers import Failure, RawImage
from workers.label_run import make_label_job
from workers.label_tasks import read_task, save_tasks
from workers.label_write import Outcome, write_task

MODEL = ModelFacts(
    uri="model", digest="a" * 64, categories=tuple(LABEL_MAP.to_json()), spec={}, preprocessing={"size": 320}
)
CUT_OFF = Failure(stage="decode", error_class="BadImage", error="cut off")


class Model:
    """Stands for Ray and a detector: finds one thing in every image but the bad ones.

    Attributes:
        bad: images that cannot be decoded.
        stops_after: tasks that are done of each call.
        seen: every image that it was shown, in order.
    """

    def __init__(self) -> None:
        self.bad: Collection[str] = ()
        self.stops_after: int | None = None
        self.seen: list[str] = []

    def run(self, pending: Sequence[int], config: LabelConfig, source: LabelInput, plan: LabelPlan, *rest: Any) -> None:
        label_job, job = make_label_job(config, source, plan, MODEL, device="cpu"), Job(plan.root, plan.plan_id)
        for task_id in list(pending)[: self.stops_after]:
            task = read_task(label_job, job, task_id)
            outcomes = [self._look(place, name) for place, name in enumerate(task["image_id"].to_pylist())]
            job.finish(task_id, write_task(label_job, task_id, task, outcomes, {}))
        if self.stops_after is not None:
            raise ConnectionError("the cluster is gone")

    def _look(self, place: int, image_id: str) -> Outcome:
        self.seen.append(image_id)
        decoded = DecodedImage(raw=RawImage(place=place, offset=0, length=1), size=(16, 24))
        if image_id in self.bad:
            return Outcome(decoded=replace(decoded, failure=CUT_OFF), annotations=None)
        found = Annotations.from_boxes(np.array([[1.0, 1.0, 4.0, 4.0]]), np.array([0]))
        return Outcome(decoded=decoded, annotations=replace(found, scores=np.array([0.9])))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    model = Model()
    monkeypatch.setattr(label_retry, "run_plan", model.run)
    return model


@pytest.fixture
def config(tmp_path: Path) -> LabelConfig:
    """Four images of ``train``, three of ``val``."""
    records = [record(i, split="train" if i < 4 else "val") for i in range(7)]
    commit_records(tmp_path / "data", records, plan_id="p")
    return LabelConfig(input=str(tmp_path / "data"), model="model", out="found", task_images=2)


def planned(config: LabelConfig) -> tuple[LabelInput, LabelPlan]:
    source = open_input(config)
    return source, make_plan(config, source, MODEL)


def label(config: LabelConfig, model: Model) -> DatasetVersion:
    source, plan = planned(config)
    assert find_or_check(source, plan, MODEL) is None
    job = Job(plan.root, plan.plan_id)
    save_tasks(job, source, plan, plan_facts(source, plan, MODEL))
    model.run(job.missing(), config, source, plan)
    return _commit(source, plan, MODEL, add_up(job.each_receipt()), seconds=0.0)


def retry(config: LabelConfig) -> PredictionSetRef:
    config = replace(config, retry="quarantined")
    return label_retry.retry(config, *planned(config), MODEL, None)


def failed(reference: str) -> list[str]:
    return [image_id for image_id, _ in open_predictions(reference).errors()]


def test_what_fails_again_can_be_tried_again_until_it_is_mended(config, model):
    model.bad = {"a/1.jpg", "a/5.jpg"}
    first = label(config, model)
    for _ in range(2):
        model.seen.clear()
        again = retry(config)
        assert sorted(model.seen) == ["a/1.jpg", "a/5.jpg"], "asked for twice, it is done twice"
        assert again.reference == first.reference and again.num_quarantined == 2 and again.found
    model.bad = {"a/5.jpg"}
    assert failed(retry(config).reference) == ["a/5.jpg"]
    model.bad, model.seen = (), []
    mended = retry(config)
    assert model.seen == ["a/5.jpg"] and not failed(mended.reference) and not mended.found
    assert (mended.num_images, mended.num_objects) == (7, 7)


def test_a_retry_that_was_cut_off_goes_on_where_it_was(config, model):
    model.bad = {"a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.jpg"}
    label(config, model)
    assert len(failed(retry(config).reference)) == 4
    model.bad, model.seen, model.stops_after = {"a/0.jpg", "a/1.jpg"}, [], 1
    with pytest.raises(ConnectionError):
        retry(config)
    assert model.seen == ["a/0.jpg", "a/1.jpg"]
    model.stops_after, model.seen = None, []
    assert failed(retry(config).reference) == ["a/0.jpg", "a/1.jpg"]
    assert model.seen == ["a/2.jpg", "a/3.jpg"]


def test_a_set_of_two_splits_is_tried_again_as_a_whole_or_by_split(config, model):
    model.bad = {"a/1.jpg", "a/2.jpg", "a/5.jpg"}
    for split in ("train", "val"):
        label(replace(config, splits=(split,)), model)
    model.bad, model.seen = {"a/2.jpg"}, []
    assert failed(retry(replace(config, splits=("train",))).reference) == ["a/2.jpg", "a/5.jpg"]
    assert model.seen == ["a/1.jpg", "a/2.jpg"], "of the other split nothing is read"
    model.bad, model.seen = (), []
    mended = retry(config)
    assert not failed(mended.reference) and model.seen == ["a/2.jpg", "a/5.jpg"]
    with pytest.raises(ValueError, match=r"no predictions of .* with these settings"):
        retry(replace(config, score_threshold=0.5))


def test_a_set_takes_another_split_but_nothing_of_another_model_or_setting(config, model):
    train, val = (replace(config, splits=(split,)) for split in ("train", "val"))
    label(train, model)
    source, plan = planned(replace(val, score_threshold=0.3))
    with pytest.raises(
        ValueError, match=r"@labels/found:1 .*score_threshold=0\.05, these .*score_threshold=0\.3.*--out"
    ):
        find_or_check(source, plan, MODEL)
    with pytest.raises(ValueError, match=r"\(digest aaaaaaaaaaaa\), these .*\(digest bbbbbbbbbbbb\)"):
        find_or_check(*planned(val), replace(MODEL, digest="b" * 64))
    assert label(val, model).num_images == 7


def test_routed_predictions_of_an_archive_are_not_taken_for_the_set_itself(tmp_path, model):
    (tmp_path / "images").mkdir()
    for name in ("good", "bad"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(encoded())
    config = LabelConfig(input=str(tmp_path / "images"), model="model", out=str(tmp_path / "out"))
    model.bad = {"bad.jpg"}
    first = label(config, model)
    sets = route(first.reference, name="first-of-all").sets
    assert sets["accept"].num_images == 1, "it holds nothing that failed"
    model.bad = ()
    mended = retry(config)
    assert not failed(mended.reference) and mended.reference.rpartition(":")[0] == first.reference.rpartition(":")[0]
