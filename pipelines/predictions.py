"""Predictions at rest: rows of a model's label set and the way back to COCO's results file.

A prediction set is a label set with scores: beside a dataset's images it can be trained on as it is. That of an
archive labelled where it lies is a table of its own in the same layout, each row naming the source and, where one
range of bytes is the image, that range.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.archive_images import ARCHIVE_ROWS, ArchiveImage, ArchivePlace, read_archive_images, read_places
from pipelines.checks import BadImage
from pipelines.commits import DatasetVersion, commit_labels
from pipelines.exports.coco_ids import coco_image_ids
from pipelines.label_commits import settle
from pipelines.ledger import Ledger
from pipelines.metrics.settings import IOU_TYPES, IouType
from pipelines.records import Annotations, ImageRecord, LabelMap, Rle
from pipelines.references import DatasetNotFound, parse_reference
from pipelines.schema import LABELS, LabelRow, labels_to_arrow
from pipelines.shards import ShardFile, read_label_columns, read_labels
from pipelines.sources import SourceItem, record_from_bytes
from pipelines.sources.archive import member_uri
from pipelines.storage import Store, redact, split_uri
from pipelines.versions import Dataset, list_label_sets, open_dataset

__all__ = [
    "ARCHIVE_ROWS",
    "STATUS_FAILED",
    "STATUS_OK",
    "ArchivePlace",
    "PredictionSet",
    "archive_image",
    "commit_predictions",
    "open_predictions",
    "to_coco_results",
    "write_predictions",
]
STATUS_OK = "ok"
STATUS_FAILED = "failed"


def write_predictions(
    store: Store,
    label_set: str,
    stem: str,
    rows: Sequence[LabelRow],
    places: Sequence[ArchivePlace] | None = None,
) -> ShardFile:
    """Write the rows of one task. The same rows give the same bytes and name.

    Args:
        store: the dataset, or the root of an archive's predictions.
        label_set: name of the prediction set.
        stem: of the image shard (``shard_stem``) or of the archive's part; without dots.
        rows: in the order of the shard or of the listing.
        places: one a row for an archive, None for a dataset.
    """
    table = labels_to_arrow(rows)
    if places is not None:
        for name in ARCHIVE_ROWS.names[len(LABELS) :]:
            values = pa.array([getattr(p, name) for p in places], ARCHIVE_ROWS.field(name).type)
            table = table.append_column(ARCHIVE_ROWS.field(name), values)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_index=True)
    content = sink.getvalue()
    path = f"labels/{label_set}/{stem}.{rows[0].row:07d}.{hashlib.sha256(content).hexdigest()[:32]}.parquet"
    store.write_bytes(path, content)
    splits: dict[str, int] = {}
    for row in rows:
        splits[row.split] = splits.get(row.split, 0) + 1
    num_objects = sum(len(row.annotations) for row in rows if row.annotations is not None)
    return ShardFile(path=path, size=len(content), rows=len(rows), num_objects=num_objects, splits=splits)


def commit_predictions(
    uri: str,
    label_set: str,
    files: Sequence[ShardFile],
    *,
    plan_id: str,
    label_map: LabelMap,
    images_version: int | None,
    ledger: Ledger,
    provenance: Mapping[str, Any],
) -> DatasetVersion:
    """The one commit of a labelling plan; of many callers exactly one makes it, the others find it.

    Args:
        images_version: of the dataset's images table; None for an archive, which has none.
    """
    version = commit_labels(
        uri,
        label_set,
        files,
        plan_id=plan_id,
        label_map=label_map,
        images_version=-1 if images_version is None else images_version,
        ledger=ledger.sums(),
        kind="predictions",
        provenance=provenance,
        schema=LABELS if images_version is not None else ARCHIVE_ROWS,
    )
    return settle(Store.open(uri), label_set) or version


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionSet:
    """One version of a model's predictions, opened; no data file is read until asked for.

    Attributes:
        labels: the same version as a ``Dataset``.
    """

    labels: Dataset

    @property
    def reference(self) -> str:
        return self.labels.reference

    @property
    def uri(self) -> str:
        return self.labels.uri

    @property
    def digest(self) -> str:
        return self.labels.digest

    @property
    def label_map(self) -> LabelMap:
        return self.labels.label_map

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.labels.metadata

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Model, input, settings and versions that made the predictions."""
        return dict(self.labels.metadata["provenance"])

    @property
    def num_images(self) -> int:
        return self.labels.num_images

    @property
    def num_objects(self) -> int:
        return self.labels.num_objects

    @property
    def splits(self) -> dict[str, int]:
        return self.labels.splits

    @property
    def is_archive(self) -> bool:
        """Whether the images lie elsewhere than in this dataset."""
        return not self.labels.has_images

    def status(self) -> dict[str, int]:
        """Images by status: ``ok``, ``failed``. Reads one column of every label file."""
        counts = {STATUS_OK: 0, STATUS_FAILED: 0}
        for shard in self.labels.shards:
            for status in read_label_columns(shard, ["status"])["status"].to_pylist():
                counts[status] = counts.get(status, 0) + 1
        return counts

    def errors(self) -> Iterator[tuple[str, str]]:
        """(image_id, error) of every failed image."""
        for row in self.rows():
            if row.status != STATUS_OK:
                yield row.image_id, row.error or ""

    def rows(self, splits: Collection[str] | None = None) -> Iterator[LabelRow]:
        """Every image, failed ones too (their annotations are None)."""
        for shard in self.labels.shards:
            for row in read_labels(shard):
                if splits is None or row.split in splits:
                    yield row

    def annotations(self, splits: Collection[str] | None = None) -> Iterator[tuple[str, int, int, int, Annotations]]:
        """(image_id, coco_image_id, width, height, annotations with scores) of every image that did not fail."""
        return self.labels.annotations(splits)

    def records(self, splits: Collection[str] | None = None) -> Iterator[ImageRecord]:
        """Images with bytes and predictions, failed ones left out; what is in no dataset is read where it lies.

        Raises:
            BadImage: an archive does not hold an image any more as it was labelled.
        """
        if not self.is_archive:
            yield from (r for r in self.labels.records(splits) if r.annotations is not None)
            return
        where = self.provenance["input"]
        for (row, place), image in read_archive_images(where["kind"], where["uri"], self._labelled(splits)):
            if isinstance(image, BadImage):
                raise BadImage(f"{row.image_id}: {image}")
            item = SourceItem(
                image_id=row.image_id,
                uri=member_uri(place.source, place.member) if where["kind"] == "archive" else place.source,
                url=place.source if where["kind"] == "url_list" else "",
                split=row.split,
                coco_image_id=row.coco_image_id,
                annotations=row.annotations,
            )
            yield record_from_bytes(item, image)

    def _labelled(self, splits: Collection[str] | None) -> Iterator[tuple[tuple[LabelRow, ArchivePlace], ArchiveImage]]:
        for shard in self.labels.shards:
            for row, place in zip(read_labels(shard), read_places(shard), strict=True):
                if row.annotations is not None and (splits is None or row.split in splits):
                    yield (row, place), archive_image(row, place)


