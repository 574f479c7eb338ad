"""Hugging Face object detection in Parquet: ``image`` struct of bytes and path, ``objects`` struct of lists.

Whoever loads such a table sees the upright picture, and boxes lie there; but where a row's ``width`` and ``height`` are
those of the stored one, they lie in that.

Class names come from the ``huggingface`` metadata of the schema (``ClassLabel``). Annotations are read on the driver
without touching the image columns; a worker reads the images of one row group at a time.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, ClassVar, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.checks import BadImage
from pipelines.ledger import LedgerEntry
from pipelines.records import Category, ImageRecord, LabelMap
from pipelines.sources import SourceItem, record_from_bytes
from pipelines.sources.drawn import NO_BOX, UNKNOWN_CATEGORY, Box, Drawn, gather, to_pixels
from pipelines.sources.frames import upright_size, upright_to_stored
from pipelines.storage import FileStat, Store, absolute, read_uri, redact, split_uri

BoxFormat = Literal["xywh", "xyxy", "cxcywh", "xyxy_relative", "cxcywh_relative", "xywh_relative"]
_CATEGORY_FIELDS = ("category", "category_id", "categories", "label", "labels", "class")
_BOX_FIELDS = ("bbox", "bboxes", "box", "boxes")
_KNOWN = frozenset({"id", "area", "iscrowd", "is_crowd", *_CATEGORY_FIELDS, *_BOX_FIELDS})
_SHARD = re.compile(r"(?P<split>[A-Za-z_]+?)[-_.]\d+[-_]of[-_]\d+")


@dataclass(frozen=True, kw_only=True)
class HfParquetSource:
    """Parquet files of one data set.

    ``image_id`` is the path inside the ``image`` struct where those are unique, else the file's path and the row.
    """

    kind: ClassVar[str] = "hf_parquet"
    files: tuple[str, ...]
    bbox_format: BoxFormat = "xywh"
    image_column: str = "image"
    objects_column: str = "objects"
    split: str | None = None

    @classmethod
    def open(
        cls,
        *,
        uri: str | None = None,
        files: Sequence[str] | None = None,
        bbox_format: BoxFormat = "xywh",
        image_column: str = "image",
        objects_column: str = "objects",
        split: str | None = None,
    ) -> HfParquetSource:
        """Open by URIs of any fsspec scheme.

        Args:
            uri: a ``.parquet`` file, or a folder of them (recursive); or ``files`` instead.
            files: the files themselves.
            bbox_format: COCO's ``xywh`` is the Hub's habit; ``_relative`` means fractions of the image.
            image_column, objects_column: names of the columns.
            split: of all images; None guesses it from names like ``train-00000-of-00002.parquet``.
        Raises:
            ValueError: no file, an unknown format, or a column is missing.
        """
        if bbox_format not in get_args(BoxFormat):
            raise ValueError(f"bbox_format {bbox_format!r} is none of {', '.join(get_args(BoxFormat))}")
        if (uri is None) == (files is None):
            raise ValueError("give a Hugging Face source either `uri` or `files`")
        found = tuple(map(absolute, files)) if uri is None else _find_files(absolute(uri))  # type: ignore[arg-type]
        source = cls(
            files=found,
            bbox_format=bbox_format,
            image_column=image_column,
            objects_column=objects_column,
            split=split,
        )
        for file in found:
            source._check_columns(file)
        return source

    @property
    def options(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "kind"}
        return {**values, "files": list(self.files)}

    @cached_property
    def label_map(self) -> LabelMap:
        names = _class_names(_open(self.files[0]).schema_arrow, self.objects_column)
        if names is None:
            found = {c for file in self.files for row in self._object_rows(file) for c in _categories(row)}
            texts = sorted(c for c in found if isinstance(c, str))
            numbers = sorted(c for c in found if isinstance(c, int))
            pairs = [(n, f"class{n}") for n in numbers] if numbers else list(enumerate(texts))
        else:
            pairs = list(enumerate(names))
        if not pairs:
            raise ValueError(f"{redact(self.files[0])} has no categories in {self.objects_column!r}")
        return LabelMap(categories=tuple(Category(category_id=n, name=name) for n, name in pairs))

    def inputs(self) -> Iterator[FileStat]:
        for uri in self.files:
            store, name = split_uri(uri)
            stat = store.stat(name)
            yield FileStat(path=uri, size=stat.size, etag=stat.etag)

    def scan(self) -> Iterator[SourceItem | LedgerEntry]:
        ids: dict[Any, int] = {c.name: c.category_id for c in self.label_map.categories}
        ids |= {c.category_id: c.category_id for c in self.label_map.categories}
        paths = [path for file in self.files for path in self._paths(file)]
        named = all(paths) and len(set(paths)) == len(paths)
        place = iter(paths)
        stems = _stems(self.files)
        for number, file in enumerate(self.files):
            split = _guess_split(file) if self.split is None else self.split
            for group, row, objects, extra, size in self._rows(file):
                shown = _whole(extra.pop("width", None)), _whole(extra.pop("height", None))
                path = next(place)
                unnamed = f"{stems[number]}/{group}-{row}"
                yield SourceItem(
                    image_id=str(path) if named else unnamed,
                    uri=f"{file}!/{group}/{row}",
                    size=size,
                    split=split,
                    annotations=None if objects is None else gather([self._drawn(o, ids) for o in objects]),
                    payload={"file": number, "group": group, "row": row, "shown": list(shown)},
                    extra=extra,
                )

    def _drawn(self, values: Mapping[str, Any], ids: Mapping[Any, int]) -> Drawn:
        category = next((values[k] for k in _CATEGORY_FIELDS if values.get(k) is not None), None)
        area, number = values.get("area"), values.get("id")
        return Drawn(
            category_id=ids.get(category, UNKNOWN_CATEGORY),
            box_xywh=_to_xywh(next((values[k] for k in _BOX_FIELDS if k in values), None), self.bbox_format),
            annotation_id=number if type(number) is int else None,
            area=float(area) if isinstance(area, (int, float)) and not self._is_relative else None,
            iscrowd=bool(values.get("iscrowd") or values.get("is_crowd")),
            attributes={k: v for k, v in values.items() if k not in _KNOWN and _is_plain(v)},
        )

    @property
    def _is_relative(self) -> bool:
        return self.bbox_format.endswith("_relative")

    def load(self, item: SourceItem) -> ImageRecord:
        uri = self.files[item.payload["file"]]
        values = self._images.read(uri, item.payload["group"])[item.payload["row"]]
        if not isinstance(values, dict) or (values.get("bytes") is None and not values.get("path")):
            raise BadImage("the image column of the row is null")
        image = values["bytes"] if values.get("bytes") is not None else _read_beside(uri, str(values["path"]))
        record = record_from_bytes(item, image)
        found = item.annotations
        if found is None:
            return record
        size = (record.width, record.height)
        upright = upright_size(*size, record.exif_orientation)
        # A plan that is older than this says nothing of sizes.
        if size == upright or tuple(item.payload.get("shown", ())) != size:
            found = upright_to_stored(found, record.exif_orientation, (1.0, 1.0) if self._is_relative else upright)
        return replace(record, annotations=to_pixels(found, *size) if self._is_relative else found)

    @cached_property
    def _images(self) -> _RowGroups:
        return _RowGroups(self.image_column)

    def _check_columns(self, file: str) -> None:
        schema = _open(file).schema_arrow
        if self.image_column not in schema.names:
            raise ValueError(f"{redact(file)} has no column {self.image_column!r}; it has {schema.names}")
        kind = schema.field(self.image_column).type
        if not pa.types.is_struct(kind) or not {"bytes", "path"} & {f.name for f in kind}:
            raise ValueError(f"{redact(file)}: column {self.image_column!r} is {kind}, not a struct of bytes and path")

    def _paths(self, file: str) -> Iterator[str | None]:
        opened = _open(file)
        has_path = "path" in {f.name for f in opened.schema_arrow.field(self.image_column).type}
        for group in range(opened.num_row_groups):
            if has_path:
                table = opened.read_row_group(group, columns=[f"{self.image_column}.path"])
                yield from (v and v.get("path") for v in table.column(0).to_pylist())
            else:
                yield from [None] * opened.metadata.row_group(group).num_rows

    def _rows(self, file: str) -> Iterator[tuple[int, int, list[dict[str, Any]] | None, dict[str, Any], int]]:
        """(row group, row in it, objects, plain values of other columns, bytes to expect)."""
        opened = _open(file)
        has_objects = self.objects_column in opened.schema_arrow.names
        plain = [f.name for f in opened.schema_arrow if _is_plain_type(f.type)]
        for group in range(opened.num_row_groups):
            metadata = opened.metadata.row_group(group)
            size = metadata.total_byte_size // max(1, metadata.num_rows)
            table = opened.read_row_group(group, columns=[*plain, *([self.objects_column] if has_objects else [])])
            values = table.to_pylist() if table.num_columns else [{}] * metadata.num_rows
            for row, value in enumerate(values):
                objects = _objects(value.pop(self.objects_column, None))
                yield group, row, objects, {k: v for k, v in value.items() if _is_plain(v)}, size

    def _object_rows(self, file: str) -> Iterator[list[dict[str, Any]]]:
        yield from (objects or [] for _, _, objects, _, _ in self._rows(file))


class _RowGroups:
    """The images of the row group that was read last: a worker's items come in order."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._lock = threading.Lock()
        self._place: tuple[str, int] | None = None
        self._values: pa.ChunkedArray | None = None

    def read(self, file: str, group: int) -> _Lazy:
        with self._lock:
            if self._place != (file, group) or self._values is None:
                self._values = _open(file).read_row_group(group, columns=[self._column]).column(0)
                self._place = (file, group)
            return _Lazy(self._values)

    def __getstate__(self) -> dict[str, Any]:
        return {"column": self._column}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["column"])  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class _Lazy:
    """Values of an Arrow column, one turned into Python at a time."""

    values: pa.ChunkedArray

    def __getitem__(self, row: int) -> Any:
        return self.values[row].as_py()


