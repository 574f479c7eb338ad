"""What there is to label, cut into tasks: pure functions of the input, the model and the settings.

A task is a run of images of one image shard, or of an archive's listing. Its size depends on the input alone, never
on the number of workers, so that a run may be resumed with more or fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.commits import DatasetVersion, find_version
from pipelines.jobs import make_plan_id
from pipelines.ledger import LedgerEntry
from pipelines.records import Category, LabelMap
from pipelines.references import CategoryMismatch, DuplicateImages, EmptyDataset, check_label_set_name
from pipelines.schema import SCHEMA_VERSION
from pipelines.shards import read_label_columns
from pipelines.sources.archive import input_files, open_archive, refusal_entry
from pipelines.sources.archive_formats import IMAGE_SUFFIXES, Member, Refused, listing_digest
from pipelines.storage import Store, absolute, redact
from pipelines.versions import Dataset, list_label_sets, open_dataset
from workers.label_config import LabelConfig

_LABEL_COLUMNS = ["image_id", "row", "row_group", "split", "coco_image_id", "width", "height"]
TASK = pa.schema(
    [
        ("image_id", pa.string()),
        ("row", pa.int32()),  # in the image shard, or in the archive's listing
        ("row_group", pa.int32()),
        ("split", pa.string()),
        ("coco_image_id", pa.int64()),
        ("width", pa.int32()),  # 0: not known before the image is read
        ("height", pa.int32()),
        ("image_path", pa.string()),  # of the shard; null in an archive
        ("offset", pa.int64()),  # these five as in ``Member``; null in a dataset
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("method", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelInput:
    """What is labelled.

    Attributes:
        kind: a dataset version, or images where they lie.
        uri: of the dataset, the folder or the archive.
        reference: how provenance names it, without credentials.
        digest: of its content; for an archive of its listing with sizes and etags or modification times.
        num_images: to label.
        dataset: None for an archive.
        members, refused: of an archive.
    """

    kind: Literal["dataset", "archive"]
    uri: str
    reference: str
    digest: str
    num_images: int
    dataset: Dataset | None = None
    members: tuple[Member, ...] = ()
    refused: tuple[Refused, ...] = ()


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


def open_input(config: LabelConfig) -> LabelInput:
    """Open what the config names; an archive is listed.

    Raises:
        DatasetNotFound, EmptyDataset, FileNotFoundError, ValueError: in a user's words.
    """
    if "@labels/" in config.input or list_label_sets(absolute(config.input)):
        return _dataset_input(open_dataset(config.input), config.splits)
    if config.splits is not None:
        raise ValueError(f"splits={list(config.splits)}: a folder or archive has no splits; leave them out")
    return _archive_input(absolute(config.input))


def _dataset_input(dataset: Dataset, splits: tuple[str, ...] | None) -> LabelInput:
    for split in splits or ():
        if split not in dataset.splits:
            known = ", ".join(repr(s) for s in sorted(dataset.splits))
            raise ValueError(f"{redact(dataset.reference)} has no split {split!r}; it has {known}")
    return LabelInput(
        kind="dataset",
        uri=dataset.uri,
        reference=redact(dataset.reference),
        digest=dataset.digest,
        num_images=dataset.num_images if splits is None else sum(dataset.splits[s] for s in set(splits)),
        dataset=dataset,
    )


def _archive_input(uri: str) -> LabelInput:
    found = list(open_archive(uri).members())
    members = tuple(m for m in found if isinstance(m, Member))
    if not members:
        raise EmptyDataset(
            f"{redact(uri)} holds no dataset and no images ({', '.join(IMAGE_SUFFIXES)}); "
            f"{len(found)} of its members were refused"
        )
    files = [[f.path.removeprefix(uri), f.size, f.etag] for f in input_files(uri)]
    # An archive's own etag covers what a listing cannot see; a folder's files are in the listing one by one.
    digest = make_plan_id(listing=listing_digest(iter(members)), file=files if len(files) == 1 else [])
    return LabelInput(
        kind="archive",
        uri=uri,
        reference=redact(uri),
        digest=digest,
        num_images=len(members),
        members=members,
        refused=tuple(r for r in found if isinstance(r, Refused)),
    )


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


def plan_tasks(source: LabelInput, plan: LabelPlan) -> Iterator[pa.Table]:
    """The tasks in order, one table of ``TASK`` each."""
    if source.dataset is None:
        for first in range(0, len(source.members), plan.task_images):
            yield _archive_task(source.members[first : first + plan.task_images], first)
        return
    splits = plan.settings["splits"]
    for shard in source.dataset.shards:
        rows = read_label_columns(shard, _LABEL_COLUMNS)
        if splits is not None:
            rows = rows.filter(pc.field("split").isin(splits))
        rows = rows.sort_by("row")
        for first in range(0, rows.num_rows, plan.task_images):
            yield _dataset_task(rows.slice(first, plan.task_images), shard.image_path)


def _dataset_task(rows: pa.Table, image_path: str) -> pa.Table:
    columns = {name: rows[name] for name in _LABEL_COLUMNS}
    columns["image_path"] = pa.array([image_path] * rows.num_rows, pa.string())
    return pa.table([_column(columns, f, rows.num_rows) for f in TASK], schema=TASK)


def _archive_task(members: tuple[Member, ...], first: int) -> pa.Table:
    count = len(members)
    columns = {
        "image_id": pa.array([m.name for m in members], pa.string()),
        "row": pa.array(range(first, first + count), pa.int32()),
        "row_group": pa.array([0] * count, pa.int32()),
        "split": pa.array([""] * count, pa.string()),
        "coco_image_id": pa.array(range(first + 1, first + count + 1), pa.int64()),
        "width": pa.array([0] * count, pa.int32()),
        "height": pa.array([0] * count, pa.int32()),
        **{
            name: pa.array([getattr(m, name) for m in members], TASK.field(name).type)
            for name in ("offset", "length", "size", "stamp", "method")
        },
    }
    return pa.table([_column(columns, f, count) for f in TASK], schema=TASK)


def _column(columns: Mapping[str, Any], field: pa.Field, count: int) -> Any:
    return columns[field.name] if field.name in columns else pa.nulls(count, field.type)


def refusals(source: LabelInput) -> list[LedgerEntry]:
    return [refusal_entry(refused) for refused in source.refused]


def find_or_check(source: LabelInput, plan: LabelPlan) -> DatasetVersion | None:
    """The version that this plan has made; None where the way is free.

    Raises:
        DuplicateImages: the label set holds other predictions for these images: told before any work is done.
        ValueError: the label set holds truth.
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
    return None


def is_dataset_root(uri: str) -> bool:
    """Whether predictions of an archive would land in the middle of a dataset."""
    return Store.open(uri).exists("images")
