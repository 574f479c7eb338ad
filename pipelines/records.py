"""The words the system speaks about images and their annotations, at rest.

Shapes: N objects of one image, K keypoints of a category. Boxes carry their format in the name: plain ``boxes``
are xyxy, ``_xywh`` is left, top, width, height. All coordinates are pixels of the stored, unrotated image.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Polygons = tuple[tuple[float, ...], ...]
"""One object's outline: polygons of flat x, y, x, y, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rle:
    """A run-length mask as COCO writes it: column-major, the first run counts background.

    ``counts`` is the list of an uncompressed RLE or the string of a compressed one, kept as the source had it.
    """

    size: tuple[int, int]  # height, width
    counts: str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotations:
    """All objects of one image, truth or predictions (which have ``scores``).

    Attributes:
        ids: (N,) int64, the source's annotation ids, or numbered from 1 where it has none.
        boxes_xywh: (N, 4) float64, absolute pixels of the stored frame.
        category_ids: (N,) int64, the source's own (sparse) category ids; see ``LabelMap``.
        area: (N,) float64, square pixels; NaN where the source gives none.
        iscrowd: (N,) bool.
        polygons: one entry an object, None where it has no polygons.
        rles: one entry an object, None where it has no RLE.
        keypoints: one (K, 3) float64 array of x, y, visibility an object (K differs by category), None where absent.
        num_keypoints: (N,) int64 as the source says; -1 where absent.
        scores: (N,) float64 in [0, 1], or None for truth.
        attributes: one JSON-ready mapping an object with what the source says beyond the fields above.
    """

    ids: IntArray
    boxes_xywh: FloatArray
    category_ids: IntArray
    area: FloatArray
    iscrowd: BoolArray
    polygons: tuple[Polygons | None, ...]
    rles: tuple[Rle | None, ...]
    keypoints: tuple[FloatArray | None, ...]
    num_keypoints: IntArray
    scores: FloatArray | None = None
    attributes: tuple[Mapping[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def boxes(self) -> FloatArray:
        """(N, 4) xyxy, absolute pixels."""
        xyxy = self.boxes_xywh.copy()
        xyxy[:, 2:] += xyxy[:, :2]
        return xyxy

    @classmethod
    def empty(cls, *, with_scores: bool = False) -> Annotations:
        return cls.from_boxes(np.zeros((0, 4)), np.zeros(0, np.int64), scores=np.zeros(0) if with_scores else None)

    @classmethod
    def from_boxes(
        cls, boxes_xywh: FloatArray, category_ids: IntArray, *, scores: FloatArray | None = None
    ) -> Annotations:
        """Objects that are boxes alone: ids from 1, area = width x height, no masks or keypoints."""
        n = len(boxes_xywh)
        boxes_xywh = np.asarray(boxes_xywh, np.float64).reshape(n, 4)
        return cls(
            ids=np.arange(1, n + 1, dtype=np.int64),
            boxes_xywh=boxes_xywh,
            category_ids=np.asarray(category_ids, np.int64),
            area=boxes_xywh[:, 2] * boxes_xywh[:, 3],
            iscrowd=np.zeros(n, np.bool_),
            polygons=(None,) * n,
            rles=(None,) * n,
            keypoints=(None,) * n,
            num_keypoints=np.full(n, -1, np.int64),
            scores=None if scores is None else np.asarray(scores, np.float64),
            attributes=({},) * n,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRecord:
    """One image with its bytes and, in a labelled dataset, its annotations.

    Attributes:
        image_id: stable and unique in a dataset, from the source's own path or key, never the basename alone.
        image: the encoded bytes as the source had them.
        format: ``jpeg``, ``png``, ... as the header says.
        width, height: pixels of the stored frame, before any EXIF rotation.
        exif_orientation: 1 to 8; 1 where the file says nothing.
        sha256: of ``image``, hex.
        source: URI of the file the bytes came from (never with credentials).
        split: ``train``, ``val``, ... or the empty string.
        coco_image_id: integer id for COCO files, from the source or assigned in plan order.
        annotations: None where nobody has looked at the image; an empty one says that it has no objects.
        extra: what else the source says of the image, JSON-ready.
    """

    image_id: str
    image: bytes
    format: str
    width: int
    height: int
    exif_orientation: int = 1
    sha256: str
    source: str
    split: str = ""
    coco_image_id: int
    annotations: Annotations | None = None
    license: str = ""
    url: str = ""
    group_id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One class: ``category_id`` is the source's, possibly sparse and possibly 0."""

    category_id: int
    name: str
    supercategory: str = ""
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of 0-based keypoint indices
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Names, contiguous labels 0..C-1 and the source's sparse category ids; the one place where ids are mapped.

    Labels follow the order of ``categories``.
    """

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        given: dict[str, list[Any]] = {
            "category id": [c.category_id for c in self.categories],
            "category name": [c.name for c in self.categories],
        }
        for what, values in given.items():
            twice = sorted(str(value) for value, count in Counter(values).items() if count > 1)
            if twice:
                raise ValueError(f"{what} given more than once: {', '.join(twice)}; each must be unique")

    def __len__(self) -> int:
        return len(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.categories)

    @cached_property
    def _label_of_id(self) -> dict[int, int]:
        return {c.category_id: label for label, c in enumerate(self.categories)}

    def to_labels(self, category_ids: IntArray) -> IntArray:
        """(N,) source category ids to (N,) labels 0..C-1.

        Raises:
            ValueError: an id that no category has.
        """
        try:
            return np.array([self._label_of_id[int(i)] for i in category_ids], np.int64)
        except KeyError as error:
            raise ValueError(
                f"category id {error.args[0]} is not among the {len(self)} known ones "
                f"({sorted(self._label_of_id)[:10]} ...); check the categories of the source"
            ) from None

    def to_category_ids(self, labels: IntArray) -> IntArray:
        """(N,) labels 0..C-1 to (N,) source category ids."""
        ids = np.array([c.category_id for c in self.categories], np.int64)
        return ids[np.asarray(labels, np.int64)]

    def flip_pairs(self, label: int) -> tuple[tuple[int, int], ...]:
        """Keypoint index pairs of a class that a horizontal flip swaps: ``left_*`` with ``right_*``."""
        names = self.categories[label].keypoints
        index = {name: i for i, name in enumerate(names)}
        pairs = []
        for name, i in index.items():
            mirror = name.replace("left", "right", 1) if "left" in name else None
            if mirror is not None and mirror in index:
                pairs.append((i, index[mirror]))
        return tuple(pairs)

    def keypoint_flip(self) -> tuple[int, ...]:
        """The index that each of K keypoints takes in a mirror image: what a network of keypoints is made for.

        Raises:
            ValueError: no category has keypoints, or several have others than the first.
        """
        flips = {}
        for label, category in enumerate(self.categories):
            if category.keypoints:
                order = list(range(len(category.keypoints)))
                for left, right in self.flip_pairs(label):
                    order[left], order[right] = right, left
                flips[category.name] = tuple(order)
        if not flips:
            raise ValueError("no category has keypoints; give a dataset whose categories name them")
        if len(set(flips.values())) > 1:
            told = ", ".join(f"{name!r} ({len(flip)})" for name, flip in flips.items())
            raise ValueError(
                f"categories {told} have keypoints of different kinds; a network learns those of one kind, so leave "
                "the other categories out"
            )
        return next(iter(flips.values()))

    def with_keypoints_of(self, other: LabelMap) -> LabelMap:
        """These categories, with the keypoints that ``other`` has of one of the same name where it has none here."""
        known = {c.name: c for c in other.categories if c.keypoints}
        return LabelMap(
            categories=tuple(
                replace(c, keypoints=known[c.name].keypoints, skeleton=known[c.name].skeleton)
                if not c.keypoints and c.name in known
                else c
                for c in self.categories
            )
        )

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "id": c.category_id,
                "name": c.name,
                "supercategory": c.supercategory,
                "keypoints": list(c.keypoints),
                "skeleton": [list(pair) for pair in c.skeleton],
                "extra": dict(c.extra),
            }
            for c in self.categories
        ]

    @classmethod
    def from_json(cls, categories: Sequence[Mapping[str, Any]]) -> LabelMap:
        return cls(
            categories=tuple(
                Category(
                    category_id=int(c["id"]),
                    name=str(c["name"]),
                    supercategory=str(c.get("supercategory", "")),
                    keypoints=tuple(c.get("keypoints", ())),
                    skeleton=tuple((int(a), int(b)) for a, b in c.get("skeleton", ())),
                    extra=dict(c.get("extra", {})),
                )
                for c in categories
            )
        )

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
