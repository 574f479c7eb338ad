"""The Arrow schemas of the two tables, and Annotations to and from them.

Everything is a Delta type, so that DuckDB, Polars and Spark read both tables. ``objects`` is a struct of lists:
every list of one row has one entry an object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.records import Annotations, ImageRecord, Polygons, Rle

SCHEMA_VERSION = 1
STORED_FRAME = "stored"


class UnknownFrame(ValueError):
    """Boxes whose frame this boxmill does not know: read as if they lay in the stored one they would all be wrong."""


_F = pa.float64()
_RLE = pa.struct(
    [
        ("size", pa.list_(pa.int32())),  # height, width
        ("counts", pa.string()),  # of a compressed RLE
        ("runs", pa.list_(pa.int64())),  # of an uncompressed RLE
    ]
)
OBJECTS = pa.struct(
    [
        ("id", pa.list_(pa.int64())),
        ("bbox", pa.list_(pa.list_(_F))),  # xywh
        ("category_id", pa.list_(pa.int64())),
        ("area", pa.list_(_F)),
        ("iscrowd", pa.list_(pa.bool_())),
        ("polygons", pa.list_(pa.list_(pa.list_(_F)))),
        ("rle", pa.list_(_RLE)),
        ("keypoints", pa.list_(pa.list_(_F))),  # x, y, visibility, x, y, ...
        ("num_keypoints", pa.list_(pa.int64())),
        ("score", pa.list_(_F)),  # null for truth
        ("attributes", pa.list_(pa.string())),  # JSON
    ]
)

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PAGE = 2**20  # bytes; Parquet's own size of a page
IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("coco_image_id", pa.int64()),
        ("image", _IMAGE),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("exif_orientation", pa.int32()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("license", pa.string()),
        ("url", pa.string()),
        ("group_id", pa.string()),
        ("extra", pa.string()),
    ]
)

# Ids and sizes are in both tables: whoever needs only annotations (metrics, exports) never touches image files.
LABELS = pa.schema(
    [
        ("image_id", pa.string()),
        ("row", pa.int32()),  # in the image shard
        ("row_group", pa.int32()),  # of the image shard
        ("split", pa.string()),
        ("coco_image_id", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("objects", OBJECTS),  # null: nobody has looked at the image
        ("box_frame", pa.string()),  # "stored" where EXIF turns the image; null: there is only one frame
        ("neg", pa.list_(pa.int64())),
        ("not_exhaustive", pa.list_(pa.int64())),
        ("status", pa.string()),  # of a prediction
        ("error", pa.string()),
        ("input_sha256", pa.string()),
        ("extra", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelRow:
    """One image in one label set: truth, or a model's predictions.

    Attributes:
        image_id, coco_image_id, width, height, split: as in ``ImageRecord``.
        row: the image's place in its shard, from 0.
        row_group: the shard's row group that holds it.
        annotations: None where nobody has looked at the image, or where looking failed (then see ``error``).
        box_frame: ``stored`` where EXIF turns the image for viewers: the boxes do not turn with it. None for others.
        neg: category ids verified to be absent (LVIS), or None.
        not_exhaustive: category ids of which not every object is annotated (LVIS), or None.
        status: ``ok`` or ``failed`` for predictions, None for truth.
        error: why there is no prediction.
        input_sha256: of the image bytes that the model saw.
    """

    image_id: str
    row: int
    row_group: int
    split: str
    coco_image_id: int
    width: int
    height: int
    annotations: Annotations | None
    box_frame: str | None = None
    neg: tuple[int, ...] | None = None
    not_exhaustive: tuple[int, ...] | None = None
    status: str | None = None
    error: str | None = None
    input_sha256: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def images_to_arrow(records: Sequence[ImageRecord]) -> pa.Table:
    """One row a record, without annotations and split."""
    columns = [
        _image_chunks(records) if f.name == "image" else pa.array([_image_value(r, f.name) for r in records], f.type)
        for f in IMAGES
    ]
    return pa.Table.from_arrays(columns, schema=IMAGES)


def _image_chunks(records: Sequence[ImageRecord]) -> pa.ChunkedArray:
    """In pieces of about a page: larger ones are new memory at every copy, which costs more than the copy."""
    chunks = []
    first = size = 0
    for last, record in enumerate(records, 1):
        size += len(record.image)
        if size >= _PAGE or last == len(records):
            part = records[first:last]
            chunks.append(
                pa.StructArray.from_arrays(
                    [_binary([r.image for r in part]), pa.array([r.image_id for r in part], pa.string())],
                    fields=list(_IMAGE),
                )
            )
            first, size = last, 0
    return pa.chunked_array(chunks, _IMAGE)


def _binary(values: Sequence[bytes]) -> pa.BinaryArray:
    """As ``pa.array`` makes it, in one copy: its builder grows by doubling, which costs more than the copy."""
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in values])])
    if offsets[-1] >= 2**31:
        return pa.array(values, pa.binary())
    joined = values[0] if len(values) == 1 else b"".join(values)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(joined)]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def _image_value(record: ImageRecord, name: str) -> Any:
    return dump_json(record.extra) if name == "extra" else getattr(record, name)


def labels_to_arrow(rows: Sequence[LabelRow]) -> pa.Table:
    """One row a label row."""
    columns = []
    for f in LABELS:
        match f.name:
            case "objects":
                columns.append(annotations_to_arrow([r.annotations for r in rows]))
            case "extra":
                columns.append(pa.array([dump_json(r.extra) for r in rows], f.type))
            case _:
                columns.append(pa.array([getattr(r, f.name) for r in rows], f.type))
    return pa.Table.from_arrays(columns, schema=LABELS)


def dump_json(values: Mapping[str, Any]) -> str | None:
    """Null for an empty mapping; keys keep their order, so that an export looks like its source."""
    return json.dumps(dict(values), ensure_ascii=False, separators=(",", ":")) if values else None


def load_json(text: str | None) -> dict[str, Any]:
    return json.loads(text) if text else {}


def annotations_to_arrow(images: Sequence[Annotations | None]) -> pa.StructArray:
    """(rows,) struct of lists; None becomes a null row."""
    given = [a for a in images if a is not None]
    counts = [0 if a is None else len(a) for a in images]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))

    def flat(name: str, dtype: Any) -> np.ndarray:
        parts = [getattr(a, name) for a in given]
        return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)

    boxes = np.ascontiguousarray(flat("boxes_xywh", np.float64).reshape(-1, 4))
    area, visible = flat("area", np.float64), flat("num_keypoints", np.int64)
    values = {
        "id": pa.array(flat("ids", np.int64)),
        "bbox": _nested(np.arange(0, 4 * len(boxes) + 1, 4), pa.array(boxes.reshape(-1))),
        "category_id": pa.array(flat("category_ids", np.int64)),
        "area": pa.array(area, mask=np.isnan(area)),
        "iscrowd": pa.array(flat("iscrowd", np.bool_)),
        "polygons": pa.array(_chain(a.polygons for a in given), OBJECTS.field("polygons").type.value_type),
        "rle": pa.array([_rle_value(r) for a in given for r in a.rles], _RLE),
        "keypoints": pa.array(
            [None if k is None else np.asarray(k, np.float64).reshape(-1) for a in given for k in a.keypoints],
            pa.list_(_F),
        ),
        "num_keypoints": pa.array(visible, mask=visible < 0),
        "attributes": pa.array(
            _chain([dump_json(v) for v in a.attributes] or [None] * len(a) for a in given), pa.string()
        ),
    }
    columns = []
    for f in OBJECTS:
        if f.name == "score":
            columns.append(_scores(images, counts))
        else:
            columns.append(pa.ListArray.from_arrays(offsets, values[f.name]).cast(f.type))
    absent = pa.array([a is None for a in images], pa.bool_())
    return pa.StructArray.from_arrays(columns, fields=list(OBJECTS), mask=absent)


def _scores(images: Sequence[Annotations | None], counts: Sequence[int]) -> pa.ListArray:
    scored = [a is not None and a.scores is not None for a in images]
    lengths = [count if has else 0 for count, has in zip(counts, scored, strict=True)]
    parts = [a.scores for a in images if a is not None and a.scores is not None]
    values = np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
        pa.array(values),
        mask=pa.array([not has for has in scored], pa.bool_()),
    )


def _nested(offsets: np.ndarray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _chain(parts: Iterable[Iterable[Any]]) -> list[Any]:
    return [value for part in parts for value in part]


def _rle_value(rle: Rle | None) -> dict[str, Any] | None:
    if rle is None:
        return None
    if isinstance(rle.counts, str):
        return {"size": list(rle.size), "counts": rle.counts, "runs": None}
    return {"size": list(rle.size), "counts": None, "runs": list(rle.counts)}


def annotations_from_arrow(objects: pa.StructArray | pa.ChunkedArray) -> list[Annotations | None]:
    """The inverse of ``annotations_to_arrow``."""
    if isinstance(objects, pa.ChunkedArray):
        objects = objects.combine_chunks()
        if isinstance(objects, pa.ChunkedArray):  # no or many chunks
            objects = pa.concat_arrays(objects.chunks) if objects.num_chunks else pa.array([], OBJECTS)
    columns = {f.name: objects.field(i) for i, f in enumerate(objects.type)}
    present = objects.is_valid().to_pylist()
    starts = {name: _offsets(column) for name, column in columns.items()}
    base = {name: column.values for name, column in columns.items()}
    boxes = _flat_boxes(base["bbox"])
    flat = {
        "id": _numpy(base["id"], 0),
        "category_id": _numpy(base["category_id"], 0),
        "area": _numpy(base["area"], np.nan),
        "iscrowd": _numpy(base["iscrowd"], False),
        "num_keypoints": _numpy(base["num_keypoints"], -1),
        "score": _numpy(base["score"], np.nan),
    }
    polygons, rles = flat_polygons(base["polygons"]), flat_rles(base["rle"])
    keypoints = _keypoints(base["keypoints"])
    attributes = [load_json(text) for text in base["attributes"].to_pylist()]
    scored = columns["score"].is_valid().to_pylist()

    found: list[Annotations | None] = []
    for i, there in enumerate(present):
        if not there:
            found.append(None)
            continue
        at = {name: slice(int(s[i]), int(s[i + 1])) for name, s in starts.items()}
        found.append(
            Annotations(
                ids=flat["id"][at["id"]],
                boxes_xywh=boxes[at["bbox"]],
                category_ids=flat["category_id"][at["category_id"]],
                area=flat["area"][at["area"]],
                iscrowd=flat["iscrowd"][at["iscrowd"]],
                polygons=tuple(polygons[at["polygons"]]),
                rles=tuple(rles[at["rle"]]),
                keypoints=tuple(keypoints[at["keypoints"]]),
                num_keypoints=flat["num_keypoints"][at["num_keypoints"]],
                scores=flat["score"][at["score"]] if scored[i] else None,
                attributes=tuple(attributes[at["attributes"]]),
            )
        )
    return found


def _offsets(column: pa.ListArray) -> np.ndarray:
    return column.offsets.to_numpy(zero_copy_only=False)


def _numpy(values: pa.Array, missing: Any) -> np.ndarray:
    # Writable copies: a torch tensor made of a read-only buffer warns.
    return np.array(values.fill_null(missing).to_numpy(zero_copy_only=False))


def _flat_boxes(boxes: pa.ListArray) -> np.ndarray:
    offsets = _offsets(boxes)
    if len(boxes) and not (np.diff(offsets) == 4).all():
        raise ValueError("a bbox in the labels table has not 4 numbers; the file was not written by boxmill")
    values = _numpy(boxes.values, np.nan)
    return values[int(offsets[0]) : int(offsets[-1])].reshape(-1, 4) if len(boxes) else np.zeros((0, 4))


def flat_polygons(column: pa.ListArray) -> list[Polygons | None]:
    """One entry an object; None where it has no polygons."""
    outer, inner = _offsets(column).tolist(), _offsets(column.values).tolist()
    coordinates = _numpy(column.values.values, np.nan)
    return [
        tuple(tuple(coordinates[inner[j] : inner[j + 1]].tolist()) for j in range(outer[i], outer[i + 1]))
        if there
        else None
        for i, there in enumerate(column.is_valid().to_pylist())
    ]


def flat_rles(column: pa.StructArray) -> list[Rle | None]:
    """One entry an object; None where it has no RLE."""
    if column.null_count == len(column):
        return [None] * len(column)
    found: list[Rle | None] = []
    for value in column.to_pylist():
        if value is None:
            found.append(None)
            continue
        counts = value["counts"] if value["counts"] is not None else tuple(value["runs"] or ())
        found.append(Rle(size=(int(value["size"][0]), int(value["size"][1])), counts=counts))
    return found


def _keypoints(column: pa.ListArray) -> list[np.ndarray | None]:
    if column.null_count == len(column):
        return [None] * len(column)
    offsets, values = _offsets(column).tolist(), _numpy(column.values, np.nan)
    return [
        values[offsets[i] : offsets[i + 1]].reshape(-1, 3).copy() if there else None
        for i, there in enumerate(column.is_valid().to_pylist())
    ]


def labels_from_arrow(table: pa.Table) -> list[LabelRow]:
    """Rows of a labels table (all columns) as dataclasses.

    Raises:
        UnknownFrame: boxes of a frame other than the stored one.
    """
    plain = {f.name: table.column(f.name).to_pylist() for f in LABELS if f.name != "objects"}
    annotations = annotations_from_arrow(table.column("objects"))
    rows = []
    for i in range(table.num_rows):
        values = {name: column[i] for name, column in plain.items()}
        if values["box_frame"] not in (None, STORED_FRAME):
            raise UnknownFrame(
                f"the boxes of {values['image_id']!r} lie in the frame {values['box_frame']!r}, this boxmill reads "
                f"{STORED_FRAME!r} ones; upgrade boxmill, or write the labels anew"
            )
        values["extra"] = load_json(values["extra"])
        for name in ("neg", "not_exhaustive"):
            values[name] = None if values[name] is None else tuple(values[name])
        rows.append(LabelRow(annotations=annotations[i], **values))
    return rows
