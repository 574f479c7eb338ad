"""What several tests of pipelines need."""

from __future__ import annotations

from importlib import import_module

import pytest


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an earlier test has left Ray running: its workers have other memory and other limits."""
    monkeypatch.setattr(import_module("workers.ingest"), "_ray_is_running", lambda: False)
