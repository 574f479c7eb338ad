"""What a user may say: one strict config for each flow, checked before anything starts.

The settings of training and labelling are the workers' own dataclasses (see ``flows.mirror``); a flow's config adds
where things are read and written. ``LifecycleConfig`` nests the settings of all stages.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from flows.mirror import Strict, build, strict_model
from pipelines.metrics.gates import parse_gates
from pipelines.route_rules import RouteRules
from pipelines.splits import parse_ratios
from workers import label_config, train_config

__all__ = [
    "EvaluateConfig",
    "ExportConfig",
    "GalleryConfig",
    "IngestConfig",
    "LabelConfig",
    "LifecycleConfig",
    "MaintainConfig",
    "RelabelConfig",
    "RouteConfig",
    "TrainConfig",
    "explain",
]

RAY_ADDRESS = (
    "host:port or ray://host:port of a cluster to join, or the http(s) address of its dashboard to submit a Ray Job "
    "to; none: RAY_ADDRESS, else this machine"
)

Dedupe = Literal["report", "drop", "keep"]


class IngestSettings(Strict):
    """Which source to read, and how."""

    source: str = Field(
        "synthetic", description="kind of source, such as coco, voc, yolo, synthetic, archive; see docs/ingest.md"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the source's own options")
    label_set: str = Field("gt", description="name of the truth's label set")
    strict: bool = Field(False, description="refuse bad images and annotations instead of mending or quarantining")
    hash_inputs: bool = Field(False, description="recognise changed inputs by sha256, not by size and time")
    deep_check: bool = Field(False, description="decode every image to its last pixel; quarantine what is damaged")
    dedupe: Dedupe = Field(
        "report",
        description="images with the same bytes: count them, drop later ones (never the only labelled one), keep "
        "without looking",
    )
    near_duplicates: bool = Field(False, description="count images that look like an earlier one; decodes all of them")
    split_ratio: dict[str, float] | None = Field(
        None,
        description="divide the images into splits, e.g. train=0.8,val=0.2, or a mapping; none: the source's splits",
    )
    split_by: str = Field(
        "group_id",
        description="what stays in one split: group_id (the image itself where the source knows no groups), image_id, "
        "or a column of the source such as patient",
    )
    split_pattern: str | None = Field(
        None, description="regular expression on image_id that gives the group instead, e.g. ^([^/]+)/ for its folder"
    )
    split_seed: int = Field(0, description="another seed gives another division")
    split_keep: tuple[str, ...] = Field((), description="splits that stay as the source has them, e.g. test")

    @field_validator("split_ratio", mode="before")
    @classmethod
    def _parse_ratio(cls, value: Any) -> Any:
        return parse_ratios(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _splits_need_a_ratio(self) -> IngestSettings:
        given = sorted(name for name in self.model_fields_set if name.startswith("split_"))
        told = [name for name in given if getattr(self, name) != type(self).model_fields[name].default]
        if self.split_ratio is None and told:
            raise ValueError(f"{told[0]} is about split_ratio, which is not given")
        if self.split_pattern is not None and self.split_by != "group_id":
            raise ValueError("give split_by or split_pattern, not both")
        return self


class IngestConfig(IngestSettings):
    """Images and annotations of a source into a dataset version."""

    dataset: str = Field(description="URI of the dataset, any fsspec URL; made where it does not exist")
    ray_address: str | None = Field(None, description=RAY_ADDRESS)


class RelabelConfig(Strict):
    """Labels of a source for images that a dataset has: a further label set, or other labels in one."""

    dataset: str = Field(description="reference of the images: URI or URI@labels/<set>[:<version>]")
    source: str = Field(
        "coco",
        description="kind of source; labels for a label set. Of coco, and of label_studio and cvat without images, the "
        "annotation file alone is read",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the source's own options")
    label_set: str | None = Field(None, description="a new label set; none: replace labels where they are")
    others: Literal["keep", "unlabelled", "leave out"] | None = Field(
        None,
        description="images that the source does not name: keep their labels, make them unlabelled, leave them out; "
        "none: keep where labels are replaced, leave out in a new label set",
    )
    strict: bool = Field(False, description="refuse bad annotations instead of mending or dropping them")


class MaintainConfig(Strict):
    """Is everything there as it was written, and away with what no version names."""

    dataset: str = Field(description="URI of the dataset, any fsspec URL")
    verify: bool = Field(True, description="read every file of the newest versions again and compare digests")
    vacuum: bool = Field(True, description="delete files that no version names")
    grace_hours: float = Field(168.0, ge=1, description="younger files stay; longer than the longest ingest takes")


TrainSettings = strict_model("TrainSettings", train_config.TrainConfig, without=("dataset", "out", "ray_address"))


class TrainConfig(TrainSettings):
    """A detector trained on a dataset version."""

    dataset: str = Field(description="reference: URI or URI@labels/<set>[:<version>]")
    out: str = Field(description="directory of the model, any fsspec URL")
    ray_address: str | None = Field(None, description=RAY_ADDRESS)

    def to_worker(self) -> train_config.TrainConfig:
        return build(train_config.TrainConfig, self.model_dump())


LabelSettings = strict_model(
    "LabelSettings",
    label_config.LabelConfig,
    without=("input", "model", "out", "splits", "coco_results", "retry", "ray_address"),
)


class LabelConfig(LabelSettings):
    """A model's predictions for a dataset, or for a folder, tar or zip of images."""

    input: str = Field(
        description="dataset reference, or URI of a folder, tar, tar.gz or zip of images, WebDataset tars or a URL list"
    )
    model: str = Field(description="directory that train wrote, any fsspec URL")
    more_models: tuple[str, ...] = Field(
        (), description="further models for the same images, which are read once; each has its own predictions"
    )
    out: str | None = Field(
        None,
        description="name of the predictions' label set, with several models followed by eight digits of each one's "
        "digest; for a folder or archive the URI where they go",
    )
    splits: tuple[str, ...] | None = Field(None, description="splits of a dataset; none: all images")
    coco_results: str | None = Field(None, description="COCO results file to write as well, any fsspec URL")
    retry: Literal["failed", "quarantined"] | None = Field(
        None, description="label only what has failed before: in tasks that were given up, or in reading and decoding"
    )
    ray_address: str | None = Field(None, description=RAY_ADDRESS)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, *self.more_models)

    def to_worker(self) -> label_config.LabelConfig:
        return build(label_config.LabelConfig, self.model_dump(exclude={"more_models"}))

    def with_thresholds_read(self) -> LabelConfig:
        """With the numbers in place of the file that has them: it may lie elsewhere, or change."""
        if self.thresholds is None:
            return self
        from pipelines.threshold_files import read_class_thresholds

        told = read_class_thresholds(self.thresholds) | self.class_thresholds
        return self.model_copy(update={"thresholds": None, "class_thresholds": told})


