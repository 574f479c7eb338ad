"""LVIS v1: COCO's JSON with federated labels.

An image lists the categories verified to be absent (``neg_category_ids``) and those of which not every object is
annotated (``not_exhaustive_category_ids``); both become columns of the labels. ``frequency``, ``synset`` and the like
stay with the categories. Images have no ``file_name``: the end of ``coco_url`` is the path below the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pipelines.ledger import LedgerEntry
from pipelines.records import ImageRecord, LabelMap
from pipelines.sources import SourceItem
from pipelines.sources.coco import CocoSource
from pipelines.storage import FileStat, Store, absolute


@dataclass(frozen=True, kw_only=True)
class LvisSource:
    """An LVIS data set of one or more splits; read as COCO is."""

    kind: ClassVar[str] = "lvis"
    coco: CocoSource

    @classmethod
    def open(
        cls,
        *,
        annotations: str | None = None,
        images: str | None = None,
        split: str | None = None,
        splits: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> LvisSource:
        """Open by URIs of any fsspec scheme.

        Args:
            annotations: ``lvis_v1_train.json``; with ``images`` and ``split`` for a single split.
            images: the folder that holds ``train2017`` and ``val2017``: LVIS takes images from both. Guessed beside
                the annotation file, or one folder above, where None.
            split: its name; guessed from the file's name where None.
            splits: name -> {annotations, images} instead, for several.
        Raises:
            ValueError: as for COCO.
        """
        if annotations is not None:
            images = images or _guess_images(absolute(annotations))
            coco = CocoSource.open(annotations=annotations, images=images, split=split)
        else:
            coco = CocoSource.open(splits=splits)
        # LVIS has no crowd flags, but files that are made like it do.
        return cls(coco=replace(coco, noted=("iscrowd",)))

    @property
    def options(self) -> Mapping[str, Any]:
        splits = self.coco.options["splits"]
        return {"splits": {name: {k: s[k] for k in ("annotations", "images")} for name, s in splits.items()}}

    @property
    def label_map(self) -> LabelMap:
        return self.coco.label_map

    def inputs(self) -> Iterator[FileStat]:
        return self.coco.inputs()

    def about(self) -> Mapping[str, Any]:
        return self.coco.about()

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        return self.coco.scan()

    def load(self, item: SourceItem) -> ImageRecord:
        return self.coco.load(item)


def _guess_images(annotations: str) -> str | None:
    folder = annotations.rpartition("/")[0]
    for uri in (folder, folder.rpartition("/")[0]):
        if {"train2017", "val2017"} & set(Store.open(uri).children()):
            return uri
    return None
