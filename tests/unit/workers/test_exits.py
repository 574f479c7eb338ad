"""A process that hangs behind Python's end is ended; one that does not ends as it would."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

HANGS = """
import ctypes
libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.pause, ctypes.c_void_p), None, None)
"""
LIMIT = "from workers.exits import exit_within; exit_within(1); exit_within(1)\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the test's way to hang is glibc's")
def test_a_process_that_hangs_at_its_exit_is_ended():
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", LIMIT + HANGS], timeout=60).returncode == -signal.SIGALRM
    assert time.monotonic() - started >= 1
    with pytest.raises(subprocess.TimeoutExpired):  # which is what would be without
        subprocess.run([sys.executable, "-c", HANGS], timeout=3)


def test_a_process_that_ends_by_itself_is_left_alone():
    assert subprocess.run([sys.executable, "-c", LIMIT + "raise SystemExit(7)"], timeout=60).returncode == 7
