"""A match table at rest: three Parquet files in a folder, which any tool reads.

``detections.parquet`` and ``truths.parquet`` have a row each, ``images.parquet`` the names and their order; what the
table was made with is in the metadata of the latter. Rows are numbered from 0 in the order of the files.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.metrics.matches import MatchTable
from pipelines.metrics.settings import AreaRange, MatchSettings
from pipelines.records import LabelMap
from pipelines.storage import Store

FORMAT = 1
_KEY = b"boxmill"
_DETECTIONS = (
    *("images", "labels", "scores", "det_index", "rank", "area"),
    *("best_iou", "best_truth", "best_iou_any", "best_truth_any", "best_iou_other", "best_truth_other"),
    *("matched", "outcomes"),
)
_TRUTHS = ("truth_images", "truth_labels", "truth_ids", "truth_area", "truth_iscrowd", "truth_ignored")


def write_matches(table: MatchTable, uri: str) -> str:
    """Write a folder; the images last, so that a folder that has them is whole. Returns its URI."""
    store = Store.open(uri)
    for name, part in (
        ("detections", _columns(table, _DETECTIONS)),
        ("truths", _columns(table, _TRUTHS)),
        ("images", _images(table)),
    ):
        sink = io.BytesIO()
        pq.write_table(part, sink, compression="zstd")
        store.write_bytes(f"{name}.parquet", sink.getvalue())
    return store.join()


def read_matches(uri: str) -> MatchTable:
    """The table of a folder.

    Raises:
        ValueError: it holds none, or one of another make.
    """
    store = Store.open(uri)
    try:
        images = pq.read_table(pa.BufferReader(store.read_bytes("images.parquet")))
    except FileNotFoundError:
        raise ValueError(f"{store.join()} holds no match table; write one with write_matches") from None
    said = json.loads((images.schema.metadata or {}).get(_KEY, b"{}"))
    if said.get("format") != FORMAT:
        raise ValueError(
            f"{store.join()} holds a match table of format {said.get('format')}, this boxmill reads {FORMAT}"
        )
    settings = _settings(said["settings"])
    shapes = {
        "matched": (len(settings.iou_thresholds),),
        "outcomes": (len(settings.areas), len(settings.iou_thresholds)),
        "truth_ignored": (len(settings.areas),),
    }
    values: dict[str, Any] = {}
    for name, columns in (("detections", _DETECTIONS), ("truths", _TRUTHS)):
        part = pq.read_table(pa.BufferReader(store.read_bytes(f"{name}.parquet")))
        values |= {column: _array(part[_stored(column)], shapes.get(column, ())) for column in columns}
    return MatchTable(
        settings=settings,
        label_map=LabelMap.from_json(said["categories"]),
        image_ids=tuple(images["image_id"].to_pylist()),
        image_numbers=_array(images["image_number"], ()),
        **values,
    )


def _images(table: MatchTable) -> pa.Table:
    said = {"format": FORMAT, "settings": asdict(table.settings), "categories": table.label_map.to_json()}
    columns = {"image_id": pa.array(table.image_ids, pa.string()), "image_number": pa.array(table.image_numbers)}
    return pa.table(columns).replace_schema_metadata({_KEY: json.dumps(said).encode()})


def _columns(table: MatchTable, names: tuple[str, ...]) -> pa.Table:
    return pa.table({_stored(name): _arrow(getattr(table, name)) for name in names})


def _stored(name: str) -> str:
    """Columns are named for one row: a detection's ``image``, ``label``, ``matched``; a truth's ``area``."""
    plain = name.removeprefix("truth_")
    return {"images": "image", "labels": "label", "scores": "score", "ids": "id", "outcomes": "outcome"}.get(
        plain, plain
    )


def _arrow(values: np.ndarray) -> pa.Array:
    """Every further axis is a list in the row: plain lists, which DuckDB, Polars and pandas take."""
    array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        length = values.shape[axis]
        count = int(np.prod(values.shape[:axis], dtype=np.int64))
        array = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * length, array)
    return array


def _array(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    rows = len(column)
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    for _ in shape:
        array = array.flatten()
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(rows, *shape)


def _settings(said: dict[str, Any]) -> MatchSettings:
    sigmas = said["oks_sigmas"]
    return MatchSettings(
        iou_type=said["iou_type"],
        iou_thresholds=tuple(said["iou_thresholds"]),
        areas=tuple(AreaRange(**area) for area in said["areas"]),
        max_detections=tuple(said["max_detections"]),
        oks_sigmas=None if sigmas is None else {name: tuple(values) for name, values in sigmas.items()},
    )
