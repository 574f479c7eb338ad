"""The model of a labelling worker: loaded with the job's settings, optimised, fed with batches of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import detectors
from detectors.base import Detector, Preprocessing
from detectors.batching import fit_size, make_batch
from detectors.class_thresholds import set_class_thresholds
from detectors.optimize import optimize
from detectors.predicting import Predict, predictor
from detectors.structures import Prediction
from detectors.test_time import views_predictor
from detectors.tiling import predict_tiled
from pipelines.storage import redact
from workers.label_inputs import DecodedImage
from workers.label_job import LabelJob
from workers.models import fetch_model

MOST_WAITING = 512 << 20
"""Bytes of pixels that wait for more of their size; a batch of eight images of 20 megapixels fits."""
_ALL = 1 << 30  # detections: more than there are


def load_for_labelling(job: LabelJob) -> Detector:
    """The model with the job's settings, optimised.

    Where classes have thresholds of their own, these act before ``max_detections``, see
    ``detectors.class_thresholds``; a user's own detector without a ``selection`` keeps its best so many before.

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
        "score_threshold": min(job.thresholds),
        "max_detections": job.max_detections,
        "image_size": job.image_size,
    }
    # A user's own detector may lack such options; ``select`` narrows its predictions in any case.
    options = {**model.spec.options, **{k: v for k, v in wanted.items() if k in model.spec.options}}
    detector = detectors.create(replace(model.spec, options=options))
    detector.load_state_dict(model.detector.state_dict())
    detector.preprocessing = replace(model.detector.preprocessing, size=job.image_size)
    if len(set(job.thresholds)) > 1:
        set_class_thresholds(detector, job.thresholds)
    return optimize(detector.eval().to(job.device), dtype=job.precision)


class LabelModel:
    """The model as a job looks through it; one thread calls it.

    Attributes:
        detector: the optimised one.
        whole: it wants images as large as they are, since it cuts or resizes them itself.
        batch_size: images of one size that it takes together.
    """

    def __init__(self, job: LabelJob) -> None:
        self.detector = load_for_labelling(job)
        self.whole = job.tiling is not None or job.views is not None
        # A large image makes a batch of its own tiles.
        self.batch_size = 1 if job.tiling is not None else job.batch_size
        self._job = job
        self._thresholds = torch.tensor(job.thresholds)
        # Fused scores may fall below the thresholds of classes, which come last: until then nothing takes places.
        self._most = job.max_detections if len(set(job.thresholds)) == 1 else _ALL
        self._look = self._looking() if self.whole else None

    def _looking(self) -> Predict:
        job = self._job
        if job.views is None:
            return predictor(self.detector, batch_size=job.batch_size, device=job.device)
        views = replace(job.views, max_detections=self._most)
        return views_predictor(self.detector, views, batch_size=job.batch_size, device=job.device)

    def predict(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        """What is found in images of one size, in stored pixels, on the CPU, the best ones above their thresholds."""
        pixels = [image.pixels for image in images if image.pixels is not None]
        if self._look is None:
            found = self._predict_resized(pixels, [image.size for image in images])
        elif self._job.tiling is None:
            found = on_cpu(self._look(pixels))
        else:
            found = [
                predict_tiled(
                    self._look,
                    image,
                    self._job.tiling,
                    max_detections=self._most,
                    tiles_at_once=self._job.batch_size,
                )
                for image in pixels
            ]
        return [select(prediction, self._thresholds, self._job.max_detections) for prediction in found]

    def _predict_resized(self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        # Bytes go to the device, where they become numbers: a quarter of what would be sent otherwise.
        there = [image.to(self._job.device, non_blocking=True) for image in pixels]
        # They were resized in the decoding threads; boxes must go back to the stored frame.
        batch = replace(make_batch(there, self.detector.preprocessing), original_sizes=torch.tensor(sizes))
        with torch.inference_mode():
            return on_cpu(self.detector.predict(batch))


def on_cpu(predictions: list[Prediction]) -> list[Prediction]:
    """Predictions of a batch on the CPU: one transfer a field, not one an image."""
    if not predictions or predictions[0].boxes.device.type == "cpu":
        return predictions
    counts = [len(prediction) for prediction in predictions]
    fields: dict[str, tuple[Tensor, ...]] = {}
    for name in ("boxes", "labels", "scores", "masks", "keypoints"):
        parts = [getattr(prediction, name) for prediction in predictions]
        if parts[0] is not None:
            fields[name] = torch.cat(parts).cpu().split(counts)
    return [
        replace(prediction, **{name: parts[i] for name, parts in fields.items()})
        for i, prediction in enumerate(predictions)
    ]


def select(prediction: Prediction, thresholds: Tensor, max_detections: int) -> Prediction:
    """The best detections above their class's threshold; ``thresholds`` is (C,)."""
    above = prediction.scores > thresholds[prediction.labels]
    return prediction.take(above.nonzero().squeeze(1)[:max_detections])


class SizeBatches:
    """Groups images by their padded size in model pixels, in order; failed ones come one by one.

    A batch is given out as soon as it is full; what remains of each size comes at the end. Where pixels of more than
    ``most_bytes`` wait, the size that waits longest goes first: batches depend on the images alone, and memory does not
    depend on how many sizes there are.
    """

    def __init__(self, preprocessing: Preprocessing, batch_size: int, *, most_bytes: int = MOST_WAITING) -> None:
        self._preprocessing, self._batch_size, self._most_bytes = preprocessing, batch_size, most_bytes
        self._waiting: dict[tuple[int, ...], list[DecodedImage]] = {}
        self._held = 0  # bytes

    def add(self, image: DecodedImage) -> list[list[DecodedImage]]:
        """The batches that go now that it is there: one that is full with it, or those that wait longest."""
        if image.pixels is None:
            return [[image]]
        resized = fit_size(image.pixels.shape[1], image.pixels.shape[2], self._preprocessing)
        size = tuple(-(-side // self._preprocessing.divisor) for side in resized)
        batch = self._waiting.setdefault(size, [])
        batch.append(image)
        self._held += image.pixels.nbytes
        gone = [self._take(size)] if len(batch) == self._batch_size else []
        while self._held > self._most_bytes:
            gone.append(self._take(next(iter(self._waiting))))
        return gone

    def _take(self, size: tuple[int, ...]) -> list[DecodedImage]:
        batch = self._waiting.pop(size)
        self._held -= sum(image.pixels.nbytes for image in batch if image.pixels is not None)
        return batch

    def rest(self) -> list[list[DecodedImage]]:
        """What is left when no more images come."""
        left, self._waiting, self._held = list(self._waiting.values()), {}, 0
        return left
