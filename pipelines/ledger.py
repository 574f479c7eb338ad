"""Where every image and every annotation of a source went: nothing is dropped or mended in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Fate = Literal["imported", "mended", "dropped", "quarantined"]
Subject = Literal["image", "annotation"]
FATES: tuple[Fate, ...] = get_args(Fate)
SUBJECTS: tuple[Subject, ...] = get_args(Subject)
MAX_LISTED = 10_000


class LedgerMismatch(ValueError):
    """The sums do not add up to what the source holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One thing that was not simply imported.

    Attributes:
        subject: what the entry is about.
        fate: ``imported`` is in the dataset as it was, and there is a word to say of it; ``mended`` is there, changed;
            ``dropped`` and ``quarantined`` are not.
        reason: a fixed phrase, so that reasons can be counted; the particulars are in ``detail``.
        image_id: the image concerned.
        annotation_id: the source's, None for an image.
        detail: values before and after.
        annotations: how many annotations share an image's fate (only for images that are left out).
    """

    subject: Subject
    fate: Fate
    reason: str
    image_id: str
    annotation_id: int | None = None
    detail: str = ""
    annotations: int = 0

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Counts by subject and fate, counts by reason, and the entries themselves.

    ``mended`` counts are apart from ``imported``: seen = imported + mended + dropped + quarantined.
    """

    counts: dict[str, dict[str, int]] = field(
        default_factory=lambda: {subject: dict.fromkeys(FATES, 0) for subject in SUBJECTS}
    )
    reasons: dict[str, int] = field(default_factory=dict)
    entries: list[LedgerEntry] = field(default_factory=list)

    def imported(self, subject: Subject, count: int = 1) -> None:
        self.counts[subject]["imported"] += count

    def add(self, entry: LedgerEntry) -> None:
        self.counts[entry.subject][entry.fate] += 1
        self.counts["annotation"][entry.fate] += entry.annotations
        key = f"{entry.subject} {entry.fate}: {entry.reason}"
        self.reasons[key] = self.reasons.get(key, 0) + 1
        if len(self.entries) < MAX_LISTED:
            self.entries.append(entry)

    def extend(self, entries: Iterable[LedgerEntry]) -> None:
        for entry in entries:
            self.add(entry)

    def merge(self, other: Ledger) -> None:
        for subject in SUBJECTS:
            for fate in FATES:
                self.counts[subject][fate] += other.counts[subject][fate]
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.entries.extend(other.entries[: MAX_LISTED - len(self.entries)])

    def seen(self, subject: Subject) -> int:
        return sum(self.counts[subject].values())

    def kept(self, subject: Subject) -> int:
        return self.counts[subject]["imported"] + self.counts[subject]["mended"]

    def check(self, *, images: int, annotations: int) -> None:
        """Compare with what the source holds.

        Raises:
            LedgerMismatch: something was lost or counted twice.
        """
        for subject, expected in (("image", images), ("annotation", annotations)):
            if self.seen(subject) != expected:  # type: ignore[arg-type]
                raise LedgerMismatch(
                    f"the source holds {expected} {subject}s but {self.seen(subject)} are accounted for "  # type: ignore[arg-type]
                    f"({self.counts[subject]}); nothing is committed: this is a defect of the source's reader"
                )

    def sums(self) -> dict[str, Any]:
        """Counts and reasons without the entries, for a commit's metadata."""
        return {
            "images": {"seen": self.seen("image"), **self.counts["image"]},
            "annotations": {"seen": self.seen("annotation"), **self.counts["annotation"]},
            "reasons": dict(sorted(self.reasons.items())),
        }

    def to_json(self) -> dict[str, Any]:
        return {**self.sums(), "entries": [entry.to_json() for entry in self.entries]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ledger:
        return cls(
            counts={subject: {fate: int(values[f"{subject}s"][fate]) for fate in FATES} for subject in SUBJECTS},
            reasons={str(k): int(v) for k, v in values.get("reasons", {}).items()},
            entries=[LedgerEntry(**entry) for entry in values.get("entries", ())],
        )
