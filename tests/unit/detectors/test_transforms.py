"""Augmentation by hand-computed cases."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detectors.base import Preprocessing
from detectors.batching import make_batch
from detectors.structures import Target
from detectors.transforms import (
    Augmentation,
    augment,
    fit_size,
    flip_horizontally,
    flip_vertically,
    resize,
    shift_colours,
    zoom_and_place,
)
from detectors.transforms_rotation import rotate
from detectors.transforms_view import join, keep_visible


def make_target(boxes, *, keypoints=None, masks=None, iscrowd=None, labels=None):
    n = len(boxes)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
        labels=torch.tensor(labels if labels is not None else [0] * n),
        iscrowd=torch.tensor(iscrowd if iscrowd is not None else [False] * n),
        masks=masks,
        keypoints=None if keypoints is None else torch.tensor(keypoints, dtype=torch.float32),
    )


IMAGE = torch.arange(3 * 20 * 30, dtype=torch.int32).remainder(251).to(torch.uint8).reshape(3, 20, 30)


def test_horizontal_flip_moves_boxes_masks_and_swaps_keypoints_of_the_class_that_has_pairs():
    keypoints = [[[1, 5, 2], [4, 6, 1], [9, 9, 2]]] * 2
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[:, 4, 7] = True
    target = make_target([[0, 2, 10, 8], [5, 5, 6, 6]], keypoints=keypoints, masks=masks, labels=[0, 1])
    image, flipped = flip_horizontally(IMAGE, target, flip_pairs=[[(0, 1)], []])
    assert torch.equal(image[:, :, 0], IMAGE[:, :, 29])
    assert flipped.boxes.tolist() == [[20, 2, 30, 8], [24, 5, 25, 6]]
    assert flipped.keypoints[0].tolist() == [[26, 6, 1], [29, 5, 2], [21, 9, 2]]
    assert flipped.keypoints[1].tolist() == [[29, 5, 2], [26, 6, 1], [21, 9, 2]]
    assert flipped.masks[0].nonzero().tolist() == [[4, 22]]


def test_vertical_flip_swaps_left_and_right_too_as_it_makes_a_mirror_image():
    target = make_target([[0, 2, 10, 8]], keypoints=[[[1, 5, 2], [4, 6, 1]]])
    image, flipped = flip_vertically(IMAGE, target, flip_pairs=[[(0, 1)]])
    assert torch.equal(image[:, 0], IMAGE[:, 19])
    assert flipped.boxes.tolist() == [[0, 12, 10, 18]]
    assert flipped.keypoints[0].tolist() == [[4, 14, 1], [1, 15, 2]]


def test_two_flips_are_none():
    target = make_target([[1, 2, 10, 8]], keypoints=[[[1, 5, 2], [4, 6, 1]]])
    for flip in (flip_horizontally, flip_vertically):
        image, back = flip(*flip(IMAGE, target, [[(0, 1)]]), [[(0, 1)]])
        assert torch.equal(image, IMAGE)
        assert torch.equal(back.boxes, target.boxes)
        assert torch.equal(back.keypoints, target.keypoints)


def test_resize_keeps_the_aspect_and_scales_every_field():
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, :10, :15] = True
    target = make_target([[3, 2, 30, 20]], keypoints=[[[15, 10, 2]]], masks=masks)
    image, resized = resize(IMAGE, target, 60)
    assert image.shape == (3, 40, 60) and image.dtype == torch.uint8
    assert resized.boxes.tolist() == [[6, 4, 60, 40]]
    assert resized.keypoints[0].tolist() == [[30, 20, 2]]
    assert resized.masks.shape == (1, 40, 60)
    assert resized.masks[0, :20, :30].all() and resized.masks.sum() == 600


def test_fit_size_rounds_and_never_gives_zero():
    assert fit_size(480, 640, 416) == (312, 416)
    assert fit_size(1000, 1, 100) == (100, 1)


def test_zoom_in_takes_the_crop_that_place_names():
    target = make_target([[10, 10, 20, 20]])
    image, moved = zoom_and_place(IMAGE, target, size=(20, 30), zoom=2.0, place=(1.0, 1.0), fill=(0, 0, 0))
    assert image.shape == (3, 20, 30)
    assert moved.boxes.tolist() == [[-10, 0, 10, 20]]  # crop x 15..30, y 10..20, enlarged twice


def test_zoom_out_leaves_fill_around_the_image():
    target = make_target([[0, 0, 30, 20]])
    image, moved = zoom_and_place(
        torch.full((3, 20, 30), 200, dtype=torch.uint8), target, size=(20, 30), zoom=0.5, place=(0, 1), fill=(1, 2, 3)
    )
    assert moved.boxes.tolist() == [[0, 10, 15, 20]]
    assert (image[:, 10:, :15] == 200).all()
    assert image[:, 0, 0].tolist() == [1, 2, 3] and image[:, 19, 15].tolist() == [1, 2, 3]


def test_keep_visible_removes_all_fields_of_what_is_gone_and_keeps_crowds():
    masks = torch.zeros(5, 20, 30, dtype=torch.bool)
    boxes = [[0, 0, 10, 10], [-9, 0, 1, 10], [25, 5, 35, 15], [-90, 0, 10, 10], [5, 5, 6, 15]]
    keypoints = [[[1, 1, 2]], [[-1, 1, 2]], [[31, 6, 2]], [[1, 1, 0]], [[5, 5, 1]]]
    target = make_target(
        boxes, masks=masks, keypoints=keypoints, iscrowd=[False, False, False, True, False], labels=[0, 1, 2, 3, 4]
    )
    kept = keep_visible(target, height=20, width=30, min_visible=0.25, min_size=2)
    assert kept.labels.tolist() == [0, 2, 3]
    assert kept.boxes.tolist() == [[0, 0, 10, 10], [25, 5, 30, 15], [0, 0, 10, 10]]
    assert kept.iscrowd.tolist() == [False, False, True]
    assert len(kept.masks) == len(kept.keypoints) == 3
    assert kept.keypoints[1].tolist() == [[0, 0, 0]]  # outside the image: not labelled any more


def test_colours_do_what_they_are_called():
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    assert (shift_colours(grey, brightness=1.5) == 150).all()
    assert (shift_colours(grey, contrast=0.3) == 100).all()
    assert (shift_colours(grey, saturation=0.2, hue=0.25).int() - 100).abs().max() <= 1
    red = torch.tensor([200, 20, 20], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    pale = shift_colours(red, saturation=0.0)[:, 0, 0].int()
    assert pale.max() - pale.min() <= 1 and abs(int(pale[0]) - 74) <= 1  # 0.299*200 + 0.701*20
    turned = shift_colours(red, hue=0.5)[:, 0, 0]
    assert turned.argmin() == 0
    black_white = torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 4, 2)
    assert shift_colours(black_white, contrast=0.5)[0, 0, 0] in (63, 64)
    assert shift_colours(black_white, contrast=2.0).unique().tolist() == [0, 255]


def test_without_variation_augment_is_a_resize():
    plain = Augmentation(size=30, horizontal_flip=0.0)
    image, target = augment(IMAGE, make_target([[1, 2, 10, 8]]), plain, np.random.default_rng(0))
    assert torch.equal(image, IMAGE)
    assert target.boxes.tolist() == [[1, 2, 10, 8]]


def test_stretching_moves_boxes_as_a_stretched_batch_moves_pixels():
    square = Augmentation(size=60, resize="stretch", horizontal_flip=0.0)
    image, target = augment(IMAGE, make_target([[1, 2, 10, 8]]), square, np.random.default_rng(0))
    assert target.boxes.tolist() == [[2, 6, 20, 24]]
    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), size=60, divisor=1, resize="stretch")
    assert torch.equal(make_batch([image], preprocessing).images, make_batch([IMAGE], preprocessing).images)


def test_stretching_scales_keypoints_and_masks_by_each_side():
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, :10, :15] = True
    target = make_target([[3, 2, 30, 20]], keypoints=[[[15, 10, 2], [29, 19, 1]]], masks=masks)
    image, stretched = augment(
        IMAGE, target, Augmentation(size=60, resize="stretch", horizontal_flip=1.0), np.random.default_rng(0)
    )
    assert image.shape == (3, 60, 60)
    assert stretched.boxes.tolist() == [[0, 6, 54, 60]]
    assert stretched.keypoints[0].tolist() == [[30, 30, 2], [2, 57, 1]]
    assert stretched.masks.sum() == 900 and stretched.masks[0, :30, 30:].all()


@pytest.mark.parametrize("zoom", [2.0, 0.5])
def test_a_stretched_image_is_zoomed_by_each_side(zoom):
    target = make_target([[5, 5, 25, 15]])
    zoomed = Augmentation(size=60, resize="stretch", horizontal_flip=0.0, scale=(zoom, zoom), min_visible=0.0)
    # The first draw is the zoom, which is certain; the next two are where the crop or the small image goes.
    rng = np.random.default_rng(0)
    place = np.random.default_rng(0).random(9)[1:3]
    image, moved = augment(IMAGE, target, zoomed, rng)
    assert image.shape == (3, 60, 60)
    if zoom > 1:
        left, top = int(place[0] * 16), int(place[1] * 11)
        expected = [(5 - left) * 4, (5 - top) * 6, (25 - left) * 4, (15 - top) * 6]
    else:
        left, top = int(place[0] * 31), int(place[1] * 31)
        expected = [5 + left, 7.5 + top, 25 + left, 22.5 + top]
    assert moved.boxes.tolist() == [[min(60, max(0, value)) for value in expected]]


def test_the_same_generator_state_gives_the_same_image():
    strong = Augmentation(size=25, vertical_flip=0.5, scale=(0.5, 2.0), brightness=0.4, hue=0.1)
    once, again, other = (
        augment(IMAGE, make_target([[1, 2, 25, 18]]), strong, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(once[0], again[0]) and torch.equal(once[1].boxes, again[1].boxes)
    assert not torch.equal(once[0], other[0])


def test_large_scale_jitter_keeps_what_is_large_enough():
    """Zooms from a tenth to twice the size, and boxes that fit them."""
    jitter = Augmentation(size=200, scale=(0.1, 2.0), horizontal_flip=0.0, min_visible=0.0)
    zooms = []
    for seed in range(40):
        image, moved = augment(IMAGE, make_target([[0, 0, 30, 20]]), jitter, np.random.default_rng(seed))
        assert image.shape == (3, 133, 200)
        zooms.append(0.1 * 20 ** np.random.default_rng(seed).random())
        (width,) = (moved.boxes[:, 2] - moved.boxes[:, 0]).tolist()
        assert width == pytest.approx(200 * min(zooms[-1], 1.0), abs=1)
    assert min(zooms) < 0.15 and max(zooms) > 1.7


def test_turning_off_what_is_new_leaves_the_rest_as_it_was():
    varied = Augmentation(size=30, scale=(0.5, 2.0), vertical_flip=0.5, brightness=0.4)
    turned = replace(varied, rotation=20.0)
    target = make_target([[1, 2, 25, 18]])
    plain, other = (augment(IMAGE, target, how, np.random.default_rng(3)) for how in (varied, turned))
    assert not torch.equal(plain[0], other[0])
    level = replace(turned, rotation=1e-9)
    again = augment(IMAGE, target, level, np.random.default_rng(3))
    assert torch.equal(again[0], plain[0])
    torch.testing.assert_close(again[1].boxes, plain[1].boxes)


def test_a_quarter_turn_of_a_square():
    masks = torch.zeros(1, 20, 20, dtype=torch.bool)
    masks[0, 2:4, 5:12] = True
    square = IMAGE[:, :, :20]
    target = make_target([[5, 2, 12, 4]], masks=masks, keypoints=[[[5.5, 2.5, 2]]])
    image, turned = rotate(square, target, 90, fill=(0, 0, 0))
    assert torch.equal(image, square.rot90(-1, (1, 2)))
    assert torch.equal(turned.masks, masks.rot90(-1, (1, 2)))
    torch.testing.assert_close(turned.boxes, torch.tensor([[16.0, 5.0, 18.0, 12.0]]))
    torch.testing.assert_close(turned.keypoints, torch.tensor([[[17.5, 5.5, 2.0]]]))


def test_pasting_is_as_likely_as_it_is_said_and_asks_for_another_image_then_alone():
    masks = torch.ones(1, 20, 30, dtype=torch.bool)
    target = make_target([[0, 0, 30, 20]], masks=masks, labels=[1])
    other = make_target([[0, 0, 15, 10]], masks=masks & (torch.arange(30) < 15) & (torch.arange(20) < 10)[:, None])
    how = Augmentation(size=30, horizontal_flip=0.0, copy_paste=0.3)
    assert how.needs_masks and not Augmentation(size=30).needs_masks
    asked = []

    def donor():
        asked.append(seed)
        return torch.full_like(IMAGE, 9), other

    pasted = []
    for seed in range(60):
        image, found = augment(IMAGE, target, how, np.random.default_rng(seed), donor=donor)
        if len(found) == 2:
            pasted.append(seed)
            assert found.labels.tolist() == [1, 0] and (image[:, :10, :15] == 9).all()
            assert found.masks[0].sum() == 450 and torch.equal(image[:, 10:], IMAGE[:, 10:])
        else:
            assert torch.equal(image, IMAGE) and found.labels.tolist() == [1]
    assert pasted == asked and 8 <= len(pasted) <= 28


def test_pasting_needs_another_image_and_masks():
    how = Augmentation(size=30, copy_paste=1.0)
    bare = make_target([[0, 0, 15, 10]])
    with pytest.raises(ValueError, match=r"copy_paste=1\.0 needs a donor"):
        augment(IMAGE, bare, how, np.random.default_rng(0))
    with pytest.raises(ValueError, match="pasted by their masks"):
        augment(IMAGE, bare, how, np.random.default_rng(0), donor=lambda: (IMAGE, bare))


def test_objects_that_differ_in_what_they_have_are_not_joined():
    some = make_target([[0, 0, 15, 10]], keypoints=[[[1, 1, 2]]])
    with pytest.raises(ValueError, match="one alone has keypoints"):
        join(some, make_target([[0, 0, 15, 10]]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0, 1)},
        {"scale": (2, 1)},
        {"horizontal_flip": 1.5},
        {"hue": 0.6},
        {"resize": "crop"},
        {"rotation": 90},
        {"copy_paste": 2},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(size=10, **wrong)
