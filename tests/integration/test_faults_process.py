"""Processes that die, sleep through their replacement or run out of disk: the version is as if nothing had been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.versions import DatasetNotFound, open_dataset
from tests.faults.runs import content, small_ingest, small_source, start_victim, wait_until_stopped
from tests.faults.victim import MID_WRITE, POINTS

Undisturbed = tuple[dict[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    options = small_source(folder)
    small_ingest(options, str(folder / "dataset"))
    expected = content(str(folder / "dataset"))
    assert len(expected["files"]) == 9 and len(expected["annotations"]) == 10
    return options, expected


def test_killed_in_mid_write(tmp_path: Path, undisturbed: Undisturbed):
    """The other points of death are in test_ingest_kill."""
    options, expected = undisturbed
    uri = str(tmp_path / "dataset")
    with start_victim(options, uri, MID_WRITE, signal.SIGKILL) as victim:
        assert victim.wait(120) == -signal.SIGKILL
    half = list((tmp_path / "dataset/images").glob(".part-*.tmp"))
    assert len(half) == 1 and half[0].stat().st_size > 0
    small_ingest(options, uri)
    assert content(uri) == expected


@pytest.mark.parametrize("point", [MID_WRITE, *POINTS])
def test_a_zombie_wakes_after_its_replacement_has_committed(point: str, tmp_path: Path, undisturbed: Undisturbed):
    options, expected = undisturbed
    uri = str(tmp_path / "dataset")
    with start_victim(options, uri, point, signal.SIGSTOP) as zombie:
        try:
            wait_until_stopped(zombie)
            replacement = small_ingest(options, uri)
            assert content(uri) == expected
            os.kill(zombie.pid, signal.SIGCONT)
            _, errors = zombie.communicate(timeout=120)
        finally:
            zombie.kill()
    assert zombie.returncode == 0, errors.decode()
    # It found the other's version and made none of its own.
    assert content(uri) == expected
    assert open_dataset(uri).reference == replacement.reference


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, which is too small for the dataset."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "boxmill-test", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(small_disk: Path, undisturbed: Undisturbed):
    options, expected = undisturbed
    uri = str(small_disk / "dataset")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            small_ingest(options, uri)
        with pytest.raises(DatasetNotFound):
            open_dataset(uri)
        # What could not be written whole does not take the space that is left.
        assert list(small_disk.rglob("*.tmp")) == []
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    small_ingest(options, uri)
    assert content(uri) == expected
