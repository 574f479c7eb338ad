"""What a training run is told: checks, JSON and the digest that names it."""

import json

import pytest

from workers.train_config import AugmentConfig, TrainConfig


def config(**changes):
    return TrainConfig(**({"dataset": "d", "out": "o"} | changes))


def test_json_and_back():
    original = config(detector_options={"head_depth": 1}, augment=AugmentConfig(scale=(0.5, 2.0)), val_split=None)
    assert TrainConfig.from_json(json.loads(json.dumps(original.to_json()))) == original


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("workers", 0),
        ("batch_size", -1),
        ("lr", 0.0),
        ("ema", 1.0),
        ("optimizer", "adam"),
        ("precision", "fp16"),
        ("cpus_per_worker", 0),
        ("clip_norm", 0.0),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
        ("max_failures", -1),
        ("momentum", 1.5),
        ("final_lr_ratio", float("nan")),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        config(**{name: value})


def test_the_digest_is_of_what_decides_the_result():
    base = config().job_digest(dataset="a")
    assert base == config(out="elsewhere", cpus_per_worker=3, cache_mb=7).job_digest(dataset="a")
    assert base == config(dataset="moved").job_digest(dataset="a")
    assert base != config().job_digest(dataset="b")
    assert base != config(augment=AugmentConfig(hue=0.3)).job_digest(dataset="a")


def test_augmentation_that_came_later_leaves_the_digests_of_older_runs():
    assert config().job_digest(dataset="a") == "20197637c440bfb74b0d9e638c79ab644edb5ba3419523ea6c7d406ce1878a7e"
    for augment in (AugmentConfig(rotation=5.0), AugmentConfig(copy_paste=0.5)):
        assert config(augment=augment).job_digest(dataset="a") != config().job_digest(dataset="a")
