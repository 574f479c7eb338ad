from __future__ import annotations

import threading

import pytest

from pipelines.in_order import in_order


def test_results_come_in_order_and_no_more_is_read_than_is_wanted() -> None:
    drawn: list[int] = []
    later = threading.Event()

    def items():
        for i in range(100):
            drawn.append(i)
            yield i

    def read(i: int) -> int:
        if i == 0:
            assert later.wait(20), "a later one is read while the first one waits"
        elif i == 3:
            later.set()
        return i * i

    found = in_order(read, items(), threads=4)
    assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(drawn) == 8 + 4, "two for each thread, and one for each that was taken before the last"
    assert list(found) == [i * i for i in range(5, 100)]
    assert list(in_order(read, [])) == []


def test_an_error_comes_at_its_place() -> None:
    found = in_order(lambda i: 1 // i, [2, 1, 0, 3], threads=2)
    assert (next(found), next(found)) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(found)
