"""Ray tasks of which only so many are in flight: a plan of a million would fill the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")


def as_done(submit: Callable[[Item], Any], items: Iterable[Item], *, at_once: int) -> Iterator[tuple[Item, Any]]:
    """Each item with what its task returned, in the order in which they end.

    Args:
        submit: starts the task of an item and returns its object reference.
        items: drawn as tasks end.
        at_once: tasks in flight.
    Raises:
        RayTaskError: what a task raised; Ray makes it an instance of that error's class as well.
    """
    import ray

    waiting = iter(items)
    running = {submit(item): item for item in islice(waiting, at_once)}
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(done), ray.get(done)
        running |= {submit(item): item for item in islice(waiting, 1)}
