"""The rules by which a model's labels are taken, looked at or left out, and what they say of each image.

Legend: I images, N objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.class_thresholds import check_class_names
from pipelines.records import BoolArray, FloatArray, IntArray, LabelMap
from pipelines.uncertainty import AGGREGATES, MEASURES, Aggregate, Measure, image_uncertainty, object_uncertainty

Route = Literal["accept", "review", "reject"]
ROUTES: tuple[Route, ...] = get_args(Route)
REASONS = (
    "every score is sure",
    "a score between the thresholds",
    "no score reaches the reject threshold",
    "uncertainty above the limit",
    "drawn for an audit",
    "over the review budget",
    "labelling failed",
)
_SURE, _DOUBT, _NOTHING, _UNCERTAIN, _AUDIT, _OVER_BUDGET, _FAILED = range(len(REASONS))


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRules:
    """What decides about an image.

    An object is sure from the accept threshold of its class on, noise below its reject threshold, else doubtful.
    An image with a doubtful object is reviewed, one whose objects are all sure but for noise is accepted.

    Attributes:
        accept: score from which an object is sure, 0 to 1.
        reject: score below which an object is noise, at most ``accept``; accepted and reviewed images lose theirs.
        accept_class, reject_class: the same for single classes, by name.
        empty: where images go that have nothing but noise: accept (as images without objects), review or reject.
        uncertainty: of an object: margin 1 - |2s - 1|, entropy of its score s in bits, or least_confident 1 - s.
        aggregate: of an image: the max, mean or sum over its objects that are not noise.
        max_uncertainty: images above it are reviewed though all their scores are sure; None asks for the scores alone.
        audit: share of the accepted images that is reviewed all the same, always the same ones, 0 to 1.
        review_budget: most images to review; of more the least uncertain ones are rejected. None is no limit.
    """

    accept: float = 0.7
    reject: float = 0.3
    accept_class: Mapping[str, float] = field(default_factory=dict)
    reject_class: Mapping[str, float] = field(default_factory=dict)
    empty: Route = "reject"
    uncertainty: Measure = "margin"
    aggregate: Aggregate = "max"
    max_uncertainty: float | None = None
    audit: float = 0.0
    review_budget: int | None = None

    def __post_init__(self) -> None:
        named = {f"{kind}_class[{name!r}]": v for kind in ("accept", "reject") for name, v in self._of(kind).items()}
        for what, value in {"accept": self.accept, "reject": self.reject, "audit": self.audit, **named}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{what}={value} must lie between 0 and 1")
        for what, chosen, known in (
            ("empty", self.empty, ROUTES),
            ("uncertainty", self.uncertainty, MEASURES),
            ("aggregate", self.aggregate, AGGREGATES),
        ):
            if chosen not in known:
                raise ValueError(f"{what}={chosen!r}: choose one of {', '.join(known)}")
        for what, number in (("max_uncertainty", self.max_uncertainty), ("review_budget", self.review_budget)):
            if number is not None and not number >= 0:
                raise ValueError(f"{what}={number} must be at least 0, or None")
        for name in (None, *sorted({*self.accept_class, *self.reject_class})):
            low, high = self._threshold("reject", name), self._threshold("accept", name)
            if low > high:
                of = "" if name is None else f" of class {name!r}"
                raise ValueError(f"the reject threshold {low}{of} is above its accept threshold {high}")

    def _of(self, kind: str) -> Mapping[str, float]:
        return self.accept_class if kind == "accept" else self.reject_class

    def _threshold(self, kind: str, name: str | None) -> float:
        general = self.accept if kind == "accept" else self.reject
        return general if name is None else self._of(kind).get(name, general)

    def thresholds(self, label_map: LabelMap) -> tuple[FloatArray, FloatArray]:
        """(C,) accept and (C,) reject thresholds of the classes.

        Raises:
            ValueError: a threshold of a class that the label map has not.
        """
        check_class_names({*self.accept_class, *self.reject_class}, label_map)
        accept, reject = ([self._threshold(kind, n) for n in label_map.names] for kind in ("accept", "reject"))
        return np.array(accept, np.float64), np.array(reject, np.float64)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"accept_class": dict(self.accept_class), "reject_class": dict(self.reject_class)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decisions:
    """What became of I images.

    Attributes:
        routes: (I,) places in ``ROUTES``.
        reasons: (I,) places in ``REASONS``.
        uncertainty: (I,)
    """

    routes: NDArray[np.int8]
    reasons: NDArray[np.int8]
    uncertainty: FloatArray

    def reason_texts(self, part: slice) -> list[str]:
        """The reasons of some images."""
        return [REASONS[at] for at in self.reasons[part].tolist()]

    def counts(self) -> dict[Route, dict[str, int]]:
        """Images by route and reason."""
        told: dict[Route, dict[str, int]] = {}
        for number, route in enumerate(ROUTES):
            counts = np.bincount(self.reasons[self.routes == number], minlength=len(REASONS)).tolist()
            told[route] = {reason: count for reason, count in zip(REASONS, counts, strict=True) if count}
        return told


def believed(scores: FloatArray, labels: IntArray, reject: FloatArray) -> BoolArray:
    """(N,) the objects that are not noise."""
    return scores >= reject[labels]


def decide(
    rules: RouteRules,
    label_map: LabelMap,
    *,
    image_ids: Sequence[str],
    failed: BoolArray,
    images: IntArray,
    labels: IntArray,
    scores: FloatArray,
) -> Decisions:
    """Route images, without the budget, which knows all of them; see ``keep_budget``.

    Args:
        image_ids: I; an audit draws by them.
        failed: (I,) those that could not be labelled.
        images: (N,) int64, the image of each object.
        labels: (N,) in 0..C-1.
        scores: (N,) in [0, 1].
    """
    count = len(image_ids)
    accept, reject = rules.thresholds(label_map)
    kept = believed(scores, labels, reject)
    images, labels, scores = images[kept], labels[kept], scores[kept]
    some = np.bincount(images, minlength=count) > 0
    doubtful = np.bincount(images[scores < accept[labels]], minlength=count) > 0
    uncertainty = image_uncertainty(object_uncertainty(scores, rules.uncertainty), images, count, rules.aggregate)

    reasons = np.where(doubtful, _DOUBT, np.where(some, _SURE, _NOTHING)).astype(np.int8)
    routes = np.array([_route("accept"), _route("review"), _route(rules.empty)], np.int8)[reasons]

    def move(which: BoolArray, reason: int, route: Route) -> None:
        reasons[which], routes[which] = reason, _route(route)

    accepted = routes == _route("accept")
    if rules.max_uncertainty is not None:
        move(accepted & (uncertainty > rules.max_uncertainty), _UNCERTAIN, "review")
    if rules.audit:
        drawn = np.array([draw(image_id) < rules.audit for image_id in image_ids], np.bool_)
        move((routes == _route("accept")) & drawn, _AUDIT, "review")
    move(failed, _FAILED, "reject")
    return Decisions(routes=routes, reasons=reasons, uncertainty=uncertainty)


def keep_budget(found: Decisions, budget: int | None) -> Decisions:
    """At most ``budget`` images to review, the most uncertain, of equal ones the first; the others are rejected."""
    review = np.flatnonzero(found.routes == _route("review"))
    if budget is None or len(review) <= budget:
        return found
    order = np.argsort(-found.uncertainty[review], kind="stable")
    over = review[order[budget:]]
    routes, reasons = found.routes.copy(), found.reasons.copy()
    routes[over], reasons[over] = _route("reject"), _OVER_BUDGET
    return Decisions(routes=routes, reasons=reasons, uncertainty=found.uncertainty)


def draw(image_id: str) -> float:
    """A number in [0, 1) that an image always draws."""
    return int.from_bytes(hashlib.sha256(f"audit {image_id}".encode("utf-8", "replace")).digest()[:6]) / 2**48


def _route(route: Route) -> int:
    return ROUTES.index(route)
