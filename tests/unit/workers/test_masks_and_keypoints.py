"""Masks and keypoints from a dataset's rows into training targets, and from predictions back into rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detectors.structures import Prediction
from detectors.transforms import Augmentation
from pipelines.bitmaps import rasterise
from pipelines.records import Category, LabelMap, Rle
from pipelines.sources.drawn import decode_mask, gather
from pipelines.versions import open_dataset
from tests.scenes import (
    HEIGHT,
    LABELS,
    WIDTH,
    blob,
    box_object,
    commit,
    mask_object,
    polygon_object,
    pose_object,
    record,
)
from workers.batches import to_annotations, to_image_and_target, to_target
from workers.label_config import LabelConfig
from workers.label_plan import prediction_label_map
from workers.loader import RowGroupReader, epoch_plan, list_row_groups, training_batches

SIZE = (HEIGHT, WIDTH)
BOTH = frozenset({"masks", "keypoints"})
OBJECTS = [mask_object(1), box_object(2), pose_object(3), polygon_object(4)]


def test_what_is_not_needed_is_not_decoded():
    target = to_target(gather(OBJECTS), LABELS)
    assert target.masks is None and target.keypoints is None and target.mask_valid is None


def test_masks_and_keypoints_of_those_that_have_some():
    target = to_target(gather(OBJECTS), LABELS, size=SIZE, needs=BOTH)
    assert target.masks.dtype == torch.bool and target.masks.shape == (4, *SIZE)
    assert np.array_equal(target.masks[0], blob(1)) and target.masks[3].any()
    assert target.mask_valid.tolist() == [True, False, False, True]
    assert target.keypoints.dtype == torch.float32 and target.keypoints.shape == (4, 3, 3)
    x, y, w, h = OBJECTS[2].box_xywh
    assert torch.allclose(target.keypoints[2], torch.tensor([[x, y, 2], [x + w, y + h, 2], [0, 0, 0]]).float())
    assert not target.keypoints[[0, 1, 3]].any()


def test_all_masks_known_says_so_with_none():
    assert to_target(gather([mask_object(1), polygon_object(2)]), LABELS, size=SIZE, needs=BOTH).mask_valid is None


def test_a_larger_image_than_any_crop_needs_is_reduced_with_all_of_its_objects():
    image, target = to_image_and_target(record("a.jpg", OBJECTS), LABELS, needs=BOTH, longest=20)
    whole = to_target(gather(OBJECTS), LABELS, size=SIZE, needs=BOTH)
    assert image.shape == (3, 12, 20) and target.masks.shape == (4, 12, 20)
    assert torch.allclose(target.boxes, whole.boxes / 2)
    assert torch.allclose(target.keypoints[..., :2], whole.keypoints[..., :2] / 2)
    assert torch.equal(target.masks[0], whole.masks[0][1::2, 1::2])
    boxes_alone, _ = to_image_and_target(record("a.jpg", OBJECTS), LABELS, longest=20)
    assert boxes_alone.shape == (3, *SIZE)


def test_a_broken_mask_and_a_wrong_number_of_keypoints_are_named_with_their_image():
    broken = record("folder/a.jpg", [replace(mask_object(1), rle=Rle(size=SIZE, counts=(1, 9999)))])
    with pytest.raises(ValueError, match=r"folder/a\.jpg: the mask of object 1: the runs of its RLE fill 10000"):
        to_image_and_target(broken, LABELS, needs=BOTH)
    two = record("b.jpg", [replace(pose_object(1), keypoints=np.ones((2, 3)))])
    with pytest.raises(ValueError, match=r"b\.jpg: object 1 has 2 keypoints, its category has 3"):
        to_image_and_target(two, LABELS, needs=BOTH)


def test_the_label_map_says_what_a_mirror_does_to_keypoints():
    assert LABELS.keypoint_flip() == (0, 2, 1)
    with pytest.raises(ValueError, match="no category has keypoints"):
        LabelMap(categories=LABELS.categories[:1]).keypoint_flip()
    dog = Category(category_id=91, name="dog", keypoints=("nose", "tail", "paw"))
    with pytest.raises(ValueError, match=r"'person' \(3\), 'dog' \(3\) have keypoints of different kinds"):
        LabelMap(categories=(*LABELS.categories, dog)).keypoint_flip()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    scenes = [[mask_object(n), polygon_object(n + 20), pose_object(n + 40)] for n in range(8)]
    records = [record(f"{n}.jpg", objects, seed=n) for n, objects in enumerate(scenes)]
    return open_dataset(commit(tmp_path_factory.mktemp("scenes"), records).reference)


def batches_of(dataset, augmentation, needs):
    groups = list_row_groups(dataset, "train")
    plan = epoch_plan([len(g.image_ids) for g in groups], batch_size=4, epoch=0, seed=0, world=1, rank=0)
    reader = RowGroupReader(groups, max_bytes=2**20)
    batches = training_batches(
        reader, plan, label_map=LABELS, augmentation=augmentation, seed=(0, 0, 0), needs=needs, threads=2
    )
    return [sample for batch in batches for sample in batch]


def test_a_mirrored_image_has_mirrored_masks_and_swapped_keypoints(dataset):
    plain = Augmentation(size=WIDTH, horizontal_flip=0.0, min_size=0)
    same = {s.image_id: s.target for s in batches_of(dataset, plain, BOTH)}
    flipped = {s.image_id: s.target for s in batches_of(dataset, replace(plain, horizontal_flip=1.0), BOTH)}
    for image_id, target in same.items():
        assert torch.equal(flipped[image_id].masks, target.masks.flip(-1))
        expected = target.keypoints[:, [0, 2, 1]].clone()
        expected[..., 0] = torch.where(expected[..., 2] > 0, WIDTH - expected[..., 0], 0)
        assert torch.allclose(flipped[image_id].keypoints, expected)


def test_masks_stay_in_their_boxes_through_crops_turns_and_pasting(dataset):
    wild = Augmentation(size=64, scale=(0.5, 2.0), rotation=10.0, copy_paste=1.0)
    samples = batches_of(dataset, wild, BOTH)
    assert max(len(s.target) for s in samples) > 3, "objects of other images were pasted"
    for sample in samples:
        target = sample.target
        assert target.masks.shape == (len(target), *sample.image.shape[1:])
        known = torch.ones(len(target), dtype=torch.bool) if target.mask_valid is None else target.mask_valid
        assert torch.equal(known, target.masks.flatten(1).any(1))
        for mask, box in zip(target.masks[known], target.boxes[known]):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            around = torch.cat([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert bool((around[:2] >= box[:2] - 4).all() and (around[2:] <= box[2:] + 4).all())


def test_masks_that_only_the_augmentation_needed_are_not_kept(dataset):
    samples = batches_of(dataset, Augmentation(size=WIDTH, copy_paste=1.0), frozenset())
    assert all(s.target.masks is None and s.target.mask_valid is None for s in samples)
    assert max(len(s.target) for s in samples) > 3


def found(labels=(1, 0)):
    crops = torch.zeros(2, 28, 28)
    crops[0, 4:24, 4:24], crops[1, 10:18] = 1.0, 1.0
    points = torch.tensor([[5.0, 6.0, 0.91234], [7.5, 8.0, 0.2], [9.0, 3.0, 0.5]])
    return Prediction(
        boxes=torch.tensor([[2.0, 3, 22, 20], [10.0, 1, 38, 9]]),
        labels=torch.tensor(labels),
        scores=torch.tensor([0.9, 0.4]),
        size=SIZE,
        masks=crops,
        keypoints=points.expand(2, 3, 3),
    )


def test_a_prediction_becomes_rles_with_their_areas_and_keypoints_of_its_category():
    prediction = found()
    annotations = to_annotations(prediction, LABELS)
    dense = (prediction.dense() > 0.5).numpy()
    assert np.array_equal([decode_mask(rle) for rle in annotations.rles], dense)
    assert annotations.area.tolist() == dense.sum((1, 2)).tolist()
    assert [rle.size for rle in annotations.rles] == [SIZE] * 2
    strings = [{"size": list(SIZE), "counts": rle.counts.encode()} for rle in annotations.rles]
    assert coco_mask.area(strings).tolist() == annotations.area.tolist()
    assert annotations.keypoints[0].tolist() == [[5, 6, 2], [7.5, 8, 2], [9, 3, 2]]
    assert annotations.keypoints[1] is None
    assert annotations.num_keypoints.tolist() == [3, -1]
    assert annotations.attributes == ({"keypoint_scores": [0.9123, 0.2, 0.5]}, {})
    masks, known = rasterise(annotations, SIZE)
    assert known.all() and np.array_equal(masks, dense)


def test_nothing_found_has_no_masks_and_no_keypoints():
    nothing = found().take(torch.zeros(0, dtype=torch.int64))
    annotations = to_annotations(nothing, LABELS)
    assert len(annotations) == 0 and annotations.rles == () and annotations.area.shape == (0,)


def test_a_model_of_other_keypoints_is_refused():
    person = replace(LABELS.categories[1], keypoints=("nose", "mouth"))
    with pytest.raises(ValueError, match="gives 3 keypoints, and category 'person' has 2"):
        to_annotations(found(), LabelMap(categories=(LABELS.categories[0], person)))


def test_a_dataset_of_boxes_takes_the_models_keypoints():
    """Or what the model finds would be dropped, as of a category that has none."""
    person = LABELS.categories[1]
    boxes_alone = LabelMap(categories=(replace(person, category_id=4, keypoints=()),))
    config = LabelConfig(input="images", model="model", allow_extra_classes=True)
    found = prediction_label_map(boxes_alone, LABELS, config, "ref")
    assert found.categories == (replace(person, category_id=4), replace(LABELS.categories[0], category_id=5))
    other = LabelMap(categories=(replace(person, keypoints=("head", "hand")), LABELS.categories[0]))
    assert prediction_label_map(other, LABELS, config, "ref") == other
