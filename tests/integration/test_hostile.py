"""Hostile inputs: each gets its row in the quarantine or a clear error; nothing crashes, hangs or leaves its folder."""

from __future__ import annotations

import hashlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.ledger_listing import read_ledger
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.hostile import archives, documents, images
from tests.hostile.case import Case
from workers.ingest import ingest

CASES = [*images.CASES, *archives.CASES, *documents.CASES]
_MEMORY_MIB = 700  # what one case may add to the highest ever; a bomb that goes off adds more


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_input(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = _Place(tmp_path)
    monkeypatch.chdir(place.working)
    options = case.build(place.input)
    before = place.outside_the_target()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    uri = str(place.target)
    said: list[str] = []
    error: Exception | None = None
    try:
        version = ingest(open_source(case.kind, **options), uri)
    except (ValueError, FileNotFoundError) as caught:
        error = caught
        said.append(str(caught))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    assert grown < _MEMORY_MIB
    assert place.outside_the_target() == before
    assert not Path(archives.OUTSIDE).exists()

    if case.left_out == -1:  # any clean verdict will do
        return
    assert (error is not None) == case.error, error
    if error is None:
        said += _quarantined(place.target)
        said += _ledger(version.reference)
        _check_dataset(case, version)
    else:
        assert len(str(error)) < 2000
    if case.says:
        assert any(re.search(case.says, line) for line in said), said


def _check_dataset(case: Case, version) -> None:
    dataset = open_dataset(version.reference)
    records = {record.image_id: record for record in dataset.records()}
    assert sorted(records) == sorted(case.images)
    sums = version.ledger["images"]
    assert sums["imported"] + sums["mended"] == len(records)
    assert sums["quarantined"] + sums["dropped"] == case.left_out
    assert sums["seen"] == len(records) + case.left_out
    if case.objects is not None:
        objects = version.ledger["annotations"]
        assert objects["imported"] + objects["mended"] == case.objects == dataset.num_objects
    if case.checks is not None:
        case.checks(records)


def _quarantined(target: Path) -> list[str]:
    rows = [row for path in target.glob("_quarantine/**/*.parquet") for row in pq.read_table(path).to_pylist()]
    return [f"{row['image_id']}: {row['stage']}: {row['error']}" for row in rows]


def _ledger(reference: str) -> list[str]:
    return [f"{e.subject} {e.image_id}: {e.fate}: {e.reason}: {e.detail}" for e in read_ledger(reference).entries()]


class _Place:
    """A folder of the test's own: the input, the target, and what must stay as it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.input, self.target, self.working = (root / "a" / name for name in ("input", "target", "working"))
        for folder in (self.input, self.working):
            folder.mkdir(parents=True)

    def outside_the_target(self) -> dict[str, str]:
        return dict(self._files())

    def _files(self) -> Iterator[tuple[str, str]]:
        for path in sorted(self.root.rglob("*")):
            if self.target in path.parents or path == self.target or not path.is_file():
                continue
            yield str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_corpus_is_large_and_its_names_are_unique():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 40
