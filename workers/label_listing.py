"""What there is to label: a dataset version, or images where they lie, listed once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.credentials import check_options
from pipelines.jobs import make_plan_id
from pipelines.ledger import LedgerEntry
from pipelines.references import EmptyDataset
from pipelines.sources import ListsInputs, Source, SourceItem, open_source
from pipelines.sources.archive import archive_kind, input_files, open_archive, refusal_entry
from pipelines.sources.archive_formats import IMAGE_SUFFIXES, Member, Refused, listing_digest
from pipelines.storage import absolute, redact
from pipelines.versions import Dataset, list_label_sets, open_dataset
from workers.label_config import LabelConfig
from workers.label_job import InputKind

_PATTERN = re.compile(r"\{\d+\.\.\d+\}")
_LIST_SUFFIXES = (".txt", ".urls")
_BATCH = 4096
LISTING = pa.schema(
    [
        ("name", pa.string()),  # the image id
        # Of the tar (WebDataset) or of the image, without credentials (URL list); null in an archive.
        ("uri", pa.string()),
        ("offset", pa.int64()),  # these five as in ``Member``; of a URL list the place of its line
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("method", pa.int32()),
    ]
)
"""An image a row, of an input that is no dataset. In Arrow: as objects a million images would take a gigabyte."""


class ListingWriter:
    """Writes images into a ``LISTING`` as they pass."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._waiting: list[Mapping[str, Any]] = []

    def add(self, image: Mapping[str, Any]) -> None:
        """Columns of ``LISTING``; those that are not named are null."""
        self._waiting.append(image)
        if len(self._waiting) == _BATCH:
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return pa.Table.from_batches(self._batches, schema=LISTING)

    def _flush(self) -> None:
        columns = [pa.array([image.get(field.name) for image in self._waiting], field.type) for field in LISTING]
        self._batches.append(pa.RecordBatch.from_arrays(columns, schema=LISTING))
        self._waiting = []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelInput:
    """What is labelled.

    Attributes:
        kind: a dataset version, or images where they lie.
        uri: of the dataset, the folder, the archive, the tars or the list.
        reference: how provenance names it, without credentials.
        digest: of its content; where images lie elsewhere of their listing with sizes and etags or modification times,
            of a URL list only of its lines.
        num_images: to label.
        dataset: None for all others.
        listing: of all others, see ``LISTING``.
        refused: of all others, what is not labelled.
    """

    kind: InputKind
    uri: str
    reference: str
    digest: str
    num_images: int
    dataset: Dataset | None = None
    listing: pa.Table | None = None
    refused: tuple[Refused, ...] = ()


def open_input(config: LabelConfig) -> LabelInput:
    """Open what the config names; what is no dataset is listed.

    Raises:
        DatasetNotFound, EmptyDataset, FileNotFoundError, ValueError: in a user's words.
    """
    kind = _kind(config)
    if kind == "dataset":
        return _dataset_input(open_dataset(config.input), config.splits)
    if config.splits is not None:
        raise ValueError(f"splits={list(config.splits)}: what is no dataset has no splits; leave them out")
    match kind:
        case "archive":
            return _archive_input(absolute(config.input))
        case "webdataset":
            # No classes: nobody asks what is annotated, so the tars are passed once.
            return _source_input(kind, absolute(config.input), open_source(kind, uri=config.input, classes=()))
        case "url_list":
            return _source_input(kind, absolute(config.input), open_source(kind, uri=config.input))


def _kind(config: LabelConfig) -> InputKind:
    if config.input_format != "auto":
        return config.input_format
    if _PATTERN.search(config.input):
        return "webdataset"
    if "@labels/" in config.input or list_label_sets(absolute(config.input)):
        return "dataset"
    return "url_list" if config.input.lower().endswith(_LIST_SUFFIXES) else "archive"


def _dataset_input(dataset: Dataset, splits: tuple[str, ...] | None) -> LabelInput:
    for split in splits or ():
        if split not in dataset.splits:
            known = ", ".join(repr(s) for s in sorted(dataset.splits))
            raise ValueError(f"{redact(dataset.reference)} has no split {split!r}; it has {known}")
    return LabelInput(
        kind="dataset",
        uri=dataset.uri,
        reference=redact(dataset.reference),
        digest=dataset.digest,
        num_images=dataset.num_images if splits is None else sum(dataset.splits[s] for s in set(splits)),
        dataset=dataset,
    )


def _archive_input(uri: str) -> LabelInput:
    writer, refused = ListingWriter(), list[Refused]()

    def members() -> Iterator[Member]:
        for found in open_archive(uri).members():
            if isinstance(found, Refused):
                refused.append(found)
                continue
            writer.add({name: getattr(found, name) for name in Member.__slots__})
            yield found

    listed = listing_digest(members())
    listing = writer.table()
    if not listing.num_rows:
        raise EmptyDataset(
            f"{redact(uri)} holds no dataset and no images ({', '.join(IMAGE_SUFFIXES)}); "
            f"{len(refused)} of its members were refused. Tars of samples need input_format=webdataset"
        )
    # An archive's own etag covers what a listing cannot see; a folder's files are in the listing one by one.
    file: list[list[Any]] = []
    if archive_kind(uri) != "folder" or listing.num_rows + len(refused) == 1:
        files = [[f.path.removeprefix(uri), f.size, f.etag] for f in input_files(uri)]
        file = files if len(files) == 1 else []
    return LabelInput(
        kind="archive",
        uri=uri,
        reference=redact(uri),
        digest=make_plan_id(listing=listed, file=file),
        num_images=listing.num_rows,
        listing=listing,
        refused=tuple(refused),
    )


def _source_input(kind: InputKind, uri: str, source: Source) -> LabelInput:
    writer, refused, names = ListingWriter(), list[Refused](), set[str]()
    if kind == "webdataset":  # its plan names the tars; of a list it has places of lines
        check_options(kind, source.options)

    def images() -> Iterator[Mapping[str, Any]]:
        for found in source.scan():
            if isinstance(found, LedgerEntry):
                refused.append(Refused(name=found.image_id, reason=f"{found.reason} {found.detail}".strip()))
            elif found.image_id in names:
                refused.append(Refused(name=found.image_id, reason="named a second time"))
            else:
                names.add(found.image_id)
                image = _listed(found)
                writer.add(image)
                yield image

    listed = _digest(images())
    listing = writer.table()
    if not listing.num_rows:
        raise EmptyDataset(f"{redact(uri)} names no image; {len(refused)} of its entries were refused")
    files = source.inputs() if isinstance(source, ListsInputs) else ()
    return LabelInput(
        kind=kind,
        uri=uri,
        reference=redact(uri),
        digest=make_plan_id(
            listing=listed, files=[[redact(f.path), f.size, f.etag] for f in files] if kind == "webdataset" else []
        ),
        num_images=listing.num_rows,
        listing=listing,
        refused=tuple(refused),
    )


def _listed(item: SourceItem) -> dict[str, Any]:
    where = item.payload or {"offset": item.offset, "length": item.length}
    place = {"offset": where["offset"], "length": where["length"], "size": item.size}
    return {"name": item.image_id, "uri": item.uri, **place, "stamp": "", "method": 0}


def _digest(rows: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def refusals(source: LabelInput) -> list[LedgerEntry]:
    return [refusal_entry(refused) for refused in source.refused]