def archive_image(row: LabelRow, place: ArchivePlace) -> ArchiveImage:
    """What to read for a row of an archive's predictions."""
    return ArchiveImage(place=place, sha256=row.input_sha256, failed=row.status == STATUS_FAILED)


def open_predictions(reference: str) -> PredictionSet:
    """Open a prediction set.

    Args:
        reference: ``URI@labels/<set>``, ``URI@labels/<set>:<version>``, or the plain ``URI`` where an archive's
            predictions went, as long as there is only one set.
    Raises:
        DatasetNotFound: no such set or version.
        ValueError: the set holds no predictions, or a plain URI has several.
    """
    wanted = parse_reference(reference)
    if "@labels/" not in reference:
        sets = list_label_sets(wanted.uri)
        if len(sets) != 1:
            what = f"several label sets ({', '.join(sets)})" if sets else "no predictions"
            error = ValueError if sets else DatasetNotFound
            raise error(f"{redact(wanted.uri)} has {what}; name one as URI@labels/<set>")
        wanted = replace(wanted, label_set=sets[0])
    labels = open_dataset(wanted)
    if labels.metadata["kind"] != "predictions":
        raise ValueError(
            f"{redact(labels.reference)} holds {labels.metadata['kind']}, not predictions; "
            f"{redact(labels.uri)} has the label sets {', '.join(list_label_sets(labels.uri))}"
        )
    return PredictionSet(labels=labels)


