"""Plans that somebody may go on with: which of their receipts still count, and the end of those that nobody wants.

A receipt counts as long as the files that it names are there. So receipts go before files do, and whoever commits
looks at the files first and at the receipts then: of two who meet, one sees the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipelines import delta
from pipelines.ages import dated_files
from pipelines.jobs import Job, Receipt
from pipelines.label_commits import purged_shards
from pipelines.shard_paths import index_path, shard_stem
from pipelines.shards import ShardFile
from pipelines.storage import Store, redact
from pipelines.versions import list_label_sets


class FilesLost(ValueError):
    """Files that receipts name are gone; nothing is committed."""


def resume(job: Job, num_tasks: int) -> list[int]:
    """Numbers of the tasks that are to be done, ascending.

    A plan of which something is done is said to be alive first: from then on vacuum leaves its files alone.
    """
    if job.done():
        job.say_alive()
    return job.missing(num_tasks)


def check_files(job: Job, files: Iterable[ShardFile], num_tasks: int) -> None:
    """Make sure, directly before a commit, that nothing was deleted of what it will name.

    Args:
        job: whose receipts name the files; those whose files are gone are taken back, so that the tasks are done again.
        files: that all its receipts name.
        num_tasks: of its plan.
    Raises:
        FilesLost: a file or a receipt is gone.
    """
    gone = _missing(Store.open(job.dataset_uri), _paths(files))
    if gone:
        tasks = [r.task_id for r in job.each_receipt() if not gone.isdisjoint(_paths(r.files))]
        job.take_back(tasks)
        raise FilesLost(
            f"{redact(job.dataset_uri)}: {len(gone)} files that plan {job.plan_id} has written are gone, e.g. "
            f"{min(gone)}; nothing is committed. Start the same call again: it does these {len(tasks)} tasks anew"
        )
    undone = job.missing(num_tasks)
    if undone:
        raise FilesLost(
            f"{redact(job.dataset_uri)}: {len(undone)} receipts of plan {job.plan_id} are gone, it was given up by a "
            "vacuum or a purge meanwhile; nothing is committed. Start the same call again: it does what is missing"
        )


def _paths(files: Iterable[ShardFile]) -> Iterator[str]:
    for file in files:
        yield file.path
        if file.path.startswith("images/"):
            yield index_path(shard_stem(file.path))


def _missing(store: Store, paths: Iterable[str]) -> set[str]:
    """Those that are not there; a shard that was purged need not be, its labels are moved once they are committed."""
    gone = set(paths)
    # One listing a folder, however many files there are.
    for folder in {path.rpartition("/")[0] for path in gone}:
        gone.difference_update(file.path for file in store.list_files(folder))
    if any(path.startswith("images/") for path in gone):
        purged = purged_shards(store)
        gone = {path for path in gone if not (path.startswith("images/") and shard_stem(path) in purged)}
    return gone


@dataclass(frozen=True, slots=True, kw_only=True)
class UncommittedPlan:
    """A plan that no version of any label set was made by.

    Attributes:
        job: its folder.
        files: that its receipts name, indexes of shards included.
    """

    job: Job
    files: frozenset[str]


def uncommitted_plans(store: Store) -> Iterator[UncommittedPlan]:
    """Those that have receipts."""
    committed = _committed(store)
    for plan_id in store.children("_jobs"):
        job = Job(store.uri, plan_id)
        if plan_id not in committed and job.done():
            yield UncommittedPlan(job=job, files=frozenset(_named_by(job.each_receipt())))


def _named_by(receipts: Iterable[Receipt]) -> Iterator[str]:
    for receipt in receipts:
        yield from _paths(receipt.files)


def _committed(store: Store) -> set[str]:
    """Ids of the plans that have made a version, rolled back ones too: the log never forgets their files."""
    found: set[str] = set()
    for label_set in list_label_sets(store.uri):
        for commit in delta.history(store.sub("labels", label_set)):
            revision = commit.metadata.get("revision") or {}
            found |= {str(commit.metadata.get("plan_id", "")), str(revision.get("plan_id", ""))}
    return found


def last_change(job: Job) -> float:
    """Seconds since 1970 at which something of a plan was last written."""
    return max((file.written for file in dated_files(job.store, "")), default=0.0)
