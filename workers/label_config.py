"""What a labelling run is told and what it hands back, without importing anything heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """One labelling run, JSON-able by ``to_json``.

    Attributes:
        input: a dataset reference; or on any fsspec URL a folder, prefix, tar, tar.gz or zip of images, WebDataset
            tars, or a list of URLs; see ``input_format``.
        model: URI of a model directory.
        out: for a dataset the name of the label set, by default ``pred-`` and eight digits of the model's digest;
            for an archive, which needs it, the URI under which its predictions go.
        splits: of a dataset; None labels all images.
        input_format: "auto" takes a URI with {000..099} in it for WebDataset tars, .txt and .urls for a list of URLs,
            anything else that is no dataset for an archive: a folder, tar, tar.gz or zip of images.
        score_threshold: detections must score above this, 0 to 1.
        class_thresholds: other thresholds for some classes, by name.
        thresholds: URI of a JSON file of such thresholds, or of what `boxmill evaluate` wrote with `--report` and
            `--metrics`, whose best one of each class is taken; `class_thresholds` win over it.
        max_detections: an image.
        image_size: the longer side in model pixels; None is the model's own.
        tile: side of overlapping tiles, pixels of the image, in which larger images are looked at besides as a whole:
            small objects are found at the size that the model was made for. None: only as a whole.
        tile_overlap: part of a tile's side that neighbours share; objects up to this size are whole in one of them.
        near_duplicates: label images that show the same picture once: each further one of equal stored size and
            orientation gets the predictions of the first, and its row says so. Looks at all images once more before.
        near_duplicate_bits: of 64, that may differ in each of an image's two hashes; 0 to 10.
        flips: look at every image mirrored as well, and fuse what is found.
        scales: look at every image in each of these sizes, parts of ``image_size``, and fuse what is found.
        batch_size: images of one size that go through the model together.
        workers: processes, at most.
        min_workers: as few of them run while there is little to do, or little room in the cluster; None: always all.
        cpus_per_worker: threads of the model in each.
        use_gpu: "auto" uses the cluster's GPUs where it has any.
        gpus_per_worker: of each worker, 0.25 puts four on one GPU; None divides the GPUs among the workers, at most
            one for each.
        precision: of the network's arithmetic. "auto" is float32, so that a machine with other instructions
            continues a run with the same numbers.
        task_images: images a task, the unit of resuming; None is 1/16 of the input, 8 to 256.
        max_attempts: at a task, before its images are given up as failed ones.
        max_dead_share: part of the tasks that may be given up; beyond it the run ends, since it is not the images'
            fault then. One task always may.
        price_per_hour: of all machines of the run together, in any currency: what a million images cost is told then.
        allow_extra_classes: give classes of the model that the dataset lacks new category ids in the label set,
            instead of refusing the model.
        coco_results: URI of a COCO results file to write at the end.
        retry: label nothing but what has failed in the finished run of the same input, model and settings: "failed" are
            the images of tasks that were given up, "quarantined" those that could not be read or decoded.
        ray_address: see ``workers.cluster``.
    """

    input: str
    model: str
    out: str | None = None
    splits: tuple[str, ...] | None = None
    input_format: Literal["auto", "dataset", "archive", "webdataset", "url_list"] = "auto"
    score_threshold: float = 0.05
    class_thresholds: Mapping[str, float] = field(default_factory=dict)
    thresholds: str | None = None
    max_detections: int = 100
    image_size: int | None = None
    tile: int | None = None
    tile_overlap: float = 0.2
    near_duplicates: bool = False
    near_duplicate_bits: int = 6
    flips: bool = False
    scales: tuple[float, ...] = (1.0,)
    batch_size: int = 8
    workers: int = 2
    min_workers: int | None = None
    cpus_per_worker: int = 1
    use_gpu: bool | Literal["auto"] = "auto"
    gpus_per_worker: float | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    task_images: int | None = None
    max_attempts: int = 5
    max_dead_share: float = 0.1
    price_per_hour: float | None = None
    allow_extra_classes: bool = False
    coco_results: str | None = None
    retry: Literal["failed", "quarantined"] | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_detections", "batch_size", "workers", "cpus_per_worker", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("image_size", "task_images", "min_workers", "tile"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, or None")
        if not 0 <= self.score_threshold < 1:
            raise ValueError(f"score_threshold={self.score_threshold} must lie in 0 <= score_threshold < 1")
        for name, threshold in self.class_thresholds.items():
            if not 0 <= threshold < 1:
                raise ValueError(f"class_thresholds of {name!r} is {threshold}; it must lie in 0 <= threshold < 1")
        if not 0 <= self.tile_overlap <= 0.9:
            raise ValueError(f"tile_overlap={self.tile_overlap} must lie in 0 to 0.9")
        if not 0 <= self.near_duplicate_bits <= 10:
            raise ValueError(f"near_duplicate_bits={self.near_duplicate_bits} must lie in 0 to 10")
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if not self.scales or len(set(self.scales)) < len(self.scales) or not all(0 < s <= 8 for s in self.scales):
            raise ValueError(f"scales={self.scales}: give one or more, each once, above 0 and at most 8")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        gpus = self.gpus_per_worker
        if gpus is not None and (gpus <= 0 or (gpus > 1 and gpus % 1)):
            raise ValueError(f"gpus_per_worker={gpus} must be a part of one GPU or a whole number of them")
        if not 0 <= self.max_dead_share <= 1:
            raise ValueError(f"max_dead_share={self.max_dead_share} must lie in 0 to 1")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise ValueError(f"price_per_hour={self.price_per_hour} must be a price, 0 or more")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is not known; choose auto, float32 or bfloat16")
        if self.retry is not None and self.coco_results is not None:
            raise ValueError("retry and coco_results: write the results with `boxmill export coco` afterwards")
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
        account_uri: of the JSON document that says what it took; None where the version was made without one.
        account: that document, see ``workers.label_account.LabelAccount``.
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
    account_uri: str | None = None
    account: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
