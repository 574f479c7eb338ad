"""A labelling run's name, place and categories: pure functions of the input, the model and the settings.

A task is a run of images of one image shard, or of an archive's listing; see ``label_tasks``. Its size depends on the
input alone, never on the number of workers, so that a run may be resumed with more or fewer of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectors.description import read_description
from pipelines.commits import DatasetVersion, find_version
from pipelines.jobs import make_plan_id
from pipelines.prediction_makers import check_made_alike
from pipelines.records import Category, LabelMap
from pipelines.references import CategoryMismatch, DuplicateImages, EmptyDataset, check_label_set_name
from pipelines.schema import SCHEMA_VERSION
from pipelines.storage import Store, absolute, redact
from pipelines.threshold_files import read_class_thresholds
from pipelines.versions import list_label_sets, open_dataset
from workers.label_config import LabelConfig
from workers.label_listing import LabelInput
from workers.models import fetch_model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the plan must know of a model."""

    uri: str
    digest: str
    categories: tuple[Mapping[str, Any], ...]
    spec: Mapping[str, Any]
    preprocessing: Mapping[str, Any]

    @property
    def label_map(self) -> LabelMap:
        return LabelMap.from_json(self.categories)


def describe(uri: str) -> ModelFacts:
    """What the plan needs of a model; its weights are checked when a worker loads them.

    Raises:
        FileNotFoundError, ValueError: there is no model, or a broken one.
    """
    description = read_description(fetch_model(uri))
    return ModelFacts(
        uri=absolute(uri),
        digest=description["digest"],
        categories=tuple(description["categories"]),
        spec=description["spec"],
        preprocessing=description["preprocessing"],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelPlan:
    """A planned run.

    Attributes:
        plan_id: hash of everything that the predictions depend on.
        root: URI of the dataset, or of an archive's predictions.
        label_set: name of the prediction set.
        label_map: of the prediction set.
        model_map: the model's classes in its own order, with the category ids of ``label_map``.
        task_images: images a task, at most.
        settings: of the config, those that decide the result.
    """

    plan_id: str
    root: str
    label_set: str
    label_map: LabelMap
    model_map: LabelMap
    task_images: int
    settings: Mapping[str, Any]


def make_plan(config: LabelConfig, source: LabelInput, model: ModelFacts) -> LabelPlan:
    """Name the run, its place and its categories.

    Raises:
        CategoryMismatch: the model has classes that the dataset lacks.
        ValueError: an archive without ``out``, or a bad name.
    """
    label_map = model.label_map
    if source.dataset is not None:
        label_map = prediction_label_map(source.dataset.label_map, label_map, config, source.reference)
    task_images = config.task_images or task_size(source.num_images)
    settings = {
        "score_threshold": config.score_threshold,
        "max_detections": config.max_detections,
        "image_size": config.image_size or model.preprocessing["size"],
        "batch_size": config.batch_size,
        "precision": "float32" if config.precision == "auto" else config.precision,
        "task_images": task_images,
        "splits": None if config.splits is None else sorted(set(config.splits)),
        **_looking(config, model),
    }
    named = None if source.dataset is None else config.out or default_label_set(model.digest)
    plan_id = make_plan_id(
        job="label",
        schema_version=SCHEMA_VERSION,
        input={"kind": source.kind, "digest": source.digest, "uri": source.reference if named is None else None},
        model=model.digest,
        settings=settings,
        categories=label_map.digest,
        label_set=named,
    )
    if named is None:
        if config.out is None:
            raise ValueError(
                f"{source.reference} is no dataset, so its predictions need a place of their own: give out=URI"
            )
        root = absolute(config.out)
        # Every plan has a set of its own, so that one place can hold predictions of many archives and models.
        named = f"{default_label_set(model.digest)}-{plan_id[:8]}"
    else:
        root = source.uri
    return LabelPlan(
        plan_id=plan_id,
        root=root,
        label_set=check_label_set_name(named),
        label_map=label_map,
        model_map=_in_model_order(label_map, model.label_map),
        task_images=task_images,
        settings=settings,
    )


def _looking(config: LabelConfig, model: ModelFacts) -> dict[str, Any]:
    """Settings that are part of a plan only where they are used, so that plans from before them keep their ids.

    Raises:
        FileNotFoundError: there is no such file of thresholds.
        ValueError: a class that the model does not know, or other sizes of a model of one fixed input.
    """
    found: dict[str, Any] = {}
    of_class = _class_thresholds(config, model)
    if config.scales != (1.0,) and model.preprocessing.get("resize") == "stretch":
        size = model.preprocessing["size"]
        raise ValueError(f"scales={config.scales}: this model takes {size} x {size} pixels alone; leave scales out")
    if of_class:
        found["class_thresholds"] = of_class
    if config.tile is not None:
        found |= {"tile": config.tile, "tile_overlap": config.tile_overlap}
    if config.near_duplicates:
        found["near_duplicate_bits"] = config.near_duplicate_bits
    if config.flips or config.scales != (1.0,):
        found |= {"flips": config.flips, "scales": list(config.scales)}
    return found


def _class_thresholds(config: LabelConfig, model: ModelFacts) -> dict[str, float]:
    """By name, sorted: what the plan is about are the numbers, wherever they come from."""
    given = {"class_thresholds": config.class_thresholds}
    if config.thresholds is not None:
        given = {redact(config.thresholds): read_class_thresholds(config.thresholds), **given}
    for where, thresholds in given.items():
        for name, threshold in sorted(thresholds.items()):
            if name not in model.label_map.names:
                raise ValueError(
                    f"{where} names {name!r}, a class that the model {redact(config.model)} does not know; it has "
                    f"{', '.join(model.label_map.names[:8])}{' ...' if len(model.label_map) > 8 else ''}"
                )
            if threshold >= 1:
                raise ValueError(f"{where} has {threshold} for {name!r}; it must be less than 1, or nothing is kept")
    return dict(sorted({name: score for of in given.values() for name, score in of.items()}.items()))


def default_label_set(model_digest: str) -> str:
    return f"pred-{model_digest[:8]}"


def task_size(num_images: int) -> int:
    """Images a task: small inputs still give every worker several tasks, large ones few files."""
    return max(8, min(256, -(-num_images // 16)))


def prediction_label_map(dataset: LabelMap, model: LabelMap, config: LabelConfig, reference: str) -> LabelMap:
    """The dataset's categories, so that ids agree, and on request the model's further ones behind them.

    Classes are the same where their names are; what a dataset of boxes does not say of keypoints, the model's do.

    Raises:
        CategoryMismatch: the model has classes that the dataset lacks.
    """
    extra = [c for c in model.categories if c.name not in dataset.names]
    if extra and not config.allow_extra_classes:
        raise CategoryMismatch(
            f"the model {redact(config.model)} has classes that {reference} lacks: "
            f"{', '.join(c.name for c in extra[:8])}{' ...' if len(extra) > 8 else ''}; the dataset has "
            f"{', '.join(dataset.names[:8])}{' ...' if len(dataset) > 8 else ''}. Classes are matched by name; set "
            "allow_extra_classes to keep these under new category ids"
        )
    first = max((c.category_id for c in dataset.categories), default=0) + 1
    added = tuple(
        Category(category_id=first + i, name=c.name, supercategory=c.supercategory) for i, c in enumerate(extra)
    )
    return LabelMap(categories=dataset.categories + added).with_keypoints_of(model)


def _in_model_order(label_map: LabelMap, model: LabelMap) -> LabelMap:
    by_name = {c.name: c for c in label_map.categories}
    return LabelMap(categories=tuple(by_name[name] for name in model.names))


def find_or_check(source: LabelInput, plan: LabelPlan, model: ModelFacts) -> DatasetVersion | None:
    """The version that this plan has made; None where the way is free.

    Raises:
        DuplicateImages: the label set holds other predictions for these images: told before any work is done.
        ValueError: the label set holds truth, or predictions of another model or other settings for other images.
    """
    found = find_version(plan.root, plan.label_set, plan.plan_id)
    if found is not None or plan.label_set not in list_label_sets(plan.root):
        return found
    try:
        old = open_dataset(f"{plan.root}@labels/{plan.label_set}")
    except EmptyDataset:
        return None  # created, not yet committed: another run of a plan is at it
    where = redact(old.reference)
    if old.metadata["kind"] != "predictions":
        raise ValueError(f"{where} holds {old.metadata['kind']}, not predictions; choose another name with out=")
    if source.dataset is not None:
        wanted = set(source.dataset.index(plan.settings["splits"])["image_id"].to_pylist())
        twice = wanted.intersection(old.index()["image_id"].to_pylist())
        if twice:
            raise DuplicateImages(
                f"{where} already has predictions of {len(twice)} of these images, made with another model, input "
                f"version or settings; choose another name with out=, for example {plan.label_set}-{plan.plan_id[:4]}"
            )
    if old.num_images:
        ours = {"model": {"uri": redact(model.uri), "digest": model.digest}, "settings": plan.settings}
        check_made_alike(where, old.metadata.get("provenance") or {}, ours)
    return None


def is_dataset_root(uri: str) -> bool:
    """Whether predictions of an archive would land in the middle of a dataset."""
    return Store.open(uri).exists("images")