RouteSettings = strict_model("RouteSettings", RouteRules)


class RouteConfig(RouteSettings):
    """Predictions divided by confidence into label sets to accept, review and reject."""

    predictions: str = Field(description="reference of the predictions")
    name: str | None = Field(None, description="what the sets' names begin with; none: the predictions' own name")

    def rules(self) -> RouteRules:
        return build(RouteRules, self.model_dump(exclude={"predictions", "name"}))


class GalleryConfig(Strict):
    """A folder of static files in which to look through images."""

    dataset: str = Field(description="reference of truth, or of predictions on their own")
    predictions: str | None = Field(None, description="reference of predictions to compare with the truth")
    out: str = Field(description="folder to write, any fsspec URL")
    splits: tuple[str, ...] | None = Field(None, description="splits to show; none: all")
    images: int = Field(2000, ge=1, description="most images to show")
    choose: Literal["random", "uncertain", "first"] = Field(
        "random", description="which images, where there are more: random (always the same), uncertain or first"
    )
    size: int = Field(640, ge=16, description="longest side of the pictures, pixels")
    uncertainty: Literal["margin", "entropy", "least_confident"] = Field(
        "margin",
        description="of an object: margin 1 - |2s - 1|, entropy of its score s in bits, or least_confident 1 - s",
    )
    aggregate: Literal["max", "mean", "sum"] = Field("max", description="of an image: over its objects")
    title: str | None = Field(None, description="of the page")


class EvaluateSettings(Strict):
    """What to measure."""

    splits: tuple[str, ...] | None = Field(None, description="splits to measure on; none: every image of the truth")
    title: str | None = Field(None, description="title of the report")
    iou_type: Literal["bbox", "segm", "keypoints"] = Field(
        "bbox", description="what is compared: boxes, masks or keypoints"
    )
    protocol: Literal["coco", "voc07", "voc10", "lvis"] = Field(
        "coco", description="whose rules: COCO's, PASCAL VOC's of 2007 or from 2010 (boxes), LVIS's (boxes and masks)"
    )
    by: tuple[str, ...] = Field(
        (), description="also measure parts of the dataset: by split, source, size or another column, e.g. patient"
    )
    resamples: int = Field(
        1000, ge=0, description="draws of the images for confidence intervals and comparison; 0 for no intervals"
    )
    oks_sigmas: dict[str, tuple[float, ...]] = Field(
        default_factory=dict, description="spread of each keypoint by category, where it has other than COCO's 17"
    )


