"""Images for the report: which ones, and truth beside prediction on a small copy of each."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.checks import BadImage
from pipelines.decoding import decode_rgb
from pipelines.metrics.coco import CocoMetrics
from pipelines.metrics.pairing import PairedImage
from pipelines.records import Annotations, BoolArray, Category, FloatArray, IntArray, LabelMap
from pipelines.report.shapes import Skeleton, outline_path, skeleton
from pipelines.shards import read_image
from pipelines.versions import Dataset

_IOU = 0.5
_WIDEST = 480  # pixels
_BYTES_OF_ALL = 2_200_000
_MOST_BOXES = 60  # drawn an image


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One object on a picture, in its own pixels.

    Attributes:
        state: ``found`` | ``missed`` | ``false`` | ``crowd``; the page colours by it.
        outline: its mask as the ``d`` of a path, '' where it has none.
        skeleton: its keypoints, where it has any.
        focus: the page shows it rather than the others.
    """

    x: float
    y: float
    w: float
    h: float
    name: str
    state: str
    tip: str
    outline: str = ""
    skeleton: Skeleton | None = None
    focus: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One gallery card."""

    title: str
    why: str
    width: int
    height: int
    uri: str  # data:
    truth: tuple[Mark, ...]
    found: tuple[Mark, ...]
    hits: int
    misses: int
    false_alarms: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
    """One image's detections against its truth at one score threshold and IoU .5.

    Attributes:
        kept: (M,) indices of the detections at or above the threshold, by descending score.
        right: (M,) bool; ``ignored``: (M,) bool, detections inside a crowd.
        met: (N,) bool, truth that was found.
    """

    kept: IntArray
    right: BoolArray
    ignored: BoolArray
    met: BoolArray

    def errors(self, image: PairedImage) -> tuple[int, int, int]:
        """Hits, misses, false alarms; crowds are none of them."""
        hits = int(self.right.sum())
        misses = int((~self.met & ~image.truth.iscrowd).sum())
        return hits, misses, int((~self.right & ~self.ignored).sum())


def best_threshold(metrics: CocoMetrics) -> float:
    """The score at which the mean curve at IoU .5 has its highest F1; 0.5 where there is none."""
    curve = metrics.pr_curve(_IOU)
    if not len(curve.precision) or not (curve.precision > 0).any():
        return 0.5
    f1 = 2 * curve.precision * curve.recall / np.maximum(curve.precision + curve.recall, 1e-12)
    return float(curve.scores[int(f1.argmax())])


def match(image: PairedImage, threshold: float) -> Match:
    """Greedy by score within a class, as the metrics do."""
    scores = image.found.scores
    assert scores is not None
    order = np.argsort(-scores, kind="stable")
    kept = order[scores[order] >= threshold].astype(np.int64)
    right, ignored = np.zeros(len(kept), np.bool_), np.zeros(len(kept), np.bool_)
    met = np.zeros(len(image.truth), np.bool_)
    overlaps = _overlaps(image.found.boxes[kept], image.truth.boxes, image.truth.iscrowd)
    for at, detection in enumerate(kept):
        same = image.truth.category_ids == image.found.category_ids[detection]
        free = np.where(same & ~met & ~image.truth.iscrowd, overlaps[at], -1.0)
        if free.size and free.max() >= _IOU:
            met[int(free.argmax())] = right[at] = True
        else:
            ignored[at] = bool((same & image.truth.iscrowd & (overlaps[at] >= _IOU)).any())
    return Match(kept=kept, right=right, ignored=ignored, met=met)


def _overlaps(found: FloatArray, truth: FloatArray, iscrowd: BoolArray) -> FloatArray:
    """(M, N) IoU; against a crowd the share of the detection inside it."""
    sides = np.minimum(found[:, None, 2:], truth[None, :, 2:]) - np.maximum(found[:, None, :2], truth[None, :, :2])
    common = np.prod(np.maximum(sides, 0), 2)
    own = np.prod(found[:, 2:] - found[:, :2], 1)[:, None]
    union = np.where(iscrowd, own, own + np.prod(truth[:, 2:] - truth[:, :2], 1) - common)
    return common / np.maximum(union, 1e-12)


def choose(images: Sequence[PairedImage], matches: Sequence[Match], count: int, seed: int = 0) -> list[tuple[int, str]]:
    """(index, why) of at most ``count`` images: two in three by chance, then the ones with most errors."""
    rng = np.random.default_rng(seed)
    wanted = min(count, len(images))
    shuffled = rng.permutation(len(images)).tolist()
    by_chance = set(shuffled[: -(-2 * wanted // 3)])
    ranked = sorted(shuffled, key=lambda at: _badness(images[at], matches[at]), reverse=True)
    worst = [at for at in ranked if at not in by_chance and _badness(images[at], matches[at])[0] > 0]
    worst = worst[: wanted - len(by_chance)]
    # Where too few others have an error, chance fills the places.
    spare = [at for at in shuffled if at not in by_chance and at not in worst]
    by_chance |= set(spare[: wanted - len(by_chance) - len(worst)])
    return [(at, "random") for at in sorted(by_chance)] + [(at, "worst") for at in worst]


def _badness(image: PairedImage, found: Match) -> tuple[float, int]:
    hits, misses, false_alarms = found.errors(image)
    errors = misses + false_alarms
    return errors / max(1, 2 * hits + errors), errors


def gallery(
    dataset: Dataset,
    images: Sequence[PairedImage],
    label_map: LabelMap,
    *,
    threshold: float,
    count: int,
) -> list[Picture]:
    """Cards of at most ``count`` images with their thumbnails, about 2 MB of them together.

    Reads only the chosen images, each by one range read.
    """
    matches = [match(image, threshold) for image in images]
    chosen = choose(images, matches, count)
    places = _places(dataset, {images[at].image_id for at, _ in chosen})
    categories = {c.category_id: c for c in label_map.categories}
    budget = _BYTES_OF_ALL // max(1, len(chosen))
    pictures = []
    for at, why in chosen:
        shard, row = places[images[at].image_id]
        uri = thumbnail(read_image(dataset.shards[shard], row), budget)
        if uri is not None:
            pictures.append(_picture(images[at], matches[at], categories, uri, why))
    return pictures


def _places(dataset: Dataset, image_ids: set[str]) -> dict[str, tuple[int, int]]:
    index = dataset.index()
    columns = (index[name].to_pylist() for name in ("image_id", "shard", "row"))
    return {image_id: (shard, row) for image_id, shard, row in zip(*columns, strict=True) if image_id in image_ids}


def thumbnail(image: bytes, budget: int) -> str | None:
    """A JPEG of at most 480 pixels in width and about ``budget`` bytes as a data URI; None where it cannot be read.

    The stored frame is kept (no EXIF rotation): boxes are in it.
    """
    try:
        picture = decode_rgb(image, about=_WIDEST)
    except BadImage:
        return None
    # Smaller ones stay as they are.
    picture.thumbnail((_WIDEST, _WIDEST), Image.Resampling.LANCZOS)
    for quality in (82, 70, 55, 40, 25):
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=quality, optimize=True)
        # Four bytes of base64 for three.
        if len(encoded.getvalue()) * 4 // 3 <= budget:
            break
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _picture(image: PairedImage, found: Match, categories: Mapping[int, Category], uri: str, why: str) -> Picture:
    hits, misses, false_alarms = found.errors(image)
    grain = max(image.width, image.height) / _WIDEST
    truth_states = np.where(image.truth.iscrowd, "crowd", np.where(found.met, "found", "missed")).tolist()
    found_states = np.where(found.right, "found", np.where(found.ignored, "crowd", "false")).tolist()
    return Picture(
        title=image.image_id,
        why=why,
        width=image.width,
        height=image.height,
        uri=uri,
        truth=marks(image.truth, np.arange(len(image.truth)), truth_states, categories, grain),
        found=marks(image.found, found.kept, found_states, categories, grain),
        hits=hits,
        misses=misses,
        false_alarms=false_alarms,
    )


def marks(
    objects: Annotations,
    order: IntArray,
    states: Sequence[str],
    categories: Mapping[int, Category],
    grain: float,
    focus: Collection[int] = (),
) -> tuple[Mark, ...]:
    """What to draw of some objects.

    Args:
        order: (M,) their indices; the first are drawn where there are too many.
        states: M of them, see ``Mark``.
        grain: image pixels in one pixel of the picture.
        focus: indices of those that are meant.
    """
    drawn = []
    words = {"found": "", "missed": ", missed", "false": ", false alarm", "crowd": ", crowd"}
    for at, state in list(zip(order.tolist(), states, strict=True))[:_MOST_BOXES]:
        x, y, w, h = (round(float(v), 1) for v in objects.boxes_xywh[at])
        category = categories[int(objects.category_ids[at])]
        score = "" if objects.scores is None else f" {objects.scores[at]:.2f}"
        drawn.append(
            Mark(
                x=x,
                y=y,
                w=w,
                h=h,
                name=category.name,
                state=state,
                tip=f"{category.name}{score}{words[state]}",
                outline=outline_path(objects.polygons[at], objects.rles[at], grain),
                skeleton=skeleton(objects.keypoints[at], category),
                focus=at in focus,
            )
        )
    return tuple(drawn)
