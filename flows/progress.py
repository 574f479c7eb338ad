"""Where progress goes: the command line shows bars, a flow run on a server only logs.

A flow's parameters are JSON, so the callback cannot be one; whoever calls a flow in this process sets it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

Progress = Callable[..., None]
"""``progress(stage, done, total, **numbers)``, see ``workers.progress``."""

_current: list[Progress] = []


def current_progress() -> Progress | None:
    """The callback in force, or None. A list and not a context variable: tasks may run in other threads."""
    return _current[-1] if _current else None


@contextmanager
def progress_to(callback: Progress | None) -> Iterator[None]:
    """Within the block, work that flows start in this process reports to ``callback``."""
    if callback is None:
        yield
        return
    _current.append(callback)
    try:
        yield
    finally:
        _current.remove(callback)


def stage(callback: Progress | None, name: str) -> Callable[[int, int], None] | None:
    """A callback as ``pipelines`` call it, ``progress(done, total)``, that reports one stage."""
    return None if callback is None else partial(callback, name)
