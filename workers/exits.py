"""Worker processes end, whatever hangs in their libraries when they do."""

from __future__ import annotations

import atexit
import signal
from functools import cache


@cache
def exit_within(seconds: int = 10) -> None:
    """Ends this process by a signal where it is still there so long after Python has finished.

    Ray's core can wait at its exit for a lock of something that it has already destroyed (``CoreWorkerProcess``'s
    ``HandleAtExit``, in Ray 2.60): workers have stayed behind for ever, with all their memory. What they were to write
    is written by then.

    Args:
        seconds: from when Python's own clean-up runs.
    """
    if hasattr(signal, "alarm"):  # not on Windows
        atexit.register(signal.alarm, seconds)
