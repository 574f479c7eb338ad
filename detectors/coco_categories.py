"""COCO's 80 categories with the ids that their annotations have: 1 to 90 with ten gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BY_SUPERCATEGORY: dict[str, str] = {
    "person": "1 person",
    "vehicle": "2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat",
    "outdoor": "10 traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench",
    "animal": "16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe",
    "accessory": "27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase",
    "sports": "34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, "
    "41 skateboard, 42 surfboard, 43 tennis racket",
    "kitchen": "44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl",
    "food": "52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, "
    "61 cake",
    "furniture": "62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet",
    "electronic": "72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone",
    "appliance": "78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator",
    "indoor": "84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush",
}

COCO_CATEGORIES: tuple[dict[str, Any], ...] = tuple(
    {"id": int(entry.split(" ", 1)[0]), "name": entry.split(" ", 1)[1], "supercategory": supercategory}
    for supercategory, entries in _BY_SUPERCATEGORY.items()
    for entry in entries.split(", ")
)
"""80, by ascending id."""

_KEYPOINTS = (
    "nose",
    *(f"{side}_{part}" for part in ("eye", "ear", "shoulder", "elbow", "wrist") for side in ("left", "right")),
    *(f"{side}_{part}" for part in ("hip", "knee", "ankle") for side in ("left", "right")),
)
_BONES = "15-13 13-11 16-14 14-12 11-12 5-11 6-12 5-6 5-7 6-8 7-9 8-10 1-2 0-1 0-2 1-3 2-4 3-5 4-6"

COCO_KEYPOINT_CATEGORIES: tuple[dict[str, Any], ...] = (
    {
        **COCO_CATEGORIES[0],
        "keypoints": list(_KEYPOINTS),
        "skeleton": [[int(end) for end in bone.split("-")] for bone in _BONES.split()],
    },
)
"""Those that have keypoints: person, with indices from 0."""

COCO_KEYPOINT_FLIP: tuple[int, ...] = (0, *(i + 1 if i % 2 else i - 1 for i in range(1, len(_KEYPOINTS))))
"""The index that each keypoint takes in a mirror image."""


def coco_rows(first: int) -> Sequence[str | None]:
    """Names of a released network's class rows, which are numbered by category id.

    Args:
        first: category id of row 0: 1, or 0 where a row for the background comes first.
    Returns:
        One name a row up to id 90; None where no category has that id.
    """
    names = {category["id"]: category["name"] for category in COCO_CATEGORIES}
    return tuple(names.get(i) for i in range(first, 91))
