"""Synthetic scenes from a seed: the demo's and the tests' own data, with boxes, polygons and keypoints.

Six classes differ by shape and texture; colours are random and shared by all of them and by the background, so
that nothing is found by its colour. Truth is of an object's *visible* part: box, area and polygons are exactly
those of the pixels that can be seen, and an object hidden by more than 70 % is not in the truth. Pixels are equal
for equal seeds under the same numpy and Pillow.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import PIL
from PIL import Image

from pipelines.records import Annotations, Category, ImageRecord, LabelMap, Polygons
from pipelines.sources import SourceItem
from pipelines.sources.synthetic_outline import mask_to_polygons
from pipelines.sources.synthetic_scene import OBJECTS, Seen, draw, layout
from pipelines.sources.synthetic_shapes import KINDS

_SPLITS = ("train", "val")
_FEWEST_SEEN = 3
_JPEG_QUALITY = 90
_SMALLEST_SIDE = 96
_SMALLEST_DIAMETER = 8
_IDS_AN_IMAGE = 100
_DRAWING = 1  # raised when the same seed comes to draw something else


@dataclass(frozen=True, kw_only=True)
class SyntheticSource:
    """A source of drawn scenes.

    Attributes:
        seed: of everything; an image depends on (seed, split, index, size) alone, never on the counts.
        num_train, num_val: images of the splits ``train`` and ``val``.
        size: width, height in pixels, at least 96 each.
        objects: fewest and most that are placed in a scene, as far as there is room; some may be hidden.
        diameters: of the smallest and the largest objects, in pixels; None takes 7 and 56 % of the shorter side.
    Raises:
        ValueError: a negative count, a negative seed, too small a size, or objects that no scene can have.
    """

    kind: ClassVar[str] = "synthetic"
    seed: int = 0
    num_train: int = 500
    num_val: int = 100
    size: tuple[int, int] = (256, 256)
    objects: tuple[int, int] = OBJECTS
    diameters: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2:
            raise ValueError(f"synthetic size {list(self.size)} must be width, height")
        # From JSON it comes as a list.
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        if min(self.seed, self.num_train, self.num_val) < 0:
            raise ValueError(
                f"seed={self.seed}, num_train={self.num_train}, num_val={self.num_val}: each must be 0 or more"
            )
        if min(self.size) < _SMALLEST_SIDE:
            raise ValueError(
                f"synthetic size {self.size} is too small for its objects; give at least "
                f"{_SMALLEST_SIDE} x {_SMALLEST_SIDE} pixels"
            )
        fewest, most = (int(count) for count in self.objects)
        object.__setattr__(self, "objects", (fewest, most))
        if not _FEWEST_SEEN < fewest <= most:
            raise ValueError(
                f"objects={list(self.objects)}: give the fewest, at least {_FEWEST_SEEN + 1}, and the most"
            )
        if self.diameters is not None:
            smallest, largest = (float(side) for side in self.diameters)
            object.__setattr__(self, "diameters", (smallest, largest))
            if not _SMALLEST_DIAMETER <= smallest <= largest <= 0.6 * min(self.size):
                raise ValueError(
                    f"diameters={list(self.diameters)}: give the smallest, at least {_SMALLEST_DIAMETER} pixels, and "
                    "the largest, at most 0.6 of the shorter side"
                )

    @property
    def options(self) -> dict[str, Any]:
        """JSON-ready; ``SyntheticSource(**options)`` is the same source."""
        told: dict[str, Any] = {
            "seed": self.seed,
            "num_train": self.num_train,
            "num_val": self.num_val,
            "size": list(self.size),
        }
        # Only what is not as usual: plans are known by their options.
        if self.objects != OBJECTS:
            told["objects"] = list(self.objects)
        if self.diameters is not None:
            told["diameters"] = list(self.diameters)
        return told

    @cached_property
    def label_map(self) -> LabelMap:
        return LabelMap(
            categories=tuple(
                Category(
                    category_id=number + 1,
                    name=kind.name,
                    supercategory="drawing",
                    keypoints=kind.keypoints,
                    skeleton=kind.skeleton,
                )
                for number, kind in enumerate(KINDS)
            )
        )

    def about(self) -> dict[str, Any]:
        """What the pixels depend on beside the options."""
        return {"drawing": _DRAWING, "numpy": np.__version__, "pillow": PIL.__version__}

    def scan(self) -> Iterator[SourceItem]:
        """Every image to be drawn; nothing is drawn yet."""
        counts = {"train": self.num_train, "val": self.num_val}
        number = 0
        for split in _SPLITS:
            for index in range(counts[split]):
                number += 1
                yield SourceItem(
                    image_id=f"{split}/{index:06d}.jpg",
                    uri=f"synthetic://seed-{self.seed}/{split}/{index:06d}.jpg",
                    size=self.size[0] * self.size[1] * 2 // 5,
                    split=split,
                    coco_image_id=number,
                    declared_size=self.size,
                    payload={"index": index},
                )

    def load(self, item: SourceItem) -> ImageRecord:
        """Draw one image, about 10 ms at 256 x 256."""
        assert item.coco_image_id is not None
        image, seen = self._scene(item.split, int(item.payload["index"]))
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=_JPEG_QUALITY)
        content = encoded.getvalue()
        return ImageRecord(
            image_id=item.image_id,
            image=content,
            format="jpeg",
            width=self.size[0],
            height=self.size[1],
            sha256=hashlib.sha256(content).hexdigest(),
            source=item.uri,
            split=item.split,
            coco_image_id=item.coco_image_id,
            annotations=_annotations(seen, item.coco_image_id * self._ids_an_image, self.label_map),
        )

    @property
    def _ids_an_image(self) -> int:
        return max(_IDS_AN_IMAGE, self.objects[1])

    def _scene(self, split: str, index: int) -> tuple[Image.Image, tuple[Seen, ...]]:
        attempt = 0
        while True:
            # Counts are not in the key: more images leave the first ones as they were.
            rng = np.random.default_rng([self.seed, _SPLITS.index(split), index, attempt, *self.size])
            placed = layout(rng, self.size, objects=self.objects, diameters=self.diameters)
            image, seen = draw(rng, placed, self.size)
            if len(seen) >= _FEWEST_SEEN:
                return image, seen
            attempt += 1


def _annotations(seen: Sequence[Seen], first_id: int, label_map: LabelMap) -> Annotations:
    masks = [s.mask for s in seen]
    keypoints = tuple(s.keypoints for s in seen)
    return Annotations(
        ids=first_id + np.arange(len(seen), dtype=np.int64),
        boxes_xywh=np.array([(*s.origin, *s.mask.shape[::-1]) for s in seen], np.float64).reshape(-1, 4),
        category_ids=label_map.to_category_ids(np.array([s.label for s in seen], np.int64)),
        area=np.array([mask.sum() for mask in masks], np.float64),
        iscrowd=np.zeros(len(seen), np.bool_),
        polygons=tuple(_shift(s) for s in seen),
        rles=(None,) * len(seen),
        keypoints=keypoints,
        num_keypoints=np.array([-1 if k is None else int((k[:, 2] > 0).sum()) for k in keypoints], np.int64),
        attributes=tuple({"hidden": round(s.hidden, 3)} for s in seen),
    )


def _shift(seen: Seen) -> Polygons:
    x, y = seen.origin
    return tuple(
        tuple(v + (y if at % 2 else x) for at, v in enumerate(polygon)) for polygon in mask_to_polygons(seen.mask)
    )
