"""The images of a browsable gallery: which ones, with what is drawn on them, and their bytes wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import numpy as np

from pipelines.checks import BadImage
from pipelines.metrics.matches import FALSE, IGNORED, TRUE, MatchTable, match_images
from pipelines.metrics.pairing import predicted_category_ids
from pipelines.metrics.ranking import threshold_index
from pipelines.predictions import PredictionSet
from pipelines.records import Annotations, FloatArray, IntArray, LabelMap
from pipelines.schema import LabelRow
from pipelines.shards import CorruptShard, ShardRef, read_image, read_labels
from pipelines.uncertainty import Aggregate, Measure, image_uncertainty, object_uncertainty
from pipelines.versions import Dataset, EmptyDataset

Choose = Literal["random", "uncertain", "first"]
_IOU = 0.5
STATES = {TRUE: "found", FALSE: "false", IGNORED: "crowd"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BrowsedImage:
    """One image with what is known of it; category ids are the gallery's label map's.

    Attributes:
        found: predictions, with scores; None where none were made.
        truth: None where nobody has looked.
        states: of each prediction, a value of ``STATES``, or empty where there is no truth.
        met: of each truth the score of the prediction that found it, None where none did.
        uncertainty: of the predictions; 0 without any.
        reason: why a routing sent it where it is, if one did.
        error: why labelling failed, if it did.
    """

    image_id: str
    split: str
    width: int
    height: int
    found: Annotations | None
    truth: Annotations | None
    states: tuple[str, ...] = ()
    met: tuple[float | None, ...] = ()
    uncertainty: float = 0.0
    reason: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """The images of a gallery.

    Attributes:
        images: with the place of each, (number of the shard, row in the image shard), in the order of the label set.
        total: how many there were to choose from.
        label_map: of all objects.
        base: the label set whose images are shown.
    """

    images: tuple[tuple[BrowsedImage, tuple[int, int]], ...]
    total: int
    label_map: LabelMap
    base: Dataset


def choose_images(
    dataset: Dataset,
    predictions: PredictionSet | None,
    *,
    splits: Collection[str] | None,
    most: int,
    choose: Choose,
    measure: Measure,
    aggregate: Aggregate,
    seed: int = 0,
) -> Chosen:
    """At most ``most`` images of the predictions where there are some, else of the dataset.

    Raises:
        EmptyDataset: no image in these splits.
        CategoryMismatch: predictions of categories that the dataset has not.
    """
    base = dataset if predictions is None else predictions.labels
    places = [
        (number, row.row, row.image_id, _uncertainty(row, measure, aggregate))
        for number, shard in enumerate(base.shards)
        for row in read_labels(shard)
        if splits is None or row.split in splits
    ]
    if not places:
        raise EmptyDataset(f"{base.reference} has no image{_in(splits)}; it has {dict(base.splits)}")
    at = _pick(np.array([place[3] for place in places]), most, choose, seed)
    wanted = {places[i][2]: places[i][3] for i in at.tolist()}
    label_map = dataset.label_map
    to_id = None if predictions is None else predicted_category_ids(dataset, predictions)
    truths = {} if predictions is None else _annotations_of(dataset, wanted)
    scored = base.metadata["kind"] == "predictions"
    images = []
    for number, shard in enumerate(base.shards):
        for row in read_labels(shard):
            if row.image_id not in wanted:
                continue
            found = row.annotations if scored else None
            if found is not None and to_id is not None and predictions is not None:
                found = replace(found, category_ids=to_id[predictions.label_map.to_labels(found.category_ids)])
            image = BrowsedImage(
                image_id=row.image_id,
                split=row.split,
                width=row.width,
                height=row.height,
                found=found,
                truth=truths.get(row.image_id) if scored else row.annotations,
                uncertainty=wanted[row.image_id],
                reason=str(row.extra.get("route", {}).get("reason", "")),
                error=row.error or "",
            )
            images.append((image, (number, row.row)))
    if truths:
        images = list(zip(_matched([image for image, _ in images], label_map), [place for _, place in images]))
    return Chosen(images=tuple(images), total=len(places), label_map=label_map, base=base)


def _in(splits: Collection[str] | None) -> str:
    return "" if splits is None else f" in the splits {', '.join(sorted(splits))}"


def _uncertainty(row: LabelRow, measure: Measure, aggregate: Aggregate) -> float:
    scores = None if row.annotations is None else row.annotations.scores
    if scores is None:
        return 0.0
    values = object_uncertainty(scores, measure)
    return float(image_uncertainty(values, np.zeros(len(values), np.int64), 1, aggregate)[0])


def _pick(uncertainty: FloatArray, most: int, choose: Choose, seed: int) -> IntArray:
    """Ascending places of at most ``most`` images."""
    count = min(most, len(uncertainty))
    match choose:
        case "first":
            return np.arange(count)
        case "random":
            return np.sort(np.random.default_rng(seed).permutation(len(uncertainty))[:count])
        case "uncertain":
            return np.sort(np.argsort(-uncertainty, kind="stable")[:count])
        case _:
            assert_never(choose)


def _annotations_of(dataset: Dataset, wanted: Collection[str]) -> dict[str, Annotations]:
    return {
        row.image_id: row.annotations
        for shard in dataset.shards
        for row in read_labels(shard)
        if row.image_id in wanted and row.annotations is not None
    }


def _matched(images: Sequence[BrowsedImage], label_map: LabelMap) -> list[BrowsedImage]:
    """Images that have truth with what became of each object, by COCO's matching of boxes at IoU .5."""
    nothing = Annotations.empty(with_scores=True)
    both = [image for image in images if image.truth is not None]
    table = match_images(
        ((image.image_id, image.truth or nothing) for image in both),
        ((image.image_id, image.found or nothing) for image in both),
        label_map,
    )
    told = _outcomes(table)
    done = []
    for image in images:
        if image.truth is None:
            done.append(image)
            continue
        states, met = told.get(image.image_id, ({}, []))
        found = 0 if image.found is None else len(image.found)
        done.append(replace(image, states=tuple(states.get(i, "crowd") for i in range(found)), met=tuple(met)))
    return done


