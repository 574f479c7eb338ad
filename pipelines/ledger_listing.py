"""The ledger of a dataset version: its sums, and every listed entry of the plans that it is made of.

Entries lie with their plan: of the scan in ``_jobs/<plan_id>/plan.parquet``, of each task in its receipt, of the
commit in ``commit.json``. Each of these lists at most ``MAX_LISTED`` entries (all are counted) and is read alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.jobs import Job
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.lineage import plan_ids
from pipelines.storage import Store
from pipelines.versions import open_dataset

_COMMIT = "commit.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerListing:
    """What became of everything that a version's sources held.

    Attributes:
        reference: of the version.
        images, annotations: counts by fate, and ``seen``.
        reasons: counts by subject, fate and reason.
        plans: ids of the plans whose rows are in the version, oldest first.
    """

    reference: str
    images: Mapping[str, int]
    annotations: Mapping[str, int]
    reasons: Mapping[str, int]
    plans: tuple[str, ...]

    def entries(self) -> Iterator[LedgerEntry]:
        """Everything that was not simply imported, plan by plan; one task's entries are in memory at a time.

        A plan whose ``_jobs`` folder was deleted has counts but no entries.
        """
        uri = self.reference.rsplit("@labels/", 1)[0]
        for plan_id in self.plans:
            for ledger in _ledgers(Job(uri, plan_id)):
                yield from ledger.entries

    def to_json(self) -> dict[str, Any]:
        """Without the entries."""
        return {
            "reference": self.reference,
            "images": dict(self.images),
            "annotations": dict(self.annotations),
            "reasons": dict(self.reasons),
            "plans": list(self.plans),
        }


def read_ledger(reference: str) -> LedgerListing:
    """The ledger of a dataset version, or of a prediction set.

    Raises:
        DatasetNotFound, EmptyDataset, NewerSchema: see ``open_dataset``.
    """
    dataset = open_dataset(reference)
    sums = dataset.metadata.get("ledger") or Ledger().sums()
    return LedgerListing(
        reference=dataset.reference,
        images=sums["images"],
        annotations=sums["annotations"],
        reasons=sums["reasons"],
        plans=tuple(plan_ids(Store.open(dataset.uri).sub("labels", dataset.label_set), dataset.version)),
    )


def write_commit_ledger(job: Job, ledger: Ledger) -> None:
    """Keep what was decided when a plan was committed."""
    job.store.write_bytes(_COMMIT, json.dumps(ledger.to_json(), ensure_ascii=False).encode())


def forget_decided(job: Job, image_ids: Collection[str]) -> None:
    """Take the entries of some images out of what was decided when a plan was committed."""
    try:
        ledger = Ledger.from_json(json.loads(job.store.read_bytes(_COMMIT)))
    except FileNotFoundError:
        return
    kept = [entry for entry in ledger.entries if entry.image_id not in image_ids]
    if len(kept) < len(ledger.entries):
        ledger.entries = kept
        write_commit_ledger(job, ledger)


def _ledgers(job: Job) -> Iterator[Ledger]:
    if job.has_plan():
        scanned = job.plan().metadata.get("ledger")
        if scanned:
            yield Ledger.from_json(scanned)
    for task_id in job.done():
        values = job.receipt(task_id).ledger
        if "images" in values:
            yield Ledger.from_json(values)
    try:
        yield Ledger.from_json(json.loads(job.store.read_bytes(_COMMIT)))
    except FileNotFoundError:
        return
