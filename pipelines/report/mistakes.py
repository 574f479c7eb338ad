"""The worst mistakes of each kind, from the match table: which ones, in words, and on the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.metrics.errors import ERROR_KINDS, ErrorBreakdown, ErrorKind, ErrorTable
from pipelines.metrics.matches import MatchTable
from pipelines.metrics.pairing import PairedImage
from pipelines.records import LabelMap
from pipelines.report.gallery import Picture, matches_of, picture, read_thumbnails
from pipelines.versions import Dataset

BYTES_OF_MISTAKES = 700_000

MEANING: dict[ErrorKind, str] = {
    "classification": "The place is right, the class is not.",
    "localisation": "The class is right, the place only nearly.",
    "both": "Near an object of another class, and not well placed either.",
    "duplicate": "An object that a detection of a higher score has found already.",
    "background": "Nothing is there.",
    "missed": "Objects of which nothing was found.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One mistake on its image."""

    picture: Picture
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MistakesOfKind:
    """What the page shows of one kind of error.

    Attributes:
        count: of all of them.
        delta_ap: what AP50 would gain without them; None without truth.
    """

    kind: ErrorKind
    meaning: str
    count: int
    delta_ap: float | None
    examples: tuple[Example, ...]


def worst_rows(table: MatchTable, errors: ErrorTable, kind: ErrorKind, count: int) -> list[int]:
    """At most ``count`` rows of one kind, at most one an image: of the highest score, or the largest truths."""
    rows = errors.rows_of(kind)
    images = table.truth_images if kind == "missed" else table.images
    weight = table.truth_area if kind == "missed" else table.scores
    chosen: dict[int, int] = {}
    for row in rows[np.argsort(-weight[rows], kind="stable")].tolist():
        if len(chosen) == count:
            break
        chosen.setdefault(int(images[row]), row)
    return list(chosen.values())


def worst_mistakes(
    dataset: Dataset,
    images: Sequence[PairedImage],
    label_map: LabelMap,
    table: MatchTable,
    errors: ErrorTable,
    breakdown: ErrorBreakdown,
    *,
    threshold: float,
    each: int = 3,
) -> list[MistakesOfKind]:
    """Every kind with its worst examples; reads only the images that are shown.

    Args:
        dataset: has the images.
        images: truth and predictions, of which the table was made.
        label_map: the categories of both.
        table: of matches.
        errors, breakdown: of that table.
        threshold: detections of this score or more are drawn, and the mistake itself.
        each: examples of a kind.
    """
    by_id = {image.image_id: image for image in images}
    chosen = {kind: worst_rows(table, errors, kind, each) for kind in ERROR_KINDS}

    def image_of(kind: ErrorKind, row: int) -> str:
        return table.image_ids[(table.truth_images if kind == "missed" else table.images)[row]]

    wanted = list(dict.fromkeys(image_of(kind, row) for kind, rows in chosen.items() for row in rows))
    thumbnails = read_thumbnails(dataset, wanted, BYTES_OF_MISTAKES)
    categories = {c.category_id: c for c in label_map.categories}
    shown = []
    for kind, rows in chosen.items():
        examples = []
        for row in rows:
            image = by_id[image_of(kind, row)]
            if image.image_id not in thumbnails:
                continue
            least = threshold if kind == "missed" else min(threshold, float(table.scores[row]))
            (found,) = matches_of(table, [image], least)
            card = picture(
                image, found, categories, thumbnails[image.image_id], why=kind, focus=_focus(table, errors, kind, row)
            )
            examples.append(Example(picture=card, words=describe(table, errors, kind, row)))
        shown.append(
            MistakesOfKind(
                kind=kind,
                meaning=MEANING[kind],
                count=breakdown.overall.counts[kind],
                delta_ap=breakdown.overall.delta_ap[kind],
                examples=tuple(examples),
            )
        )
    return shown


def describe(table: MatchTable, errors: ErrorTable, kind: ErrorKind, row: int) -> str:
    """One mistake in a few words."""
    names = table.label_map.names
    if kind == "missed":
        return f"{names[table.truth_labels[row]]} of {table.truth_area[row]:,.0f} px²"
    told = f"{names[table.labels[row]]} {table.scores[row]:.2f}"
    truth = _truth_meant(table, errors, kind, row)
    match kind:
        case "classification":
            return f"{told} on {names[table.truth_labels[truth]]}"
        case "localisation" | "duplicate":
            return f"{told}, IoU {table.best_iou[row]:.2f}"
        case "both":
            return f"{told} near {names[table.truth_labels[truth]]}, IoU {table.best_iou_other[row]:.2f}"
        case _:
            return told


def _truth_meant(table: MatchTable, errors: ErrorTable, kind: ErrorKind, row: int) -> int:
    """Its row, or -1."""
    match kind:
        case "missed":
            return row
        case "classification" | "localisation":
            return int(errors.truths[row])
        case "duplicate":
            return int(table.best_truth[row])
        case "both":
            return int(table.best_truth_other[row])
        case _:
            return -1


def _focus(table: MatchTable, errors: ErrorTable, kind: ErrorKind, row: int) -> tuple[list[int], list[int]]:
    """Indices in their image of the truth and of the detection that a mistake is about."""
    truth = _truth_meant(table, errors, kind, row)
    truths = []
    if truth >= 0:
        truths = [truth - int(np.searchsorted(table.truth_images, table.truth_images[truth]))]
    return truths, [] if kind == "missed" else [int(table.det_index[row])]
