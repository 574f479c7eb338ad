"""A commit that lost a race is made again on top of what came meanwhile, of which alone it reads the log."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import delta
from pipelines.storage import Store

SCHEMA = pa.schema([("a", pa.int64())])


def commit(table: Store, name: str, metadata=lambda before: {}) -> tuple[int, bool]:
    file = delta.TableFile(path=f"{name}.parquet", size=1, rows=1)
    return delta.commit_once(table, [file], schema=SCHEMA, transaction_id=name, metadata=metadata)


class Overtaken:
    """Metadata of a commit that others overtake while it is made, twice."""

    def __init__(self, table: Store) -> None:
        self.table = table
        self.seen: list[int] = []

    def __call__(self, before: delta.Snapshot) -> dict[str, int]:
        self.seen.append(before.version)
        if len(self.seen) <= 2:
            commit(self.table, f"other-{len(self.seen)}")
        return {"before": before.version, "files": len(before.files)}


@pytest.mark.parametrize("trouble", [False, True])
def test_it_builds_on_the_newest_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: bool):
    table = Store.open(tmp_path)
    for i in range(3):
        commit(table, f"t{i}")
    if trouble:

        def fail(self) -> None:
            raise OSError("the store is away for a moment")

        monkeypatch.setattr(delta.DeltaTable, "update_incremental", fail)
    opened: list[Store] = []
    real = delta._open
    monkeypatch.setattr(delta, "_open", lambda table: opened.append(table) or real(table))
    overtaken = Overtaken(table)
    version, found = commit(table, "mine", overtaken)
    assert (version, found, overtaken.seen) == (6, False, [3, 4, 5])
    # One for each of the three commits, and one more for each lost race where the short way failed.
    assert len(opened) == 3 + (2 if trouble else 0)
    snapshot = delta.open_snapshot(table)
    assert (snapshot.version, len(snapshot.files)) == (6, 6)
    assert snapshot.metadata == {"before": 5, "files": 5, "transaction_id": "mine"}


def test_somebody_else_may_have_made_it_meanwhile(tmp_path: Path):
    table = Store.open(tmp_path)
    commit(table, "t0")

    def metadata(before: delta.Snapshot) -> dict[str, int]:
        if before.version == 1:
            assert commit(table, "mine") == (2, False)
        return {}

    assert commit(table, "mine", metadata) == (2, True)
    assert len(delta.open_snapshot(table).files) == 2


def test_a_commit_whose_answer_is_lost_was_made_by_the_call_that_lost_it(tmp_path: Path, monkeypatch):
    table = Store.open(tmp_path)
    commit(table, "t0")
    real = delta.DeltaTable.create_write_transaction
    lost: list[str] = []

    def lose_the_answer(self, *given, **named) -> None:
        real(self, *given, **named)
        if not lost:
            lost.append("an answer")
            raise OSError("the connection was closed")

    monkeypatch.setattr(delta.DeltaTable, "create_write_transaction", lose_the_answer)
    assert commit(table, "mine") == (2, False) and lost
    assert commit(table, "mine") == (2, True)
    assert len(delta.open_snapshot(table).files) == 2
