"""COCO annotation files without their images: labels for images that a dataset has already."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.ledger import LedgerEntry
from pipelines.records import Annotations
from pipelines.sources import SourceItem
from pipelines.sources.coco import CocoSource, CocoSplit
from pipelines.storage import FileStat, absolute, split_uri

NOT_THERE = "the dataset has no such image"


@dataclass(frozen=True, kw_only=True)
class CocoLabels(CocoSource):
    """A COCO source whose images are those of a dataset: ``file_name`` is the ``image_id``.

    Where two files have the same ``file_name``, ids are prefixed with the names of their splits.
    """

    image_ids: frozenset[str]

    @classmethod
    def of(
        cls, annotations: str | Mapping[str, str], image_ids: Collection[str], *, keypoints: Sequence[str] = ()
    ) -> CocoLabels:
        """Open by URIs of any fsspec scheme.

        Args:
            annotations: an annotation file, or split -> annotation file.
            image_ids: of the dataset.
            keypoints: ``person_keypoints_*.json``; for a single annotation file.
        Raises:
            ValueError: a file is missing.
        """
        files = {"": annotations} if isinstance(annotations, str) else dict(annotations)
        for uri in (*files.values(), *keypoints):
            store, name = split_uri(uri)
            if not store.exists(name):
                raise ValueError(f"no COCO annotation file at {store.join(name)}")
        points = tuple(absolute(uri) for uri in keypoints)
        splits = tuple(
            CocoSplit(name=name, annotations=absolute(uri), images=name, keypoints=points)
            for name, uri in files.items()
        )
        return cls(splits=splits, image_ids=frozenset(image_ids))

    def list_images(self) -> dict[str, dict[str, FileStat]]:
        there = {image_id: FileStat(path=image_id, size=0, etag="") for image_id in self.image_ids}
        prefixed = {
            split.name: {
                image_id.removeprefix(f"{split.name}/"): stat
                for image_id, stat in there.items()
                if split.name and image_id.startswith(f"{split.name}/")
            }
            for split in self.splits
        }
        return {split.images: prefixed[split.name] | there for split in self.splits}

    def inputs(self) -> Iterator[FileStat]:
        for uri in sorted({uri for s in self.splits for uri in (s.annotations, *s.keypoints)}):
            store, name = split_uri(uri)
            yield replace(store.stat(name), path=uri)

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        for found in super().scan():
            if isinstance(found, LedgerEntry) and found.fate == "quarantined":
                found = replace(found, fate="dropped", reason=NOT_THERE, detail="")
            yield found

    def labels_of(self, item: SourceItem) -> Annotations | None:
        return item.annotations
