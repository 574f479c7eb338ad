"""What a process keeps of freed memory, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import threading
from workers.memory import hand_back_freed_memory, keep_freed_memory

def resident():  # MiB
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096 / 2**20

def use():
    for _ in range(3):
        blocks = [bytearray(2**20) for _ in range(200)]
        del blocks

assert keep_freed_memory()
thread = threading.Thread(target=use)
thread.start()
thread.join()
kept = resident()
assert hand_back_freed_memory()
print(kept, resident())
"""


def test_freed_memory_is_kept_until_it_is_handed_back() -> None:
    found = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    kept, left = map(float, found.stdout.split())
    assert kept > 200
    assert left < kept - 150
