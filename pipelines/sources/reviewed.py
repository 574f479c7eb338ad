"""What people have corrected in Label Studio or CVAT, as labels for images that a dataset has already.

No image is read: places come from the dataset's own sizes, categories are the dataset's own, so that ids stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pipelines.ledger import LedgerEntry
from pipelines.records import Annotations, LabelMap
from pipelines.sources import SourceItem
from pipelines.sources.coco_labels import NOT_THERE
from pipelines.sources.cvat import CvatSource
from pipelines.sources.frames import drawn_on
from pipelines.sources.known_images import KnownImages, missing
from pipelines.sources.label_studio import LabelStudioSource, place_percent
from pipelines.sources.listing import FoundImage, stat_uri
from pipelines.storage import FileStat

AMBIGUOUS = "several images of the dataset have this name"
NOT_DONE = "nobody has annotated the task"
_LISTED = 100


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """What both tools' labels have.

    Attributes:
        known: the images of the dataset.
        categories: of the dataset.
        expected: ids of the images that were sent out; empty where nobody says so.
    """

    known: KnownImages
    categories: LabelMap
    expected: frozenset[str] = frozenset()

    @property
    def label_map(self) -> LabelMap:
        return self.categories

    def told(self, found: SourceItem | LedgerEntry, names: Sequence[str]) -> SourceItem | LedgerEntry:
        """An image that the dataset has under none of its names, in words; every other entry as it is."""
        if isinstance(found, LedgerEntry) and found.subject == "image" and found.fate == "quarantined":
            reason = AMBIGUOUS if any(map(self.known.is_ambiguous, names)) else NOT_THERE
            return replace(found, fate="dropped", reason=reason)
        return found

    def find_by(self, names: Sequence[str]) -> FoundImage | None:
        """The dataset's image of the first name that it knows; its bytes are not looked for."""
        found = next((image for name in names if (image := self.known.find(name)) is not None), None)
        return None if found is None else FoundImage(image_id=found.image_id, uri="", size=0)

    def returns(self, items: Iterator[SourceItem | LedgerEntry]) -> dict[str, Any]:
        """How many images came back, and which of the expected ones did not (the first of them by name)."""
        back = {item.image_id for item in items if isinstance(item, SourceItem)}
        away = missing(self.expected, back)
        return {"returned": len(back), "missing": len(away), "missing_images": away[:_LISTED]}


@dataclass(frozen=True, kw_only=True)
class ReviewedLabelStudio(Reviewed, LabelStudioSource):
    """Tasks of Label Studio's JSON export, matched by ``data.image_id`` or the image's name."""

    kind: ClassVar[str] = "label_studio"

    @property
    def options(self) -> dict[str, Any]:
        return super().options | {"categories": self.categories.digest}

    def inputs(self) -> Iterator[FileStat]:
        yield stat_uri(self.annotations)

    def about(self) -> Mapping[str, Any]:
        return self.returns(self.scan())

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        for found in super().scan():
            if isinstance(found, SourceItem) and found.annotations is None:
                yield LedgerEntry(subject="image", fate="dropped", reason=NOT_DONE, image_id=found.image_id)
            else:
                yield self.told(found, self.paths_of(found.detail) if isinstance(found, LedgerEntry) else ())

    def find_image(self, task: Mapping[str, Any], reference: str) -> FoundImage | None:
        own = task["data"].get("image_id")
        names = [own] if isinstance(own, str) else []
        return self.find_by([*names, *self.paths_of(reference)])

    def labels_of(self, item: SourceItem) -> Annotations | None:
        assert item.annotations is not None
        return replace(place_percent(item.annotations, self.known.by_id[item.image_id]), scores=None)


@dataclass(frozen=True, kw_only=True)
class ReviewedCvat(Reviewed, CvatSource):
    """Images of CVAT's XML, matched by name."""

    kind: ClassVar[str] = "cvat"

    @property
    def options(self) -> dict[str, Any]:
        return super().options | {"categories": self.categories.digest}

    def inputs(self) -> Iterator[FileStat]:
        yield stat_uri(self.annotations)

    def about(self) -> Mapping[str, Any]:
        return self.returns(self.scan())

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        for found in super().scan():
            yield self.told(found, [found.image_id])

    def find_image(self, name: str) -> FoundImage | None:
        return self.find_by([name])

    def labels_of(self, item: SourceItem) -> Annotations | None:
        """Raises BadImage where the tool showed an image of another size."""
        assert item.annotations is not None
        return drawn_on(item.annotations, item.payload["shown"], self.known.by_id[item.image_id])
