"""Predictions into three label sets: what is taken as it is, what people look at, what is left out.

Each is an ordinary label set of the same dataset (or archive), so that every other command takes it. Label files are
rewritten, images are not touched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import delta
from pipelines.commits import DatasetVersion, commit_labels, describe_version
from pipelines.jobs import make_plan_id
from pipelines.label_commits import commit_revision, file_changes, revised_metadata, rewrite_label_file, settle
from pipelines.ledger import Ledger
from pipelines.lineage import REPLACE
from pipelines.predictions import ARCHIVE_ROWS, STATUS_OK, PredictionSet, open_predictions
from pipelines.records import BoolArray, FloatArray, LabelMap
from pipelines.references import Reference, check_label_set_name, parse_reference
from pipelines.route_rules import ROUTES, Decisions, Route, RouteRules, believed, decide, keep_budget
from pipelines.schema import LABELS, load_json
from pipelines.shards import ShardFile, ShardRef, read_label_columns, read_label_file
from pipelines.storage import Store, redact

_READERS = 8
_NOISE = "score below the reject threshold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """What a routing made.

    Attributes:
        predictions, digest: what was routed.
        num_images: of it; the sum of the images of all routes.
        sets: the label set of each route; None for a route that no image takes.
        reasons: images by route and reason.
        num_noise: objects below their reject threshold, which accepted and reviewed images lost.
        found: whether an earlier routing by the same rules had made all of them.
    """

    predictions: str
    digest: str
    num_images: int
    sets: Mapping[Route, DatasetVersion | None]
    reasons: Mapping[Route, Mapping[str, int]]
    num_noise: int
    found: bool

    def to_json(self) -> dict[str, Any]:
        sets = {route: None if version is None else version.to_json() for route, version in self.sets.items()}
        return {name: getattr(self, name) for name in self.__slots__} | {"sets": sets}


def find_predictions(dataset: str, predictions: str | None = None) -> str:
    """A reference of predictions from how people say it: as one reference, or as a dataset and a label set's name."""
    if predictions is None or "@labels/" in predictions:
        return predictions or dataset
    return str(Reference(uri=parse_reference(dataset).uri, label_set=check_label_set_name(predictions)))


def route(reference: str, rules: RouteRules | None = None, *, name: str | None = None) -> Routed:
    """Divide predictions by rules into the label sets ``<name>-accept``, ``<name>-review`` and ``<name>-reject``.

    Rows keep what they say; ``extra`` gets the reason and the uncertainty. Rejected images keep all their objects. The
    same rules on the same predictions find what is there; others replace what the sets held, as new versions. A
    routing that was killed between its commits is finished by the same call.

    Args:
        reference: of predictions, as for ``open_predictions``.
        rules: ``RouteRules()`` where None.
        name: default the predictions' own label set.
    Raises:
        ValueError: no predictions there; thresholds of an unknown class; a label set of such a name that no routing
            has made.
    """
    rules = rules or RouteRules()
    predictions = open_predictions(reference)
    name = check_label_set_name(name or predictions.labels.label_set)
    starts, found = _decide(predictions, rules)
    work = _Routing(predictions=predictions, rules=rules, name=name, starts=starts, found=found)
    for one in ROUTES:
        work.check_target(one)
    written = work.write()
    sets = {one: work.commit(one, *written[one]) for one in ROUTES}
    return Routed(
        predictions=predictions.reference,
        digest=predictions.digest,
        num_images=len(found.routes),
        sets=sets,
        reasons=found.counts(),
        num_noise=sum(ledger.counts["annotation"]["dropped"] for _, ledger in written.values()),
        found=all(version is None or version.found for version in sets.values()),
    )


def _decide(predictions: PredictionSet, rules: RouteRules) -> tuple[list[int], Decisions]:
    """Every image's route, in the order of the shards, and where each shard begins. Reads a few columns only."""
    rules.thresholds(predictions.label_map)
    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(lambda s: _decide_shard(s, rules, predictions.label_map), predictions.labels.shards))
    starts = np.cumsum([0, *(len(part.routes) for part in parts)]).tolist()
    together = Decisions(
        routes=np.concatenate([part.routes for part in parts]),
        reasons=np.concatenate([part.reasons for part in parts]),
        uncertainty=np.concatenate([part.uncertainty for part in parts]),
    )
    return starts, keep_budget(together, rules.review_budget)


