"""Configs refuse what they do not know, and say the same as the workers' dataclasses."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields

import pytest
from pydantic import ValidationError

from flows.config import EvaluateConfig, LabelConfig, LifecycleConfig, TrainConfig, explain
from flows.steps import config_digest
from workers import label_config, train_config


def test_train_config_gives_the_workers_config_with_its_defaults():
    assert TrainConfig(dataset="d", out="o").to_worker() == train_config.TrainConfig(dataset="d", out="o")


def test_label_config_gives_the_workers_config_with_its_defaults():
    config = LabelConfig(input="d", model="m", splits=["val"]).to_worker()
    assert config == label_config.LabelConfig(input="d", model="m", splits=("val",))


def test_a_file_of_thresholds_stands_for_its_numbers(tmp_path):
    path = tmp_path / "t.json"
    config = LabelConfig(input="d", model="m", thresholds=str(path), class_thresholds={"dog": 0.5})
    digests = set()
    for text in ('{"cat": 0.25, "dog": 0.3}', '{"cat": 0.75}'):
        path.write_text(text)
        read = config.with_thresholds_read()
        assert read.thresholds is None and read.class_thresholds["dog"] == 0.5
        digests.add(config_digest("label", read))
    assert read.class_thresholds == {"cat": 0.75, "dog": 0.5} and len(digests) == 2
    assert config.to_worker().thresholds == str(path)


@pytest.mark.parametrize(
    ("model", "dataclass_type"),
    [(TrainConfig, train_config.TrainConfig), (LabelConfig, label_config.LabelConfig)],
)
def test_every_setting_of_a_worker_can_be_given(model, dataclass_type):
    assert {f.name for f in fields(dataclass_type)} == set(model.model_fields) - {"more_models"}
    for field in fields(dataclass_type):
        if field.default is not MISSING:
            assert model.model_fields[field.name].default == field.default, field.name


def test_nested_settings_are_given_by_name():
    config = TrainConfig(dataset="d", out="o", augment={"hue": 0.2, "scale": [0.5, 2]}).to_worker()
    assert config.augment == train_config.AugmentConfig(hue=0.2, scale=(0.5, 2.0))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epochz": 3}, "unknown setting 'epochz'"),
        ({"augment": {"flip": 1}}, "unknown setting 'augment.flip'"),
        ({"epochs": "many"}, "epochs='many'"),
        ({"optimizer": "lion"}, "optimizer='lion'"),
    ],
)
def test_what_is_wrong_is_named_with_its_whole_key(values, said):
    with pytest.raises(ValidationError) as error:
        TrainConfig(dataset="d", out="o", **values)
    assert said in explain(error.value)


def test_a_needed_setting_is_named():
    with pytest.raises(ValidationError) as error:
        TrainConfig(out="o")
    assert explain(error.value) == "TrainConfig: dataset is needed"


def test_the_workers_own_checks_still_hold():
    with pytest.raises(ValueError, match="ema=2"):
        TrainConfig(dataset="d", out="o", ema=2.0).to_worker()


def test_descriptions_of_the_form_come_from_the_docstring():
    properties = TrainConfig.model_json_schema()["properties"]
    assert properties["image_size"]["description"] == "the longer side in model pixels."
    # Continued on a second line of the docstring.
    described = LabelConfig.model_json_schema()["properties"]["precision"]["description"]
    assert described.endswith("continues a run with the same numbers.")


def test_configs_survive_json():
    config = LifecycleConfig(out="o", train={"epochs": 3, "augment": {"hue": 0.1}}, label={"score_threshold": 0.2})
    assert LifecycleConfig.model_validate_json(config.model_dump_json()) == config


def test_the_lifecycle_hands_each_stage_its_settings():
    config = LifecycleConfig(out="s3://b/run/", train={"epochs": 3}, label={"max_detections": 7}, ray_address="auto")
    assert config.ingest_config().dataset == "s3://b/run/dataset"
    train = config.train_config("d@labels/gt:1", config.place("models/x"))
    assert (train.epochs, train.out, train.dataset) == (3, "s3://b/run/models/x", "d@labels/gt:1")
    label = config.label_config("d@labels/gt:1", "m")
    assert (label.max_detections, label.splits, label.model) == (7, ("val",), "m")
    assert {c.ray_address for c in (config.ingest_config(), train, label)} == {"auto"}
    evaluate = config.evaluate_config("d", "p", baseline={"AP": 0.0})
    assert evaluate == EvaluateConfig(dataset="d", predictions="p", splits=("val",), baseline={"AP": 0.0})


def test_a_digest_is_of_the_work_and_not_of_where_it_runs():
    here, there = (TrainConfig(dataset="d", out="o", ray_address=a) for a in (None, "http://head:8265"))
    assert config_digest("train", here) == config_digest("train", there)
    assert config_digest("train", here) != config_digest("train", here.model_copy(update={"epochs": 2}))
    assert config_digest("train", here) != config_digest("label", here)
    assert config_digest("train", here, dataset="1") != config_digest("train", here, dataset="2")


def test_asdict_of_a_built_config_is_what_was_given():
    given = TrainConfig(dataset="d", out="o", detector_options={"head_depth": 3})
    assert asdict(given.to_worker())["detector_options"] == {"head_depth": 3}