class EvaluateConfig(EvaluateSettings):
    """Metrics of predictions against truth by COCO's rules or others', with a report."""

    dataset: str = Field(description="reference of the truth")
    predictions: str = Field(description="reference of the predictions")
    model: str | None = Field(None, description="model directory whose training curves the report shows")
    report: str | None = Field(None, description="where to write the HTML report, any fsspec URL")
    metrics: str | None = Field(None, description="where to write the numbers as JSON, any fsspec URL")
    markdown: str | None = Field(None, description="where to write them as Markdown, any fsspec URL")
    matches: str | None = Field(None, description="folder to write every match to, as Parquet, any fsspec URL")
    cache: str | None = Field(
        None, description="folder that remembers matches, so that only changed shards are matched again, any fsspec URL"
    )
    workers: int = Field(1, ge=1, description="Ray tasks that match shards at once, for COCO's numbers alone")
    ray_address: str | None = Field(None, description=RAY_ADDRESS)
    compare: str | None = Field(None, description="reference of other predictions, which these are compared with")
    fail_under: dict[str, float] = Field(
        default_factory=dict, description="numbers that must be reached, e.g. AP=0.5, or a mapping"
    )
    baseline: dict[str, float | None] | None = Field(
        None, description="an untrained model's numbers by name, to show beside these"
    )

    @field_validator("fail_under", mode="before")
    @classmethod
    def _parse_gates(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        return parse_gates(value) if isinstance(value, list | tuple) else value


class ExportConfig(Strict):
    """A dataset version in another format, or predictions as a COCO results file."""

    format: str = Field("coco", description="coco, lvis, yolo, voc, hf_parquet, label_studio, cvat; see docs/export.md")
    options: dict[str, Any] = Field(default_factory=dict, description="the format's own options")
    dataset: str = Field(description="reference of truth or predictions")
    out: str = Field(description="folder to write; for predictions the results file; any fsspec URL")
    splits: tuple[str, ...] | None = Field(None, description="splits to write; none: all")
    images: bool | None = Field(None, description="write the image files as well; none: as is usual for the format")


class LifecycleConfig(Strict):
    """Everything from a source to a report: ingest, baseline, train, label, evaluate, export."""

    out: str = Field(description="folder of all that is made: dataset, model, report, exports; any fsspec URL")
    ingest: IngestSettings = Field(default_factory=IngestSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    label: LabelSettings = Field(default_factory=LabelSettings)
    evaluate: EvaluateSettings = Field(default_factory=lambda: EvaluateSettings(splits=("val",)))
    baseline: bool = Field(True, description="measure the untrained detector as well, to compare with")
    ray_address: str | None = Field(None, description=RAY_ADDRESS)

    def place(self, name: str) -> str:
        """URI of something inside ``out``."""
        return f"{self.out.rstrip('/')}/{name}"

    def ingest_config(self) -> IngestConfig:
        return IngestConfig(**self.ingest.model_dump(), dataset=self.place("dataset"), ray_address=self.ray_address)

    def train_config(self, dataset: str, out: str) -> TrainConfig:
        return TrainConfig(**self.train.model_dump(), dataset=dataset, out=out, ray_address=self.ray_address)

    def label_config(self, dataset: str, model: str) -> LabelConfig:
        return LabelConfig(
            **self.label.model_dump(),
            input=dataset,
            model=model,
            splits=self.evaluate.splits,
            ray_address=self.ray_address,
        )

    def evaluate_config(self, dataset: str, predictions: str, **more: Any) -> EvaluateConfig:
        return EvaluateConfig(**self.evaluate.model_dump(), dataset=dataset, predictions=predictions, **more)


def explain(error: ValidationError) -> str:
    """A validation error in one line, each key by its full name."""
    parts = []
    for problem in error.errors(include_url=False, include_context=False):
        key = ".".join(str(part) for part in problem["loc"])
        match problem["type"]:
            case "extra_forbidden":
                parts.append(f"unknown setting {key!r}")
            case "missing":
                parts.append(f"{key} is needed")
            case _:
                # Our own checks speak for themselves; of a whole config the value says nothing, and may hold secrets.
                told = problem["msg"].removeprefix("Value error, ")
                parts.append(f"{key}={problem['input']!r}: {told}" if key else told)
    return f"{error.title}: " + "; ".join(parts)
