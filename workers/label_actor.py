"""The labelling worker: one task from the images' bytes to a written file and its receipt.

A task's predictions depend on the task alone: images go through the model in the order of the task, in batches of
one padded size each, so that no image is padded because of its neighbours and a repeated task makes the same batches.
Arithmetic is the same for the same machine, number of threads and library versions; another batch size, number of
threads or processor may change the last bits of scores and boxes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import torch

import detectors
from detectors.base import Detector, Preprocessing
from detectors.batching import make_batch
from detectors.optimize import optimize
from detectors.structures import Prediction
from pipelines.jobs import Job, Receipt
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.predictions import STATUS_FAILED, STATUS_OK, ArchivePlace, write_predictions
from pipelines.quarantine import QuarantineRow, write_quarantine
from pipelines.records import Annotations, LabelMap
from pipelines.schema import STORED_FRAME, LabelRow
from pipelines.shard_paths import shard_stem
from pipelines.sources.archive import member_uri
from pipelines.storage import Store, redact
from workers.batches import to_annotations
from workers.label_inputs import (
    ArchiveReader,
    DatasetReader,
    DecodedImage,
    ImageReader,
    decoded_images,
)
from workers.memory import keep_freed_memory
from workers.models import fetch_model


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJob:
    """What a worker must know; small and picklable.

    Attributes:
        root: URI of the dataset, or of an archive's predictions.
        label_set, plan_id: of the plan.
        input_kind, input_uri: where the images are.
        model_uri, model_digest: the model; another one under the same URI is refused.
        categories: of the model's classes in its order, with the prediction set's category ids.
        score_threshold, max_detections, image_size, batch_size, precision: as in ``LabelConfig``.
        threads: of the model, and as many decode.
        device: ``cpu`` or ``cuda``.
    """

    root: str
    label_set: str
    plan_id: str
    input_kind: Literal["dataset", "archive"]
    input_uri: str
    model_uri: str
    model_digest: str
    categories: tuple[Mapping[str, Any], ...]
    score_threshold: float
    max_detections: int
    image_size: int
    batch_size: int
    precision: Literal["float32", "bfloat16"]
    threads: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """One image when the model is done with it; ``annotations`` None means that it failed."""

    decoded: DecodedImage
    annotations: Annotations | None


class LabelShard:
    """A Ray Data actor: holds the model, labels one task a call."""

    def __init__(self, job: LabelJob) -> None:
        torch.set_num_threads(job.threads)
        keep_freed_memory()
        self._job = job
        self._store = Store.open(job.root)
        self._tasks = Job(job.root, job.plan_id)
        self._label_map = LabelMap.from_json(job.categories)
        self._model = load_for_labelling(job)
        self._reader: ImageReader = (
            DatasetReader(job.input_uri) if job.input_kind == "dataset" else ArchiveReader(job.input_uri)
        )

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Label a task and put its receipt down. Returns numbers for the progress display only."""
        started = time.perf_counter()
        task_id = int(row["task"])
        task = self._tasks.read_task(task_id)
        outcomes = sorted(self._outcomes(task), key=lambda o: o.decoded.raw.place)
        assert len(outcomes) == task.num_rows, "every image of a task has one outcome"
        receipt = write_task(self._job, self._store, task_id, task, outcomes)
        # The receipt comes last: a worker that is killed leaves files that nobody names, and the task is done again.
        self._tasks.finish(task_id, receipt)
        return {
            "task": task_id,
            "images": len(outcomes),
            "failed": int(receipt.extra["failed"]),
            "objects": int(receipt.ledger["annotations"]["imported"]),
            "seconds": time.perf_counter() - started,
        }

    def _outcomes(self, task: pa.Table) -> Iterator[Outcome]:
        images = decoded_images(self._reader, task, self._model.preprocessing, threads=self._job.threads)
        for batch in batches_of_one_size(images, self._model.preprocessing, self._job.batch_size):
            if batch[0].pixels is None:
                yield from (Outcome(decoded=image, annotations=None) for image in batch)
            else:
                yield from self._predict(batch)

    def _predict(self, images: Sequence[DecodedImage]) -> Iterator[Outcome]:
        pixels = [image.pixels for image in images if image.pixels is not None]
        batch = make_batch(pixels, self._model.preprocessing)
        # The pixels were resized in the decoding threads; boxes must go back to the stored frame.
        batch = replace(batch, original_sizes=torch.tensor([image.size for image in images]))
        with torch.inference_mode():
            predictions = self._model.predict(batch.to(self._job.device))
        for image, prediction in zip(images, predictions, strict=True):
            kept = select(prediction, self._job.score_threshold, self._job.max_detections)
            yield Outcome(decoded=replace(image, pixels=None), annotations=to_annotations(kept, self._label_map))


