"""Which commits a version is made of: history without what was rolled back or replaced."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines import delta
from pipelines.jobs import make_plan_id
from pipelines.storage import Store

ROLL_BACK, REPLACE, PURGE = "roll back", "replace labels", "purge"


def lineage(table: Store, version: int | None = None) -> Iterator[delta.Commit]:
    """The commits whose rows a version may still have, newest first; the newest version where none is given.

    A roll back jumps to the version that it went back to.
    """
    number = delta.newest_version(table) if version is None else version
    while number >= 0:
        commit = delta.read_commit(table, number)
        number -= 1
        if commit is None:
            continue
        yield commit
        revision = commit.metadata.get("revision") or {}
        if revision.get("operation") == ROLL_BACK:
            number = int(revision["to_version"])


def plan_ids(table: Store, version: int | None = None) -> list[str]:
    """The plans that a version's labels may come from, oldest first; a replacement of all labels is the first one."""
    found: dict[str, None] = {}
    for commit in lineage(table, version):
        if commit.metadata.get("plan_id"):
            found[str(commit.metadata["plan_id"])] = None
        revision = commit.metadata.get("revision") or {}
        if revision.get("operation") == REPLACE and revision.get("whole"):
            break
    return list(reversed(found))


def transaction_of(table: Store, plan_id: str) -> tuple[str, int | None]:
    """The transaction id under which a plan is, or is to be, committed to a table.

    It is the plan's id, until the commit is rolled back: then the plan may be committed anew, under an id that
    everybody who asks derives alike.

    Returns:
        The id, and the version of its commit, None where there is none.
    Raises:
        TableNotFound: no table.
    """
    there: set[int] | None = None
    transaction_id = plan_id
    while True:
        version = delta.find_commit(table, transaction_id)
        if version is None:
            return transaction_id, None
        if there is None:
            there = {commit.version for commit in lineage(table)}
        elif version not in there:  # a commit that landed since
            there |= {commit.version for commit in lineage(table)}
        if version in there:
            return transaction_id, version
        transaction_id = make_plan_id(plan=plan_id, after=version)
