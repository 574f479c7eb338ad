"""The images of a browsable gallery: which ones, with what is drawn on them, and their bytes wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.archive_images import ArchiveImage, read_archive_images, read_places
from pipelines.checks import BadImage
from pipelines.in_order import in_order
from pipelines.metrics.matches import FALSE, IGNORED, TRUE, MatchTable, match_images
from pipelines.metrics.pairing import predicted_category_ids
from pipelines.metrics.ranking import threshold_index
from pipelines.predictions import PredictionSet, archive_image
from pipelines.records import Annotations, FloatArray, IntArray, LabelMap
from pipelines.schema import LabelRow
from pipelines.shards import CorruptShard, ShardRef, read_image, read_label_columns, read_labels
from pipelines.uncertainty import Aggregate, Measure, image_uncertainty, object_uncertainty
from pipelines.versions import Dataset, EmptyDataset

Choose = Literal["random", "uncertain", "first"]
# (number of the shard, row in the image shard), or where an image lies that is in no dataset.
Place = tuple[int, int] | ArchiveImage
_READERS = 4  # label files that are fetched at once
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
        images: with the place of each, in the order of the label set.
        total: how many there were to choose from.
        label_map: of all objects.
        base: the label set whose images are shown.
    """

    images: tuple[tuple[BrowsedImage, Place], ...]
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
    scored = base.metadata["kind"] == "predictions"
    survey = _survey(base, splits, (measure, aggregate) if scored else None)
    total = int(survey.starts[-1])
    if not total:
        raise EmptyDataset(f"{base.reference} has no image{_in(splits)}; it has {dict(base.splits)}")
    rows = list(_rows_at(base, survey, _pick(survey.uncertainty, most, choose, seed)))
    label_map = dataset.label_map
    to_id = None if predictions is None else predicted_category_ids(dataset, predictions)
    truths = {} if predictions is None else _annotations_of(dataset, {row.image_id for row, _, _ in rows})
    images = []
    for row, uncertainty, _ in rows:
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
            uncertainty=uncertainty,
            reason=str(row.extra.get("route", {}).get("reason", "")),
            error=row.error or "",
        )
        images.append(image)
    if truths:
        images = _matched(images, label_map)
    places = [place for _, _, place in rows]
    return Chosen(images=tuple(zip(images, places, strict=True)), total=total, label_map=label_map, base=base)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Survey:
    """What choosing needs of every image, a few bytes each.

    Attributes:
        places: (N,) of the images that there are to choose from, each in its label file.
        uncertainty: (N,) of their predictions; 0 without any.
        starts: (S + 1,) at which of these each label file begins.
    """

    places: IntArray
    uncertainty: FloatArray
    starts: IntArray


def _survey(base: Dataset, splits: Collection[str] | None, measures: tuple[Measure, Aggregate] | None) -> _Survey:
    parts = list(in_order(lambda shard: _survey_shard(shard, splits, measures), base.shards, threads=_READERS))
    return _Survey(
        places=np.concatenate([places for places, _ in parts]),
        uncertainty=np.concatenate([uncertainty for _, uncertainty in parts]),
        starts=np.cumsum([0, *(len(places) for places, _ in parts)]),
    )


def _survey_shard(
    shard: ShardRef, splits: Collection[str] | None, measures: tuple[Measure, Aggregate] | None
) -> tuple[IntArray, FloatArray]:
    table = read_label_columns(shard, ["split", *(["objects.score"] if measures else [])])
    uncertainty = np.zeros(table.num_rows)
    if measures is not None:
        measure, aggregate = measures
        scores = pc.struct_field(table["objects"].combine_chunks(), "score")
        values = object_uncertainty(np.asarray(pc.list_flatten(scores), np.float64), measure)
        owners = np.asarray(pc.list_parent_indices(scores), np.int64)
        uncertainty = image_uncertainty(values, owners, table.num_rows, aggregate)
    chosen = np.ones(table.num_rows, np.bool_)
    if splits is not None:
        chosen = np.asarray(pc.is_in(table["split"], value_set=pa.array(list(splits), pa.string())))
    places = np.flatnonzero(chosen)
    return places, uncertainty[places]


def _rows_at(base: Dataset, survey: _Survey, at: IntArray) -> Iterator[tuple[LabelRow, float, Place]]:
    """The chosen rows with their uncertainty and place; label files without any are not decoded."""
    cuts = np.searchsorted(at, survey.starts)
    for number, shard in enumerate(base.shards):
        mine = at[cuts[number] : cuts[number + 1]]
        if not len(mine):
            continue
        rows = read_labels(shard)
        elsewhere = None if base.has_images else read_places(shard)
        for place, uncertainty in zip(survey.places[mine].tolist(), survey.uncertainty[mine].tolist(), strict=True):
            row = rows[place]
            yield row, uncertainty, (number, row.row) if elsewhere is None else archive_image(row, elsewhere[place])


def _in(splits: Collection[str] | None) -> str:
    return "" if splits is None else f" in the splits {', '.join(sorted(splits))}"


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
    """Each image with a way to read it, which raises BadImage for what is wrong with that image alone."""
    placed: list[tuple[BrowsedImage, ArchiveImage]] = []
    for image, place in chosen.images:
        if isinstance(place, ArchiveImage):
            placed.append((image, place))
        else:
            shard, row = place
            yield image, _reader(chosen.base.shards[shard], row)
    if placed:
        where = PredictionSet(labels=chosen.base).provenance["input"]
        members = {place.place.member for _, place in placed}
        for image, content in read_archive_images(where["kind"], where["uri"], placed, members):
            yield image, _given(content)


def _reader(shard: ShardRef, row: int) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return read_image(shard, row)
        except CorruptShard as error:
            raise BadImage(str(error)) from None
        except FileNotFoundError:
            raise BadImage(f"{shard.image_path} or its index is missing; restore it from a copy") from None

    return read


def _given(content: bytes | BadImage) -> Callable[[], bytes]:
    def read() -> bytes:
        if isinstance(content, BadImage):
            raise content
        return content

    return read
