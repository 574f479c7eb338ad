"""Many small reads at once, their results one by one in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(read: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 16) -> Iterator[Result]:
    """``map(read, items)`` with up to ``2 * threads`` results ahead of what was taken, and no more in memory.

    Args:
        read: called in threads; what it raises is raised here, at its place.
        items: drawn as results are taken.
        threads: at once.
    """
    rest = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        running = deque(pool.submit(read, item) for item in islice(rest, 2 * threads))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(read, item) for item in islice(rest, 1))
