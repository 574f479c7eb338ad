"""What a user did wrong is told before Ray starts."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import detectors
from pipelines.commits import commit_images, commit_labels
from pipelines.records import Annotations, Category, ImageRecord, LabelMap
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.storage import Store
from pipelines.versions import DatasetNotFound, open_dataset
from workers.train import AugmentConfig, TrainConfig, prepare, train
from workers.train_loop import build_detector

LABELS = LabelMap(categories=(Category(category_id=4, name="cat"), Category(category_id=9, name="dog")))
BOX = Annotations.from_boxes(np.array([[1, 1, 5, 5]]), np.array([4]))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("Ray was started for a run that cannot be")

    # Not by its dotted name: `workers.train` is the function.
    monkeypatch.setattr(sys.modules["workers.train"], "ray_session", refuse)


@pytest.fixture
def dataset(tmp_path):
    """Four training images with a box each, two validation images, and a split without objects."""
    splits = ["train"] * 4 + ["val"] * 2 + ["blank"] * 2
    records = [
        ImageRecord(
            image_id=f"{i}.jpg",
            image=b"bytes %d" % i,
            format="jpeg",
            width=8,
            height=8,
            sha256="",
            source="here",
            split=split,
            coco_image_id=i,
            annotations=Annotations.empty() if split == "blank" else BOX,
        )
        for i, split in enumerate(splits)
    ]
    store = Store.open(tmp_path / "dataset")
    images = write_image_shard(store, records)
    labels = write_label_shard(store, "gt", images.path, label_rows(records))
    version = commit_images(store.uri, [images], plan_id="p")
    return commit_labels(
        store.uri, "gt", [labels], plan_id="p", label_map=LABELS, images_version=version, ledger={}
    ).reference


def attempt(dataset, tmp_path, **changes):
    return train(TrainConfig(dataset=dataset, out=str(tmp_path / "model"), image_size=64, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_split": "training"}, r"no split 'training' in .*; it has 'blank', 'train', 'val'.*--val-split none"),
        ({"val_split": "test"}, "no split 'test'"),
        ({"train_split": "blank"}, "split 'blank' of .* has no objects"),
        ({"workers": 3}, r"split 'val' of .* has 2 image\(s\), too few for 3 workers"),
        ({"detector": "retinanet_lite"}, "no detector 'retinanet_lite'; did you mean retinanet_lite0"),
        ({"detector_options": {"head_dept": 1}}, "no option 'head_dept'; did you mean head_depth"),
        ({"augment": AugmentConfig(scale=(1.5, 0.5))}, r"scale \(1.5, 0.5\) must be \(low, high\)"),
        ({"pretrained": "coco"}, r"no coco weights for retinanet_lite0.* known are: imagenet \(tf_eff.* Give the path"),
    ],
)
def test_a_bad_setting_is_named_with_the_way_out(dataset, tmp_path, changes, message):
    if changes.get("detector") == "retinanet_lite":
        changes = changes | {"pretrained_backbone": None}
    with pytest.raises(ValueError, match=message):
        attempt(dataset, tmp_path, **changes)


def test_a_missing_dataset_is_named_with_a_near_one(dataset, tmp_path):
    with pytest.raises(DatasetNotFound, match=r"did you mean .*/dataset\?"):
        attempt(str(tmp_path / "datasett"), tmp_path)


def test_a_model_of_other_classes_starts_a_run_as_far_as_they_are_the_same(dataset, tmp_path):
    """Its options are the run's, its classes are found by name, and the rest is said before anything starts."""
    detector = detectors.create(
        "retinanet_lite0", num_classes=2, image_size=64, fpn_channels=8, head_channels=8, head_depth=1
    )
    classes = [{"id": 1, "name": "dog"}, {"id": 2, "name": "bird"}]
    digest = detectors.save(detector, None, tmp_path / "birds", categories=classes)
    config = TrainConfig(dataset=dataset, out=str(tmp_path / "model"), image_size=64, init_from=str(tmp_path / "birds"))
    job = prepare(config, open_dataset(dataset))
    assert [category["name"] for category in job.categories] == ["cat", "dog"]
    assert job.detector_options["head_channels"] == 8
    loaded = job.loaded_weights
    assert (loaded["classes_copied"], loaded["classes_new"]) == (["dog"], ["cat"])
    assert (loaded["sha256"], loaded["source"], loaded["untouched"]) == (digest, "birds", 0)
    started = build_detector(job, pretrained=True)
    rows = started.head.class_logits.weight.view(9, 2, 8, 3, 3)
    assert torch.equal(rows[:, 1], detector.head.class_logits.weight.view(9, 2, 8, 3, 3)[:, 0])


def test_two_sets_of_weights_are_one_too_many(dataset, tmp_path):
    with pytest.raises(ValueError, match="pretrained=coco and init_from=m are two sets of weights"):
        attempt(dataset, tmp_path, pretrained="coco", init_from="m")


def test_the_settings_can_be_read_without_torch_or_ray():
    code = "import sys, workers.train_config; print(bool({'torch', 'ray', 'pyarrow'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
