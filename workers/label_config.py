"""What a labelling run is told and what it hands back, without importing anything heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """One labelling run, JSON-able by ``to_json``.

    Attributes:
        input: a dataset reference, or a folder, prefix, tar, tar.gz or zip of images on any fsspec URL.
        model: URI of a model directory.
        out: for a dataset the name of the label set, by default ``pred-`` and eight digits of the model's digest;
            for an archive, which needs it, the URI under which its predictions go.
        splits: of a dataset; None labels all images.
        score_threshold: detections must score above this, 0 to 1.
        max_detections: an image.
        image_size: the longer side in model pixels; None is the model's own.
        batch_size: images of one size that go through the model together.
        workers: processes.
        cpus_per_worker: threads of the model in each.
        use_gpu: "auto" uses the cluster's GPUs where it has any.
        precision: of the network's arithmetic. "auto" is float32, so that a machine with other instructions
            continues a run with the same numbers.
        task_images: images a task, the unit of resuming; None is 1/16 of the input, 8 to 256.
        allow_extra_classes: give classes of the model that the dataset lacks new category ids in the label set,
            instead of refusing the model.
        coco_results: URI of a COCO results file to write at the end.
        ray_address: see ``workers.cluster``.
    """

    input: str
    model: str
    out: str | None = None
    splits: tuple[str, ...] | None = None
    score_threshold: float = 0.05
    max_detections: int = 100
    image_size: int | None = None
    batch_size: int = 8
    workers: int = 2
    cpus_per_worker: int = 1
    use_gpu: bool | Literal["auto"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    task_images: int | None = None
    allow_extra_classes: bool = False
    coco_results: str | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_detections", "batch_size", "workers", "cpus_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("image_size", "task_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, or None")
        if not 0 <= self.score_threshold < 1:
            raise ValueError(f"score_threshold={self.score_threshold} must lie in 0 <= score_threshold < 1")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is not known; choose auto, float32 or bfloat16")
        if self.splits is not None:
            object.__setattr__(self, "splits", tuple(self.splits))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LabelConfig:
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSetRef:
    """What flows pass around.

    Attributes:
        reference: ``URI@labels/<set>:<version>``.
        digest: of the version's content.
        num_images: rows of the version, failed ones too.
        num_objects: detections of the version.
        num_quarantined: inputs of this run that could not be read or decoded, and refused members of an archive.
        coco_results_uri: where the results file went, None where none was asked for.
        seconds: wall time of this call.
        found: the version was there already, or another run of the same plan committed it first.
        tasks: of the plan; 0 where the version was found and the plan's folder was deleted.
        resumed: of these, done by earlier runs or by others at the same time.
    """

    reference: str
    digest: str
    num_images: int
    num_objects: int
    num_quarantined: int
    coco_results_uri: str | None
    seconds: float
    found: bool
    tasks: int
    resumed: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
