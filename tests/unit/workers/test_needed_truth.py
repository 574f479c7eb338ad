"""A detector of masks or keypoints and a dataset that has them, lacks them, or has some."""

import logging
from dataclasses import replace

import pytest

import detectors
from detectors.structures import Target
from pipelines.records import LabelMap
from pipelines.versions import open_dataset
from tests.integration.recalling import NAME
from tests.scenes import LABELS, box_object, commit, mask_object, polygon_object, pose_object, record
from workers.needed_truth import count_truth, options_of_truth
from workers.train import AugmentConfig, TrainConfig, prepare

TINY = {"fpn_channels": 8, "box_channels": 8, "mask_channels": 8, "mask_convs": 1}


def dataset_of(folder, train, val=(), label_map=LABELS):
    records = [record(f"train/{n}.jpg", objects, seed=n) for n, objects in enumerate(train)]
    records += [record(f"val/{n}.jpg", objects, seed=9 + n, split="val") for n, objects in enumerate(val)]
    return open_dataset(commit(folder / "dataset", records, label_map).reference)


def prepared(dataset, folder, **changes):
    config = {
        "dataset": dataset.reference,
        "out": str(folder / "model"),
        "detector": "mask_rcnn_lite0_fpn",
        "detector_options": TINY,
        "pretrained_backbone": None,
        "image_size": 64,
        "workers": 1,
        "val_split": "val" if "val" in dataset.splits else None,
    }
    return prepare(TrainConfig(**(config | changes)), dataset)


def test_objects_with_masks_and_keypoints_are_counted_in_their_split(tmp_path):
    scene = [mask_object(1), polygon_object(2), box_object(3), pose_object(4)]
    unseen = replace(pose_object(5), keypoints=pose_object(5).keypoints * [1, 1, 0])
    dataset = dataset_of(tmp_path, [scene, [], [unseen]], [scene, scene])
    for split, need, objects, having in (
        ("train", "masks", 5, 2),
        ("train", "keypoints", 5, 1),
        ("val", "masks", 8, 4),
        ("val", "keypoints", 8, 2),
    ):
        count = count_truth(dataset, split, need)
        assert (count.objects, count.having, count.lacking) == (objects, having, objects - having)


def test_a_dataset_without_masks_is_refused_before_anything_starts(tmp_path):
    dataset = dataset_of(tmp_path, [[box_object(1)], [box_object(2)]])
    with pytest.raises(ValueError, match=r"mask_rcnn_lite0_fpn learns masks, and no object .*'train' of .* has any"):
        prepared(dataset, tmp_path)
    with pytest.raises(ValueError, match="copy_paste needs masks, and no object of split 'train'"):
        prepared(
            dataset,
            tmp_path,
            detector="retinanet_lite0",
            detector_options={"fpn_channels": 8, "head_channels": 8},
            augment=AugmentConfig(copy_paste=0.5),
        )


def test_objects_that_lack_masks_are_counted_out_loud(tmp_path, caplog):
    dataset = dataset_of(
        tmp_path, [[mask_object(1), box_object(1)], [box_object(2)]], [[box_object(3), mask_object(2)]]
    )
    with caplog.at_level(logging.WARNING, "boxmill.train"):
        job = prepared(dataset, tmp_path)
    assert job.detector == "mask_rcnn_lite0_fpn"
    told = [r.getMessage() for r in caplog.records]
    assert told[0].startswith("2 of 3 objects in split 'train' have no masks: they teach boxes and classes")
    assert told[1].startswith("1 of 2 objects in split 'val' have no masks: masks are not measured on their images")


def test_a_detector_of_boxes_asks_for_nothing(tmp_path, caplog):
    dataset = dataset_of(tmp_path, [[box_object(1)]])
    options = {"fpn_channels": 8, "head_channels": 8}
    prepared(dataset, tmp_path, detector="retinanet_lite0", detector_options=options)
    assert not caplog.records


def test_a_detector_of_keypoints_is_made_for_the_datasets(tmp_path):
    detector = detectors.create(NAME, num_classes=2, images=1, objects=1, num_keypoints=17, image_size=64)
    assert options_of_truth(detector, LABELS, {}) == {"num_keypoints": 3, "keypoint_flip": (0, 2, 1)}
    assert options_of_truth(detector, LABELS, {"num_keypoints": 3, "keypoint_flip": [0, 2, 1]})["num_keypoints"] == 3
    with pytest.raises(ValueError, match=r"num_keypoints=17 is not what the dataset's keypoints say, 3"):
        options_of_truth(detector, LABELS, {"num_keypoints": 17})
    with pytest.raises(ValueError, match="no category has keypoints"):
        options_of_truth(detector, LabelMap(categories=LABELS.categories[:1]), {})


def test_a_target_goes_to_a_device_with_all_it_has():
    import torch

    target = Target(
        boxes=torch.zeros(1, 4),
        labels=torch.zeros(1, dtype=torch.int64),
        iscrowd=torch.zeros(1, dtype=torch.bool),
        masks=torch.ones(1, 3, 4, dtype=torch.bool),
        keypoints=torch.ones(1, 2, 3),
        mask_valid=torch.tensor([True]),
    ).to("meta")
    assert {v.device.type for v in (target.boxes, target.masks, target.keypoints, target.mask_valid)} == {"meta"}
