"""Splits by ratio: pure functions of a key, so that an image keeps its split when others come or go.

The key is the image's id, or that of a group (a patient, a video, a place), and then a group never straddles.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

_STEPS = 2**64
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """How keys fall into splits.

    Attributes:
        names: of the splits, in the order in which they share the interval from 0 to 1.
        ratios: their shares, which sum to 1.
        seed: another one gives another, independent division.
    """

    names: tuple[str, ...]
    ratios: tuple[float, ...]
    seed: int = 0

    @classmethod
    def of(cls, ratios: Mapping[str, float], *, seed: int = 0) -> SplitRule:
        """From e.g. ``{"train": 0.8, "val": 0.1, "test": 0.1}``, or any positive numbers in that proportion.

        Raises:
            ValueError: no splits, or a share that is not a positive number.
        """
        total = math.fsum(ratios.values()) if ratios else 0.0
        bad = {name: share for name, share in ratios.items() if not (math.isfinite(share) and share > 0)}
        if not ratios or bad:
            raise ValueError(f"shares of splits must be positive numbers, e.g. train 0.8, val 0.2; not {bad or ratios}")
        return cls(names=tuple(ratios), ratios=tuple(share / total for share in ratios.values()), seed=seed)

    def split_of(self, key: str) -> str:
        """The split of a key: always the same, whatever other keys there are."""
        place = fraction_of(key, self.seed)
        edge = 0.0
        for name, share in zip(self.names[:-1], self.ratios[:-1]):
            edge += share
            if place < edge:
                return name
        return self.names[-1]


def parse_ratios(text: str) -> dict[str, float]:
    """From e.g. ``train=0.8,val=0.2``, as people type it.

    Raises:
        ValueError: not of that form, a split given twice, or a share that ``SplitRule`` refuses.
    """
    ratios: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition("="))
        if not name or name in ratios or not _NUMBER.fullmatch(share):
            raise ValueError(f"{text!r} names no shares of splits; write e.g. train=0.8,val=0.2")
        ratios[name] = float(share)
    SplitRule.of(ratios)
    return ratios


def fraction_of(key: str, seed: int = 0) -> float:
    """A number in [0, 1), uniform over keys, the same on every machine: from the sha256 of seed and key."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / _STEPS if digest[:8] != b"\xff" * 8 else math.nextafter(1.0, 0.0)


def group_key(image_id: str, group_id: str = "", pattern: str | None = None) -> str:
    """What decides an image's split.

    Args:
        image_id: of the image.
        group_id: of its group, where the source knows one.
        pattern: regular expression on ``image_id`` whose first group (or whole match) is the key, e.g. ``^([^/]+)/``
            for the first folder. An image that it does not match stands for itself.
    """
    if pattern is not None:
        found = re.search(pattern, image_id)
        if found:
            return found[1] if found.re.groups and found[1] is not None else found[0]
        return image_id
    return group_id or image_id


def straddling(keys: Sequence[str], splits: Sequence[str]) -> dict[str, list[str]]:
    """Groups that are in more than one split: key -> names of its splits. Empty where all is well.

    Args:
        keys: one an image, from ``group_key``.
        splits: one an image.
    """
    found: dict[str, set[str]] = {}
    for key, split in zip(keys, splits, strict=True):
        found.setdefault(key, set()).add(split)
    return {key: sorted(names) for key, names in found.items() if len(names) > 1}


def edges(rule: SplitRule) -> list[tuple[str, float, float]]:
    """The part of [0, 1) that each split takes, for people and tests."""
    sums = [0.0]
    for share in rule.ratios:
        sums.append(sums[-1] + share)
    sums[-1] = 1.0
    return [(name, low, high) for name, (low, high) in zip(rule.names, pairwise(sums), strict=True)]
