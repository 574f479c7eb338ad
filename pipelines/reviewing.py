"""Labels that came back from people, or that a routing accepted, as sources for ``relabelling.add_labels``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from pipelines.ledger import LedgerEntry
from pipelines.records import Annotations, ImageRecord, LabelMap
from pipelines.schema import STORED_FRAME
from pipelines.shards import ShardRef, read_image_columns, read_label_columns
from pipelines.sources import SourceItem
from pipelines.sources.known_images import KnownImage, KnownImages
from pipelines.sources.listing import check_file
from pipelines.sources.reviewed import ReviewedCvat, ReviewedLabelStudio
from pipelines.storage import redact
from pipelines.versions import Dataset, open_dataset

Tool = Literal["label_studio", "cvat"]


def reviewed_labels(
    reference: str,
    tool: Tool,
    annotations: str,
    *,
    sent: str | None = None,
    image_key: str | None = None,
) -> ReviewedLabelStudio | ReviewedCvat:
    """What came back from a labelling tool, for the images of a dataset; categories are the dataset's.

    Args:
        reference: of the images: the label set that was exported, or any other of the dataset.
        tool: whose export it is.
        annotations: the exported file: Label Studio's JSON, CVAT's XML for images 1.1.
        sent: reference of the label set that was exported, whose categories are taken and whose images that did not
            come back are told; None where it is ``reference`` itself.
        image_key: of a Label Studio task's ``data``, where it is not ``image``.
    Raises:
        ValueError: no such file; no categories to read by.
    """
    images, given = open_dataset(reference), open_dataset(sent or reference)
    if not len(given.label_map):
        raise ValueError(
            f"{redact(given.reference)} has no categories to read {annotations} by; give the label set that was sent "
            "out: sent=URI@labels/<set>"
        )
    expected = sent is not None or given.metadata["kind"] == "predictions"
    common: dict[str, Any] = {
        "annotations": check_file(annotations, "file of corrected labels"),
        "images": "",
        "known": KnownImages.of(known_images(images)),
        "categories": given.label_map,
        "expected": frozenset(given.index()["image_id"].to_pylist() if expected else ()),
    }
    if tool == "label_studio":
        return ReviewedLabelStudio(**common, image_key=image_key)
    return ReviewedCvat(**common)


def known_images(dataset: Dataset) -> Iterator[KnownImage]:
    """Every image's size and turn; image files are looked into only where EXIF turns one."""
    for shard in dataset.shards:
        table = read_label_columns(shard, ["image_id", "width", "height", "row", "box_frame"]).to_pydict()
        turned = any(frame == STORED_FRAME for frame in table["box_frame"])
        turns = _orientations(shard) if turned else {}
        for image_id, width, height, row in zip(*(table[n] for n in ("image_id", "width", "height", "row"))):
            yield KnownImage(image_id=image_id, width=width, height=height, exif_orientation=turns.get(row, 1))


def _orientations(shard: ShardRef) -> dict[int, int]:
    found = read_image_columns(shard, ["exif_orientation"])["exif_orientation"].to_pylist()
    return {row: turn or 1 for row, turn in enumerate(found)}


@dataclass(frozen=True, kw_only=True)
class LabelSetLabels:
    """The labels of a label set, a model's too, for other images sets of the dataset: what was accepted becomes truth.

    Scores are left out. Images that nobody has looked at, or on which the model failed, are not offered.
    """

    kind: ClassVar[str] = "labels"
    labels: Dataset

    @classmethod
    def of(cls, labels: str) -> LabelSetLabels:
        """Open by a reference.

        Args:
            labels: reference of the label set.
        """
        return cls(labels=open_dataset(labels))

    @property
    def options(self) -> Mapping[str, Any]:
        return {"labels": redact(self.labels.reference), "digest": self.labels.digest}

    @cached_property
    def label_map(self) -> LabelMap:
        return self.labels.label_map

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        for image_id, _, width, height, found in self.labels.annotations():
            yield SourceItem(
                image_id=image_id,
                uri=self.labels.uri,
                annotations=replace(found, scores=None),
                declared_size=(width, height),
            )

    def labels_of(self, item: SourceItem) -> Annotations | None:
        return item.annotations

    def load(self, item: SourceItem) -> ImageRecord:
        return self.labels.read(item.image_id)