def _decide_shard(shard: ShardRef, rules: RouteRules, label_map: LabelMap) -> Decisions:
    table = read_label_columns(shard, ["image_id", "status", "objects.category_id", "objects.score"])
    objects = table["objects"].combine_chunks()
    categories, scores = (pc.struct_field(objects, name) for name in ("category_id", "score"))
    return decide(
        rules,
        label_map,
        image_ids=table["image_id"].to_pylist(),
        failed=np.asarray(pc.fill_null(pc.not_equal(table["status"], STATUS_OK), False), np.bool_),
        images=np.asarray(pc.list_parent_indices(categories), np.int64),
        labels=label_map.to_labels(np.asarray(pc.list_flatten(categories), np.int64)),
        scores=np.asarray(pc.list_flatten(scores), np.float64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Routing:
    predictions: PredictionSet
    rules: RouteRules
    name: str
    starts: Sequence[int]
    found: Decisions

    @property
    def _store(self) -> Store:
        return Store.open(self.predictions.uri)

    def label_set(self, one: Route) -> str:
        return f"{self.name}-{one}"

    def _plan(self, one: Route) -> str:
        rules = self.rules.to_json()
        return make_plan_id(operation="route", rules=rules, predictions=self.predictions.reference, route=one)

    def _table(self, one: Route) -> Store:
        return self._store.sub("labels", self.label_set(one))

    def check_target(self, one: Route) -> None:
        """Only what a routing has made is replaced by one."""
        if not delta.exists(self._table(one)):
            return
        made_by = delta.open_snapshot(self._table(one)).metadata.get("provenance") or {}
        if made_by and "routed" not in made_by:
            raise ValueError(
                f"{redact(self.predictions.uri)} has a label set {self.label_set(one)!r} that no routing has made; "
                "give another name"
            )

    def write(self) -> dict[Route, tuple[list[ShardFile], Ledger]]:
        """The label files of each route, with what became of the objects."""
        numbers = range(len(self.predictions.labels.shards))
        with ThreadPoolExecutor(_READERS) as pool:
            shards = list(pool.map(self._write_shard, numbers))
        found: dict[Route, tuple[list[ShardFile], Ledger]] = {}
        for one in ROUTES:
            ledger = Ledger()
            for shard in shards:
                ledger.merge(shard[one][1])
            found[one] = ([file for shard in shards if (file := shard[one][0]) is not None], ledger)
        return found

    def _write_shard(self, number: int) -> dict[Route, tuple[ShardFile | None, Ledger]]:
        shard = self.predictions.labels.shards[number]
        table = read_label_file(shard.uri, shard.label_path)
        mine = slice(self.starts[number], self.starts[number + 1])
        told = [
            {"route": {"reason": reason, "uncertainty": round(float(value), 6)}}
            for reason, value in zip(self.found.reason_texts(mine), self.found.uncertainty[mine], strict=True)
        ]
        extra = [
            json.dumps(load_json(old) | new, sort_keys=True, ensure_ascii=False)
            for old, new in zip(table["extra"].to_pylist(), told, strict=True)
        ]
        table = table.set_column(table.schema.get_field_index("extra"), "extra", pa.array(extra, pa.string()))
        return {
            one: self._write_route(one, shard, table, self.found.routes[mine] == at) for at, one in enumerate(ROUTES)
        }

    def _write_route(
        self, one: Route, shard: ShardRef, table: pa.Table, mine: BoolArray
    ) -> tuple[ShardFile | None, Ledger]:
        ledger = Ledger()
        rows = table.filter(pa.array(mine))
        if not rows.num_rows:
            return None, ledger
        before = _num_objects(rows)
        if one != "reject":
            _, reject = self.rules.thresholds(self.predictions.label_map)
            rows = without_noise(rows, self.predictions.label_map, reject)
        after = _num_objects(rows)
        ledger.imported("image", rows.num_rows)
        ledger.imported("annotation", after)
        ledger.counts["annotation"]["dropped"] = before - after
        if before > after:
            ledger.reasons[f"annotation dropped: {_NOISE}"] = before - after
        file = rewrite_label_file(self._store, self.label_set(one), shard.label_path.rsplit("/", 1)[-1], rows)
        splits = {v["values"]: v["counts"] for v in pc.value_counts(rows["split"]).to_pylist()}
        path = f"labels/{self.label_set(one)}/{file.path}"
        return ShardFile(path=path, size=file.size, rows=file.rows, num_objects=after, splits=splits), ledger

    def commit(self, one: Route, files: Sequence[ShardFile], ledger: Ledger) -> DatasetVersion | None:
        if delta.exists(self._table(one)):
            return self._replace(one, files, ledger)
        if not files:
            return None
        metadata = self.predictions.metadata
        version = commit_labels(
            self.predictions.uri,
            self.label_set(one),
            files,
            plan_id=self._plan(one),
            label_map=self.predictions.label_map,
            images_version=metadata["images_version"],
            ledger=ledger.sums(),
            kind="predictions",
            provenance=self._provenance(one),
            schema=ARCHIVE_ROWS if self.predictions.is_archive else LABELS,
        )
        return settle(self._store, self.label_set(one)) or version

    def _replace(self, one: Route, files: Sequence[ShardFile], ledger: Ledger) -> DatasetVersion:
        label_set, plan_id = self.label_set(one), self._plan(one)
        newest = delta.open_snapshot(self._table(one))
        if newest.metadata.get("plan_id") == plan_id:
            return describe_version(self.predictions.uri, label_set, newest.version, found=True)
        mine = [delta.TableFile(path=f.path.rsplit("/", 1)[-1], size=f.size, rows=f.rows) for f in files]

        def change(before: delta.Snapshot) -> delta.Change:
            values = {
                **self.predictions.metadata,
                "plan_id": plan_id,
                "ledger": ledger.sums(),
                "plan_ledger": ledger.sums(),
                "provenance": self._provenance(one),
            }
            done = {"operation": REPLACE, "whole": True, "from_version": before.version}
            metadata = revised_metadata(self._store, label_set, values, mine, done, may_be_empty=True)
            return file_changes(before.files, mine, metadata)

        return commit_revision(self._store, Reference(uri=self.predictions.uri, label_set=label_set), change)

    def _provenance(self, one: Route) -> dict[str, Any]:
        """The predictions' own, so that the model is still known, and how they were routed."""
        routed = {
            "route": one,
            "rules": self.rules.to_json(),
            "predictions": redact(self.predictions.reference),
            "digest": self.predictions.digest,
            "reasons": self.found.counts()[one],
        }
        return {**self.predictions.provenance, "routed": routed}


def _num_objects(table: pa.Table) -> int:
    return pc.sum(pc.list_value_length(pc.struct_field(table["objects"], "id"))).as_py() or 0


def without_noise(table: pa.Table, label_map: LabelMap, reject: FloatArray) -> pa.Table:
    """Rows of a labels table without the objects below the reject threshold of their class, (C,)."""
    objects = table["objects"].combine_chunks()
    parents = np.asarray(pc.list_parent_indices(pc.struct_field(objects, "id")), np.int64)
    categories, scores = (pc.list_flatten(pc.struct_field(objects, name)) for name in ("category_id", "score"))
    labels = label_map.to_labels(np.asarray(categories, np.int64))
    kept = believed(np.asarray(scores, np.float64), labels, reject)
    if kept.all():
        return table
    lists = [_kept_of(pc.struct_field(objects, field.name), kept, parents) for field in objects.type]
    fewer = pa.StructArray.from_arrays(lists, fields=list(objects.type), mask=objects.is_null())
    return table.set_column(table.schema.get_field_index("objects"), table.schema.field("objects"), fewer)


def _kept_of(lists: pa.ListArray, kept: BoolArray, parents: np.ndarray) -> pa.ListArray:
    """A list an image, of objects; where an image has null for its list, so it stays."""
    there = np.asarray(lists.is_valid())
    mine = kept & there[parents]
    counts = np.bincount(parents[mine], minlength=len(lists))
    values = pc.list_flatten(lists).filter(pa.array(kept[there[parents]]))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=lists.type, mask=pa.array(~there))
