"""What a training run is told, without importing anything heavy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# Where and how a run executes is not what it computes: a rerun elsewhere resumes the same job. The inputs count by
# their digests, not by their addresses.
_EXECUTION = {
    "out",
    "overwrite",
    "cpus_per_worker",
    "ray_address",
    "cache_mb",
    "keep_checkpoints",
    "max_failures",
    "use_gpu",
}
_INPUTS = {"dataset", "init_from", "pretrained", "pretrained_backbone"}
# Runs from before there was a choice keep their digests, and so their checkpoints.
_AUGMENT_SINCE = {"rotation": 0.0, "copy_paste": 0.0}

VALIDATED = ("AP", "AP50", "AP75", "segm_AP", "segm_AP50", "keypoints_AP", "keypoints_AP50")
"""What of a validation is told while a run goes on: of boxes, and of masks and keypoints where they are learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """How training images are varied.

    Attributes:
        horizontal_flip, vertical_flip: probabilities, 0 to 1.
        scale: (low, high) zoom; above 1 a crop is enlarged, below 1 the image is shrunk and padded. (0.1, 2) is
            large-scale jitter.
        rotation: a turn in degrees drawn from [-x, x], 0 to 45; a few are best where objects have no masks.
        copy_paste: probability that objects of another image are pasted over this one by their masks, 0 to 1.
        brightness, contrast, saturation: a factor is drawn from [1 - x, 1 + x]; 0 is none.
        hue: a turn of the colour circle drawn from [-x, x]; 0.5 is half of it.
        min_visible: objects with a smaller part of their box left in view are removed, 0 to 1.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (0.7, 1.5)
    rotation: float = 0.0
    copy_paste: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    min_visible: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run, JSON-able by ``to_json``.

    Attributes:
        dataset: reference, ``URI`` or ``URI@labels/<set>[:<version>]``; pinned to a version when the run starts.
        out: directory of the model, any fsspec URL; checkpoints go to ``<out>/_train/<run name>``.
        detector: a name of ``detectors.list_detectors()`` or ``package.module:factory``.
        detector_options: passed on to the detector's factory.
        pretrained_backbone: ``imagenet``, the name of known weights, a path, URL or hub id of weights, or None for
            random ones.
        pretrained: weights of the whole detector, instead: ``coco``, the name of known weights, or a path, URL or hub
            id. Classes are matched by name; where the weights have a class no more, or not yet, its part of the
            predicting layers starts at random. A backbone's weights are known as such.
        init_from: URI of a model to start from, instead; classes are matched by name as well.
        train_split: split to learn from; "" is the split of a dataset without any.
        val_split: split to validate on after each epoch, None for no validation.
        image_size: the longer side in model pixels.
        batch_size: images a worker and step.
        workers: processes that train together, 1 or more.
        cpus_per_worker: None shares the cluster's CPUs out, at most 8 each.
        use_gpu: "auto" uses GPUs where the cluster has one a worker.
        optimizer: "adamw" or "sgd"; norm and bias parameters are never decayed.
        lr: the highest learning rate, after ``warmup_steps``; a cosine then leads to ``final_lr_ratio`` of it.
        backbone_lr_ratio: the learning rate of the backbone relative to ``lr``.
        clip_norm: gradients are clipped to this global norm; None leaves them.
        ema: decay of the moving average of weights a step, 0 is off. It is what is validated and saved.
        precision: "float32", "bfloat16" (autocast) or "auto": bfloat16 where the GPU or CPU has instructions for it.
        val_every: epochs between validations; the last epoch is always validated.
        keep_checkpoints: how many of the newest checkpoints stay.
        max_failures: times that the run goes on from its last checkpoint after a worker or node was lost.
        cache_mb: encoded images that a worker keeps in memory, so that a small dataset is read once; as much again of
            the validation split.
        overwrite: replace a model of another job in ``out``.
        ray_address: see ``workers.cluster``.
    """

    dataset: str
    out: str
    detector: str = "retinanet_lite0"
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    pretrained_backbone: str | None = "imagenet"
    pretrained: str | None = None
    init_from: str | None = None
    train_split: str = "train"
    val_split: str | None = "val"
    epochs: int = 15
    image_size: int = 416
    batch_size: int = 4
    workers: int = 2
    cpus_per_worker: int | None = None
    use_gpu: bool | Literal["auto"] = "auto"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    backbone_lr_ratio: float = 1.0
    final_lr_ratio: float = 0.01
    weight_decay: float = 0.05
    momentum: float = 0.9
    warmup_steps: int = 50
    clip_norm: float | None = 10.0
    ema: float = 0.99
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    val_every: int = 1
    keep_checkpoints: int = 1
    max_failures: int = 0
    cache_mb: int = 1024
    overwrite: bool = False
    ray_address: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "image_size",
            "batch_size",
            "workers",
            "val_every",
            "keep_checkpoints",
            "cache_mb",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer {self.optimizer!r} is not known; choose adamw or sgd")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is not known; choose auto, float32 or bfloat16")
        if self.pretrained is not None and self.init_from is not None:
            raise ValueError(
                f"pretrained={self.pretrained} and init_from={self.init_from} are two sets of weights to start from; "
                "give one of them"
            )
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be above 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema} must lie in 0 <= ema < 1, such as 0.99; 0 switches it off")
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise ValueError(f"cpus_per_worker={self.cpus_per_worker} must be at least 1, or None")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be above 0, or None for no clipping")
        for name in ("backbone_lr_ratio", "weight_decay", "warmup_steps", "max_failures"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        for name in ("final_lr_ratio", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in 0..1")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        augment = dict(values.get("augment", {}))
        if "scale" in augment:
            low, high = augment["scale"]
            augment["scale"] = (low, high)
        return cls(**{**values, "augment": AugmentConfig(**augment)})

    def job_digest(self, **inputs: str) -> str:
        """sha256 of what decides the result: these settings and the digests of the inputs."""
        settings = {k: v for k, v in self.to_json().items() if k not in _EXECUTION | _INPUTS}
        settings["augment"] = {k: v for k, v in settings["augment"].items() if _AUGMENT_SINCE.get(k) != v}
        text = json.dumps({"settings": settings, "inputs": inputs}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """A checked run, as its workers get it.

    Attributes:
        config: with ``out`` absolute.
        reference: the dataset, pinned to one version.
        dataset_digest: of that version.
        categories: ``LabelMap.to_json()`` in the order of the model's classes.
        detector, detector_options: what ``detectors.create`` is called with.
        digest: of all that decides the result; names the run.
        cpus_per_worker: threads of each worker.
        loaded_weights: what it starts from, see ``detectors.checkpoint.summarise_report``.
    """

    config: TrainConfig
    reference: str
    dataset_digest: str
    categories: tuple[dict[str, Any], ...]
    detector: str
    detector_options: dict[str, Any]
    digest: str
    cpus_per_worker: int
    loaded_weights: dict[str, Any] | None = None

    @property
    def run_name(self) -> str:
        return f"{self.detector.replace(':', '_').replace('.', '_')}-{self.digest[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A trained model.

    Attributes:
        uri: its directory.
        digest: sha256 of its contents, hex.
        metrics: of the last validation (``AP``, ``AP50``, ...; ``segm_AP``, ``keypoints_AP``, ... of masks and
            keypoints where the detector gives them), empty where there was none.
        history: one entry an epoch: ``epoch`` (from 1), ``loss``, ``loss_<name>``, ``lr``, ``grad_norm``, ``seconds``
            and, after epochs that were validated, what ``metrics`` says.
        seconds: of all epochs, those before a resume included.
        loaded_weights: what it started from and what of that was used, see
            ``detectors.checkpoint.summarise_report``; None is random.
    """

    uri: str
    digest: str
    metrics: dict[str, float]
    history: tuple[dict[str, Any], ...]
    seconds: float
    loaded_weights: dict[str, Any] | None = None