def _outcomes(table: MatchTable) -> dict[str, tuple[dict[int, str], list[float | None]]]:
    """By image: the state of each detection by its place, and the score that found each truth."""
    at = threshold_index(table.settings, _IOU)
    told: dict[str, tuple[dict[int, str], list[float | None]]] = {i: ({}, []) for i in table.image_ids}
    outcomes = table.outcomes[:, 0, at].tolist()
    for image, place, outcome in zip(table.images.tolist(), table.det_index.tolist(), outcomes, strict=True):
        told[table.image_ids[image]][0][place] = STATES[outcome]
    takers = table.truths_matched(at).tolist()
    for image, taker in zip(table.truth_images.tolist(), takers, strict=True):
        told[table.image_ids[image]][1].append(float(table.scores[taker]) if taker >= 0 else None)
    return told


def read_images(chosen: Chosen) -> Iterator[tuple[BrowsedImage, Callable[[], bytes]]]:
    """Each image with a way to read it, which raises BadImage for what is wrong with that image alone.

    An archive is read in its own order, and what it does not give is left out.
    """
    if chosen.base.has_images:
        for image, (shard, row) in chosen.images:
            yield image, _reader(chosen.base.shards[shard], row)
        return
    by_id: Mapping[str, BrowsedImage] = {image.image_id: image for image, _ in chosen.images}
    for record in PredictionSet(labels=chosen.base).records():
        if record.image_id in by_id:
            yield by_id[record.image_id], _given(record.image)


def _reader(shard: ShardRef, row: int) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return read_image(shard, row)
        except CorruptShard as error:
            raise BadImage(str(error)) from None
        except FileNotFoundError:
            raise BadImage(f"{shard.image_path} or its index is missing; restore it from a copy") from None

    return read


def _given(image: bytes) -> Callable[[], bytes]:
    return lambda: image