def load_for_labelling(job: LabelJob) -> Detector:
    """The model with the job's settings, optimised.

    Raises:
        ValueError: the model under the URI is not the one that the run was planned with.
    """
    model = detectors.load(fetch_model(job.model_uri))
    if model.digest != job.model_digest:
        raise ValueError(
            f"the model at {redact(job.model_uri)} was replaced while it labelled (digest {model.digest[:12]}, planned "
            f"was {job.model_digest[:12]}); start again to label with the new one"
        )
    wanted = {
        "score_threshold": job.score_threshold,
        "max_detections": job.max_detections,
        "image_size": job.image_size,
    }
    # A user's own detector may lack such options; ``select`` narrows its predictions in any case.
    options = {**model.spec.options, **{k: v for k, v in wanted.items() if k in model.spec.options}}
    detector = detectors.create(replace(model.spec, options=options))
    detector.load_state_dict(model.detector.state_dict())
    detector.preprocessing = replace(model.detector.preprocessing, size=job.image_size)
    return optimize(detector.eval().to(job.device), dtype=job.precision)


def select(prediction: Prediction, score_threshold: float, max_detections: int) -> Prediction:
    """The best detections above the threshold."""
    keep = (prediction.scores > score_threshold).nonzero().squeeze(1)[:max_detections]
    return replace(
        prediction,
        boxes=prediction.boxes[keep],
        labels=prediction.labels[keep],
        scores=prediction.scores[keep],
        masks=None if prediction.masks is None else prediction.masks[keep],
        keypoints=None if prediction.keypoints is None else prediction.keypoints[keep],
    )


def batches_of_one_size(
    images: Iterator[DecodedImage], preprocessing: Preprocessing, batch_size: int
) -> Iterator[list[DecodedImage]]:
    """Groups images by their padded size, in order; failed ones come one by one.

    A batch is given out as soon as it is full; what remains of each size comes at the end.
    """
    waiting: dict[tuple[int, ...], list[DecodedImage]] = {}
    for image in images:
        if image.pixels is None:
            yield [image]
            continue
        size = tuple(-(-side // preprocessing.divisor) for side in image.pixels.shape[1:])
        batch = waiting.setdefault(size, [])
        batch.append(image)
        if len(batch) == batch_size:
            yield waiting.pop(size)
    yield from waiting.values()


def write_task(job: LabelJob, store: Store, task_id: int, task: pa.Table, outcomes: Sequence[Outcome]) -> Receipt:
    """Write a task's predictions and its bad images; returns the receipt, which is not yet put down."""
    planned = task.to_pylist()
    rows = [label_row(p, o) for p, o in zip(planned, outcomes, strict=True)]
    places = None
    stem = f"archive-{job.plan_id[:16]}"
    if job.input_kind == "archive":
        places = [_place(job, p, o.decoded) for p, o in zip(planned, outcomes, strict=True)]
    else:
        stem = shard_stem(planned[0]["image_path"])
    bad = [_quarantine_row(job, p, o.decoded) for p, o in zip(planned, outcomes) if o.annotations is None]
    quarantine = write_quarantine(store, job.plan_id, f"{task_id:06d}", bad) if bad else None
    file = write_predictions(store, job.label_set, stem, rows, places)
    return Receipt(
        task_id=task_id,
        files=(file,),
        ledger=_ledger(outcomes, bad).to_json(),
        extra={"failed": len(bad), "quarantine": quarantine},
    )


def label_row(planned: Mapping[str, Any], outcome: Outcome) -> LabelRow:
    """The row of one image; an archive's size is known only now."""
    decoded = outcome.decoded
    failure = decoded.failure
    height, width = decoded.size
    turned = decoded.header is not None and decoded.header.exif_orientation != 1
    return LabelRow(
        image_id=planned["image_id"],
        row=planned["row"],
        row_group=planned["row_group"],
        split=planned["split"],
        coco_image_id=planned["coco_image_id"],
        width=planned["width"] or width,
        height=planned["height"] or height,
        annotations=outcome.annotations,
        box_frame=STORED_FRAME if turned else None,
        status=STATUS_OK if failure is None else STATUS_FAILED,
        error=None if failure is None else f"{failure.stage}: {failure.error_class}: {failure.error}",
        input_sha256=decoded.sha256,
    )


def _place(job: LabelJob, planned: Mapping[str, Any], decoded: DecodedImage) -> ArchivePlace:
    header = decoded.header
    return ArchivePlace(
        source=redact(job.input_uri),
        member=planned["image_id"],
        offset=decoded.raw.offset,
        length=decoded.raw.length,
        format=None if header is None else header.format,
        exif_orientation=None if header is None else header.exif_orientation,
    )


def _quarantine_row(job: LabelJob, planned: Mapping[str, Any], decoded: DecodedImage) -> QuarantineRow:
    assert decoded.failure is not None
    where = planned["image_path"]
    return QuarantineRow(
        image_id=planned["image_id"],
        source=member_uri(job.input_uri, planned["image_id"]) if where is None else f"{redact(job.root)}/{where}",
        stage=decoded.failure.stage,
        error_class=decoded.failure.error_class,
        error=decoded.failure.error,
        sha256=decoded.sha256,
    )


def _ledger(outcomes: Sequence[Outcome], bad: Sequence[QuarantineRow]) -> Ledger:
    ledger = Ledger()
    ledger.imported("image", len(outcomes) - len(bad))
    ledger.imported("annotation", sum(len(o.annotations) for o in outcomes if o.annotations is not None))
    ledger.extend(
        LedgerEntry(
            subject="image",
            fate="quarantined",
            reason=f"{row.stage}: {row.error_class}",
            image_id=row.image_id,
            detail=row.error,
        )
        for row in bad
    )
    return ledger
