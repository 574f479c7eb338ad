"""Images for the report: which ones, and truth beside prediction on a small copy of each."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from pipelines.checks import BadImage
from pipelines.decoding import decode_rgb
from pipelines.metrics.matches import IGNORED, TRUE, MatchTable
from pipelines.metrics.pairing import PairedImage
from pipelines.metrics.ranking import threshold_index
from pipelines.records import Annotations, BoolArray, Category, IntArray, LabelMap
from pipelines.report.shapes import Skeleton, outline_path, skeleton
from pipelines.shards import CorruptShard, read_image
from pipelines.versions import Dataset

_IOU = 0.5
_WIDEST = 480  # pixels
BYTES_OF_GALLERY = 1_500_000
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
        kept: (M,) indices of the detections at or above the threshold, by descending score; ``rows``: theirs in the
            match table.
        right: (M,) bool; ``ignored``: (M,) bool, detections inside a crowd.
        met: (N,) bool, truth that was found.
    """

    kept: IntArray
    rows: IntArray
    right: BoolArray
    ignored: BoolArray
    met: BoolArray

    def errors(self, image: PairedImage) -> tuple[int, int, int]:
        """Hits, misses, false alarms; crowds are none of them."""
        hits = int(self.right.sum())
        misses = int((~self.met & ~image.truth.iscrowd).sum())
        return hits, misses, int((~self.right & ~self.ignored).sum())


def matches_of(table: MatchTable, images: Sequence[PairedImage], threshold: float) -> list[Match]:
    """Each image's part of a match table, of whose truth and detections it is made, in the images' order.

    Raises:
        ValueError: the table was not matched at IoU .5, or not on these images.
    """
    at = threshold_index(table.settings, _IOU)
    number = {image_id: n for n, image_id in enumerate(table.image_ids)}
    strange = [image.image_id for image in images if image.image_id not in number]
    if strange:
        raise ValueError(f"the match table has no image {strange[0]!r}; match the images that are shown")
    detections = _rows_of_images(table.images, table.num_images)
    truths = _rows_of_images(table.truth_images, table.num_images)
    matches = []
    for image in images:
        n = number[image.image_id]
        rows = np.arange(*detections[n])
        rows = rows[table.scores[rows] >= threshold]
        rows = rows[np.argsort(-table.scores[rows], kind="stable")]
        outcomes = table.outcomes[rows, 0, at]
        right = outcomes == TRUE
        met = np.zeros(truths[n][1] - truths[n][0], np.bool_)
        met[table.matched[rows[right], at] - truths[n][0]] = True
        matches.append(Match(kept=table.det_index[rows], right=right, ignored=outcomes == IGNORED, met=met, rows=rows))
    return matches


def _rows_of_images(images: IntArray, num_images: int) -> list[tuple[int, int]]:
    """First row and the one after the last of each image; rows of an image lie together, in the order of images."""
    ends = np.searchsorted(images, np.arange(num_images + 1))
    return list(pairwise(ends.tolist()))


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
    table: MatchTable,
    *,
    threshold: float,
    count: int,
) -> list[Picture]:
    """Cards of at most ``count`` images with their thumbnails, about 1.5 MB of them together.

    Reads only the chosen images, each by one range read.
    """
    matches = matches_of(table, images, threshold)
    chosen = choose(images, matches, count)
    thumbnails = read_thumbnails(dataset, [images[at].image_id for at, _ in chosen], BYTES_OF_GALLERY)
    categories = {c.category_id: c for c in label_map.categories}
    return [
        picture(images[at], matches[at], categories, thumbnails[images[at].image_id], why=why)
        for at, why in chosen
        if images[at].image_id in thumbnails
    ]


def read_thumbnails(dataset: Dataset, image_ids: Sequence[str], budget: int) -> dict[str, str]:
    """Small copies as data URIs by image id, of about ``budget`` bytes together; unreadable images are left out."""
    places = _places(dataset, set(image_ids))
    each = budget // max(1, len(places))
    found = {}
    for image_id, (shard, row) in places.items():
        try:
            image = read_image(dataset.shards[shard], row)
        except (CorruptShard, FileNotFoundError):
            continue
        uri = thumbnail(image, each)
        if uri is not None:
            found[image_id] = uri
    return found


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


def picture(
    image: PairedImage,
    found: Match,
    categories: Mapping[int, Category],
    uri: str,
    *,
    why: str,
    focus: tuple[Collection[int], Collection[int]] = ((), ()),
) -> Picture:
    """One card; ``focus`` are indices of the truths and of the detections that it is about."""
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
        truth=marks(image.truth, np.arange(len(image.truth)), truth_states, categories, grain, focus[0]),
        found=marks(image.found, found.kept, found_states, categories, grain, focus[1]),
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
        order: (M,) their indices; the first of them are drawn where there are too many, and those in ``focus``.
        states: M of them, see ``Mark``.
        grain: image pixels in one pixel of the picture.
        focus: indices of those that are meant.
    """
    drawn = []
    words = {"found": "", "missed": ", missed", "false": ", false alarm", "crowd": ", crowd"}
    chosen = list(zip(order.tolist(), states, strict=True))
    # What the picture is about is drawn last, in front of the others.
    chosen = [c for c in chosen if c[0] not in focus][:_MOST_BOXES] + [c for c in chosen if c[0] in focus]
    for at, state in chosen:
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