def _open(uri: str) -> pq.ParquetFile:
    store, name = split_uri(uri)
    try:
        return pq.ParquetFile(store.open_arrow(name))
    except FileNotFoundError:
        raise ValueError(f"no Parquet file at {redact(uri)}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{redact(uri)} is not a Parquet file: {str(error)[:300]}") from None


def _find_files(uri: str) -> tuple[str, ...]:
    if uri.endswith(".parquet"):
        return (uri,)
    found = tuple(f"{uri}/{f.path}" for f in Store.open(uri).list_files() if f.path.endswith(".parquet"))
    if not found:
        raise ValueError(f"no .parquet file in {redact(uri)}")
    return found


def _stems(files: Sequence[str]) -> list[str]:
    """What ids begin with: the names of the files, with the folders that are not common where the names are not unique.

    The Hub's own layout is ``train/0000.parquet`` beside ``test/0000.parquet``.
    """
    parts = [file.removesuffix(".parquet").split("/") for file in files]
    names = [path[-1] for path in parts]
    if len(set(names)) == len(names):
        return names
    folders = zip(*(path[:-1] for path in parts), strict=False)
    common = len(list(takewhile(lambda level: len(set(level)) == 1, folders)))
    return ["/".join(path[common:]) for path in parts]


def _guess_split(file: str) -> str:
    *_, folder, name = f"/{file}".rsplit("/", 2)
    found = _SHARD.match(name)
    if found:
        return found["split"]
    stem = name.removesuffix(".parquet")
    known = ("train", "validation", "val", "test")
    return next((s for s in known for text in (stem, folder) if text.startswith(s)), "train")