def to_coco_results(
    predictions: PredictionSet, out_uri: str, splits: Collection[str] | None = None
) -> dict[IouType, str]:
    """Write COCO's results lists, one for each kind of similarity, as COCO's server and ``loadRes`` take them.

    A list of its own for each kind, because ``loadRes`` takes the size of a detection from its box where it has one:
    masks and keypoints beside boxes would count as of the boxes' sizes. Images have the ids of ``export_coco``, so that
    the files can be scored against each other. Memory holds one label file's objects at a time.

    Args:
        out_uri: of the JSON file of boxes, any fsspec URL. Masks go to ``<stem>.segm.json`` beside it and keypoints to
            ``<stem>.keypoints.json``, where a detection has some.
        splits: only images of these.
    Returns:
        The URI of each file, by kind.
    Raises:
        ValueError: images of several splits have one id, as their sources had.
    """
    ids = None if predictions.is_archive else coco_image_ids(predictions.labels, splits)
    store, name = split_uri(out_uri)
    with tempfile.TemporaryDirectory(prefix="boxmill-results-") as folder:
        written = _write_results(Path(folder), predictions.annotations(splits), ids)
        for kind in written:
            store.upload(Path(folder) / kind, _results_name(name, kind))
    return {kind: store.join(_results_name(name, kind)) for kind in written}


def _results_name(name: str, kind: IouType) -> str:
    path = PurePosixPath(name)
    return name if kind == "bbox" else str(path.with_name(f"{path.stem}.{kind}{path.suffix}"))


def _write_results(
    folder: Path, images: Iterator[tuple[str, int, int, int, Annotations]], ids: Mapping[str, int] | None
) -> list[IouType]:
    """A file a kind, named by it; boxes are always written, the others where there are any."""
    counts: Counter[IouType] = Counter()
    with ExitStack() as stack:
        files = {kind: stack.enter_context((folder / kind).open("w", encoding="utf-8")) for kind in IOU_TYPES}
        for image_id, coco_image_id, _, _, found in images:
            for kind, result in _coco_results(coco_image_id if ids is None else ids[image_id], found):
                files[kind].write((",\n" if counts[kind] else "[") + json.dumps(result))
                counts[kind] += 1
        for kind, file in files.items():
            file.write("]\n" if counts[kind] else "[]\n")
    return [kind for kind in IOU_TYPES if kind == "bbox" or counts[kind]]


def _coco_results(coco_image_id: int, found: Annotations) -> Iterator[tuple[IouType, dict[str, Any]]]:
    assert found.scores is not None, "a prediction set has scores"
    for i in range(len(found)):
        where = {"image_id": coco_image_id, "category_id": int(found.category_ids[i])}
        score = {"score": float(found.scores[i])}
        rle, keypoints = found.rles[i], found.keypoints[i]
        yield "bbox", {**where, "bbox": found.boxes_xywh[i].tolist(), **score}
        if rle is not None:
            yield "segm", {**where, "segmentation": _rle_json(rle), **score}
        if keypoints is not None:
            yield "keypoints", {**where, "keypoints": keypoints.reshape(-1).tolist(), **score}


def _rle_json(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size), "counts": rle.counts if isinstance(rle.counts, str) else list(rle.counts)}
