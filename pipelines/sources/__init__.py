"""Where images come from: one module a format, one table of them all.

A source is rebuilt in every worker from its ``kind`` and ``options``, so both are plain JSON. ``scan`` runs once on
the driver and is light; ``load`` runs in the workers and reads the bytes.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from pipelines.checks import BadImage, probe_image
from pipelines.ledger import LedgerEntry
from pipelines.records import Annotations, ImageRecord, LabelMap
from pipelines.storage import FileStat, redact, split_uri


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceItem:
    """One image that a source offers, before its bytes are read.

    Attributes:
        image_id: stable and unique in the source: its path below the image root, or its key.
        uri: of the file that holds the image.
        offset, length: the image's bytes inside that file; None for the whole file.
        size: bytes to expect, 0 where unknown; tasks are cut by it.
        split: ``train``, ``val``, ... or the empty string.
        coco_image_id: the source's integer id; None where it has none, then it is given in plan order.
        annotations: where a central file has them; None where ``load`` reads them, or there are none.
        declared_size: width, height as the source's annotations say; the image's own header wins.
        clip_tolerance: a box that leaves the image by more pixels than this is clipped.
        payload: whatever else ``load`` needs, JSON-ready.
        mended: how the source itself changed an annotation, by its place in ``annotations`` (as text: it is JSON);
            a fixed phrase, that counts as the ledger's reason. Under the empty text: what the ledger is told of the
            image itself, which is imported as it is.
        license, url, group_id, extra: as in ``ImageRecord``. Lists of category ids under ``neg_category_ids`` and
            ``not_exhaustive_category_ids`` in ``extra`` (LVIS's names) become columns of the labels.
    """

    image_id: str
    uri: str
    offset: int | None = None
    length: int | None = None
    size: int = 0
    split: str = ""
    coco_image_id: int | None = None
    annotations: Annotations | None = None
    declared_size: tuple[int, int] | None = None
    clip_tolerance: float = 1.0
    payload: Mapping[str, Any] = field(default_factory=dict)
    mended: Mapping[str, str] = field(default_factory=dict)
    license: str = ""
    url: str = ""
    group_id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """What every source can do."""

    @property
    def kind(self) -> str:
        """Its name in ``SOURCES``."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """JSON-ready; ``open_source(kind, **options)`` gives an equal source in another process."""
        ...

    @property
    def label_map(self) -> LabelMap:
        """All categories in a fixed order."""
        ...

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        """Every image in a deterministic order; an entry for whatever the source holds but cannot offer."""
        ...

    def load(self, item: SourceItem) -> ImageRecord:
        """Read one image; its annotations are the item's, or read here.

        Raises:
            BadImage: it will be quarantined.
            FileNotFoundError: likewise.
        """
        ...


@runtime_checkable
class ListsInputs(Protocol):
    """A source that can list its files without parsing them: a rerun is then recognised at once.

    Sources without it are identified by kind and options alone (right for what a seed generates).
    """

    def inputs(self) -> Iterable[FileStat]:
        """Every file that the result depends on; ``path`` is a full URI."""
        ...


@runtime_checkable
class Described(Protocol):
    """A source with facts worth keeping in the commit."""

    def about(self) -> Mapping[str, Any]:
        """JSON-ready."""
        ...


@runtime_checkable
class LabelsOnly(Protocol):
    """A source of labels for images that a dataset has: it reads none."""

    def labels_of(self, item: SourceItem) -> Annotations | None:
        """In pixels of the stored frame.

        Raises:
            BadImage: they are of another image.
        """
        ...


# The one table of sources: kind -> module:factory. A factory takes the options as keywords.
SOURCES: dict[str, str] = {
    "coco": "pipelines.sources.coco:CocoSource.open",
    "voc": "pipelines.sources.voc:VocSource.open",
    "yolo": "pipelines.sources.yolo:YoloSource.open",
    "synthetic": "pipelines.sources.synthetic:SyntheticSource",
    "cvat": "pipelines.sources.cvat:CvatSource.open",
    "label_studio": "pipelines.sources.label_studio:LabelStudioSource.open",
    "open_images": "pipelines.sources.open_images:OpenImagesSource.open",
    "hf_parquet": "pipelines.sources.hf_parquet:HfParquetSource.open",
    "lvis": "pipelines.sources.lvis:LvisSource.open",
    "panoptic": "pipelines.sources.panoptic:PanopticSource.open",
    "webdataset": "pipelines.sources.webdataset:WebDatasetSource.open",
    "url_list": "pipelines.sources.url_list:UrlListSource.open",
    "resplit": "pipelines.sources.resplit:ResplitSource.open",
    "archive": "pipelines.sources.archive:ArchiveSource.open",
}


def open_source(kind: str, **options: Any) -> Source:
    """A source by its kind.

    Raises:
        ValueError: unknown kind (with near names), or options that the source refuses.
    """
    make = _factory(kind)
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(f"source {kind!r}: {error}; given were {sorted(options)}") from None


def source_options(kind: str) -> Mapping[str, inspect.Parameter]:
    """The options of a kind of source, in order; of the first one a command line makes an argument.

    Raises:
        ValueError: unknown kind, with near names.
    """
    return inspect.signature(_factory(kind)).parameters


def _factory(kind: str) -> Callable[..., Source]:
    if kind not in SOURCES:
        near = difflib.get_close_matches(kind, SOURCES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no source of kind {kind!r}; {hint}known: {', '.join(sorted(SOURCES))}")
    module, _, path = SOURCES[kind].partition(":")
    factory: Any = import_module(module)
    for name in path.split("."):
        factory = getattr(factory, name)
    found: Callable[..., Source] = factory
    return found


def record_from_bytes(item: SourceItem, image: bytes, *, annotations: Annotations | None = None) -> ImageRecord:
    """The record of an item once its bytes are there; ``annotations`` default to the item's.

    Raises:
        BadImage: not a whole image of a known format.
    """
    sha256 = hashlib.sha256(image).hexdigest()
    try:
        header = probe_image(image)
    except BadImage as error:
        error.sha256 = sha256
        raise
    return ImageRecord(
        image_id=item.image_id,
        image=image,
        format=header.format,
        width=header.width,
        height=header.height,
        exif_orientation=header.exif_orientation,
        sha256=sha256,
        source=redact(item.uri),
        split=item.split,
        coco_image_id=-1 if item.coco_image_id is None else item.coco_image_id,
        annotations=item.annotations if annotations is None else annotations,
        license=item.license,
        url=item.url,
        group_id=item.group_id,
        extra=item.extra,
    )


def read_item(item: SourceItem) -> bytes:
    """The image's bytes: the whole file, or its range.

    Raises:
        FileNotFoundError: the file is gone.
        BadImage: it has another size than when it was listed.
    """
    store, name = split_uri(item.uri)
    if item.offset is None or item.length is None:
        image = store.read_bytes(name)
        if item.size and len(image) != item.size:
            raise BadImage(f"the file changed: it had {item.size} bytes when it was listed, now it has {len(image)}")
        return image
    try:
        return store.read_range(name, item.offset, item.length)
    except ValueError as error:
        raise BadImage(f"the file changed since it was listed: {error}") from None
