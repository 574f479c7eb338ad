"""Another source with its images divided anew, by ratio and by group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from pipelines.ledger import LedgerEntry
from pipelines.records import ImageRecord, LabelMap
from pipelines.sources import Described, ListsInputs, Source, SourceItem, open_source
from pipelines.splits import SplitRule, group_key
from pipelines.storage import FileStat


@dataclass(frozen=True, kw_only=True)
class ResplitSource:
    """A source whose ``split`` comes from a ``SplitRule``; everything else is as the inner source has it."""

    kind: ClassVar[str] = "resplit"
    inner: Source
    ratios: Mapping[str, float]
    seed: int = 0
    group_pattern: str | None = None
    group_column: str | None = None
    keep: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        *,
        source: Mapping[str, Any],
        ratios: Mapping[str, float],
        seed: int = 0,
        group_pattern: str | None = None,
        group_column: str | None = None,
        keep: Iterable[str] = (),
    ) -> ResplitSource:
        """Divide a source.

        Args:
            source: ``{"kind": ..., "options": {...}}`` of the inner source.
            ratios: split -> share, e.g. ``{"train": 0.9, "val": 0.1}``.
            seed: of the division.
            group_pattern: regular expression on the image id that gives the group; see ``pipelines.splits.group_key``.
            group_column: what gives it instead: ``group_id`` (as without this option), ``image_id`` (no groups), or a
                key of the source's ``extra``, e.g. ``patient``; images without it stand for themselves.
            keep: splits that stay as the source gives them, e.g. ``test``.
        Raises:
            ValueError: bad ratios or pattern, or whatever the inner source refuses; from ``scan``, a column that not
                one image has, or a group that is in a kept split and in another one.
        """
        if group_pattern is not None and group_column is not None:
            raise ValueError("give `group_pattern` or `group_column`, not both")
        try:
            re.compile(group_pattern or "")
        except re.error as error:
            raise ValueError(f"group_pattern {group_pattern!r} is no regular expression: {error}") from None
        SplitRule.of(ratios, seed=seed)
        return cls(
            inner=open_source(source["kind"], **source.get("options", {})),
            ratios=dict(ratios),
            seed=seed,
            group_pattern=group_pattern,
            group_column=group_column,
            keep=tuple(keep),
        )

    @property
    def options(self) -> Mapping[str, Any]:
        return {
            "source": {"kind": self.inner.kind, "options": dict(self.inner.options)},
            "ratios": dict(self.ratios),
            "seed": self.seed,
            "group_pattern": self.group_pattern,
            "group_column": self.group_column,
            "keep": list(self.keep),
        }

    @cached_property
    def _rule(self) -> SplitRule:
        return SplitRule.of(self.ratios, seed=self.seed)

    @property
    def label_map(self) -> LabelMap:
        return self.inner.label_map

    def inputs(self) -> Iterable[FileStat]:
        return self.inner.inputs() if isinstance(self.inner, ListsInputs) else ()

    def about(self) -> Mapping[str, Any]:
        return self.inner.about() if isinstance(self.inner, Described) else {}

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        column = None if self.group_column in ("group_id", "image_id") else self.group_column
        has_column, others = column is None, set[str]()
        kept: dict[str, str] = {}  # group -> split
        divided: dict[str, str] = {}
        for found in self.inner.scan():
            if isinstance(found, SourceItem) and found.split in self.keep:
                kept[self._key(found)] = found.split
            elif isinstance(found, SourceItem):
                has_column = has_column or column in found.extra
                others.update(() if has_column else found.extra)
                key = self._key(found)
                # Divided by image, the groups that the source knows are still facts.
                group = key if key != found.image_id else found.group_id if self.group_column == "image_id" else ""
                found = replace(found, split=self._rule.split_of(key), group_id=group)
                divided[key] = found.split
            yield found
        _check_apart(kept, divided)
        if not has_column:
            raise ValueError(
                f"no image has the column {column!r} to be split by; there are "
                f"{', '.join(['image_id', 'group_id', *sorted(others)])}"
            )

    def _key(self, item: SourceItem) -> str:
        if self.group_column == "image_id":
            return item.image_id
        group = item.group_id
        if self.group_column not in (None, "group_id"):
            value = item.extra.get(self.group_column)
            group = "" if value is None else str(value)
        return group_key(item.image_id, group, self.group_pattern)

    def load(self, item: SourceItem) -> ImageRecord:
        return self.inner.load(item)


def _check_apart(kept: Mapping[str, str], divided: Mapping[str, str]) -> None:
    """Raises ValueError where a group is in a kept split and, divided, in another one."""
    straddling = sorted(key for key in kept.keys() & divided.keys() if kept[key] != divided[key])
    if straddling:
        first = straddling[0]
        raise ValueError(
            f"{len(straddling)} groups would be in two splits, e.g. {first!r} in {kept[first]!r}, which is kept, and "
            f"in {divided[first]!r}: who measures on one would know it from the other. Do not keep the split, take "
            "these images out of the source, or divide by `image_id` if groups do not matter"
        )
