"""Receipts that the driver is told of, put down many at a time.

A run of 100,000 tasks leaves as many receipts, and on an object store reading each takes milliseconds of a processor:
minutes before the commit, in which the cluster stands still. So the driver, who hears of each anyway, leaves copies of
many in one file. The receipts stay what counts: a bundle that is lost or never written costs time and nothing else.
"""

from __future__ import annotations

import json
from contextlib import suppress

from pipelines.jobs import Job, Receipt

BUNDLED = 128
"""Receipts a bundle; the last ones of a run, fewer than these, are left to be read one by one."""


class ReceiptBundle:
    """Collects a run's receipts and puts them down whenever there are ``BUNDLED``.

    Args:
        job: whose receipts they are.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._waiting: list[Receipt] = []

    def add(self, receipt: str) -> None:
        """A receipt that won, as JSON; nothing where it is empty."""
        if not receipt:
            return
        self._waiting.append(Receipt.from_json(json.loads(receipt)))
        if len(self._waiting) == BUNDLED:
            with suppress(OSError):  # a store that refuses it again and again: there are only copies in it
                self._job.bundle(self._waiting)
            self._waiting = []