def _class_names(schema: pa.Schema, objects: str) -> list[str] | None:
    """Names of the first ``ClassLabel`` below the objects column in the ``huggingface`` metadata."""
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        waiting = [json.loads(text)["info"]["features"][objects]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, dict):
            names = node.get("names")
            if node.get("_type") == "ClassLabel" and isinstance(names, list):
                return [str(name) for name in names]
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return None


def _objects(value: Any) -> list[dict[str, Any]] | None:
    """One mapping an object, of a struct of lists or a list of structs; None where nobody has looked."""
    if value is None:
        return None
    if isinstance(value, list):
        return [v if isinstance(v, dict) else {} for v in value]
    lists = {k: v for k, v in value.items() if isinstance(v, list)}
    count = max(map(len, lists.values()), default=0)
    # A list that is too short gives its objects no value: no box, or an unknown category, and the checks say so.
    return [{k: v[i] for k, v in lists.items() if i < len(v)} for i in range(count)]


def _categories(objects: Sequence[Mapping[str, Any]]) -> Iterator[int | str]:
    for values in objects:
        found = next((values[k] for k in _CATEGORY_FIELDS if values.get(k) is not None), None)
        if isinstance(found, (int, str)) and not isinstance(found, bool):
            yield found


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _to_xywh(box: Any, format_: BoxFormat) -> Box:
    numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
    if not numbers or not all(map(math.isfinite, box)):
        return NO_BOX
    a, b, c, d = map(float, box)
    match format_.removesuffix("_relative"):
        case "xyxy":
            return (a, b, c - a, d - b)
        case "cxcywh":
            return (a - c / 2, b - d / 2, c, d)
        case _:
            return (a, b, c, d)


def _is_plain_type(kind: pa.DataType) -> bool:
    types = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string)
    return any(check(kind) for check in types)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool)) and (not isinstance(value, float) or math.isfinite(value))


def _read_beside(file: str, path: str) -> bytes:
    """An image that the table only names: below the folder of the Parquet file."""
    if path.startswith("/") or "://" in path or ".." in path.replace("\\", "/").split("/"):
        raise BadImage(f"the table has no bytes and the path {path!r} leads out of its folder")
    return read_uri(f"{file.rsplit('/', 1)[0]}/{path}")
