"""Boxes, masks and keypoints stay on the object whatever is done to the image."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.structures import Target
from detectors.transforms import Augmentation, augment

INSIDE, FILL = 255, 0


@st.composite
def scenes(draw):
    """A white rectangle on black, with its box, its mask and its top-left and bottom-right corner as keypoints."""
    height, width = draw(st.integers(24, 90)), draw(st.integers(24, 90))
    x1, y1 = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    x2, y2 = draw(st.integers(x1 + 8, width)), draw(st.integers(y1 + 8, height))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, y1:y2, x1:x2] = INSIDE
    target = Target(
        boxes=torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32),
        labels=torch.tensor([0]),
        iscrowd=torch.tensor([False]),
        masks=(image[:1] == INSIDE),
        keypoints=torch.tensor([[[x1 + 0.5, y1 + 0.5, 2.0], [x2 - 0.5, y2 - 0.5, 1.0]]]),
    )
    return image, target


@given(
    scenes(),
    st.integers(0, 2**32),
    st.integers(32, 128),
    st.sampled_from(["fit", "stretch"]),
    st.floats(0.4, 1.0),
    st.floats(1.0, 2.5),
)
@settings(max_examples=150, deadline=None)
def test_objects_stay_under_their_boxes(scene, seed, size, resize, low, high):
    image, target = scene
    augmentation = Augmentation(
        size=size,
        resize=resize,
        horizontal_flip=0.5,
        vertical_flip=0.5,
        scale=(low, high),
        fill=(FILL,) * 3,
        min_visible=0.0,
    )
    augmented, moved = augment(image, target, augmentation, np.random.default_rng(seed), flip_pairs=[[(0, 1)]])
    assert max(augmented.shape[1:]) == size
    lit = augmented[0] > INSIDE // 2
    if len(moved) == 0:
        # Gone means: no more than a sliver below min_size on one side (plus what rounding adds) is left.
        ys, xs = lit.nonzero(as_tuple=True)
        assert len(ys) == 0 or min(int(ys.max() - ys.min()), int(xs.max() - xs.min())) <= 3
        return
    ys, xs = lit.nonzero(as_tuple=True)
    seen = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=torch.float32)
    # Antialiasing spreads an edge over about one source pixel, which is enlarged with the image.
    shortest = max(image.shape[1:]) if resize == "fit" else min(image.shape[1:])
    tolerance = 1.0 + 0.5 * high * size / shortest
    assert (seen - moved.boxes[0]).abs().max() <= tolerance
    mask_ys, mask_xs = moved.masks[0].nonzero(as_tuple=True)
    mask_box = torch.tensor([mask_xs.min(), mask_ys.min(), mask_xs.max() + 1, mask_ys.max() + 1]).float()
    assert (mask_box - moved.boxes[0]).abs().max() <= tolerance
    assert moved.masks.shape[1:] == augmented.shape[1:]


@given(scenes(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_labelled_keypoints_stay_on_the_object(scene, seed):
    image, target = scene
    augmentation = Augmentation(size=64, vertical_flip=0.5, scale=(0.6, 1.8), fill=(FILL,) * 3, min_visible=0.0)
    _, moved = augment(image, target, augmentation, np.random.default_rng(seed), flip_pairs=[[(0, 1)]])
    for keypoints, box in zip(moved.keypoints if moved.keypoints is not None else (), moved.boxes, strict=True):
        labelled = keypoints[keypoints[:, 2] > 0, :2]
        assert (labelled >= box[:2] - 1e-3).all() and (labelled <= box[2:] + 1e-3).all()
    lengths = {len(moved.boxes), len(moved.labels), len(moved.iscrowd), len(moved.masks), len(moved.keypoints)}
    assert len(lengths) == 1
