"""Running ahead within bounds, clocks of stages, turns of tasks."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.jobs import Receipt
from pipelines.ledger import Ledger
from pipelines.shards import ShardFile
from workers.label_account import RunClock, add_up, read_account, write_account
from workers.label_actor import Turns
from workers.label_attempts import FailedTask, LabellingFailed, check_failures
from workers.label_stages import STAGES, StageClock, ahead


@pytest.mark.parametrize("depth", [1, 3])
def test_results_come_in_order_and_only_so_many_are_begun(depth):
    taken, furthest = 0, 0

    def items():
        nonlocal furthest
        for i in range(20):
            furthest = max(furthest, i + 1 - taken)
            yield i

    with ThreadPoolExecutor(4) as pool:
        found = []
        for value in ahead(pool, lambda i: (time.sleep(0.001 * (i % 3)), i * i)[1], items(), depth):
            taken += 1
            found.append(value)
    assert found == [i * i for i in range(20)]
    assert furthest <= depth


def test_a_failure_comes_where_its_result_would_and_what_waits_is_not_begun():
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 2:
            raise ValueError("the third")
        return i

    with ThreadPoolExecutor(1) as pool:
        results = ahead(pool, work, range(100), 4)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="the third"):
            next(results)
    assert len(begun) <= 6


def test_a_clock_adds_up_threads():
    clock = StageClock()

    def work(_: int) -> None:
        with clock.timed("decode"):
            time.sleep(0.01)
        clock.read(5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    measured = clock.to_json()
    assert measured["bytes"] == 40 and measured["stages"]["decode"] >= 0.08
    assert measured["stages"].keys() == set(STAGES) and measured["stages"]["model"] == 0


def test_two_tasks_take_turns_and_a_dangerous_one_is_alone():
    turns, inside, together = Turns(2), set(), set()
    lock = threading.Lock()

    def task(name: int) -> None:
        alone = name % 5 == 0
        with turns.taken(alone=alone):
            with lock:
                inside.add(name)
                together.add((alone, len(inside)))
            time.sleep(0.002)
            with lock:
                together.add((alone, len(inside)))
                inside.remove(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(task, range(30)))
    assert (True, 2) not in together and max(count for _, count in together) == 2


def test_an_account_is_the_sum_of_receipts_old_ones_included():
    def receipt(task: int, **extra) -> Receipt:
        file = ShardFile(path=f"labels/p/{task}", size=100, rows=4, num_objects=7, splits={})
        return Receipt(
            task_id=task, files=(file,), ledger=Ledger().to_json(), extra={"failed": 1, "quarantine": None, **extra}
        )

    stages = {"read": 1.0, "decode": 2.0, "model": 3.0, "encode": 0.5, "write": 0.25}
    measured = {"stages": stages, "bytes": 1000, "seconds": 7.0}
    receipts = [receipt(0), receipt(1, attempts=3, **measured), receipt(2, attempts=2, dead=True)]
    found = add_up(iter(receipts)).account("plan", price_per_hour=None, run=None)
    assert found.stage_seconds == stages and (found.bytes_read, found.bytes_written) == (1000, 300)
    assert (found.images, found.objects, found.quarantined) == (12, 21, 3)
    assert (found.tasks, found.tasks_given_up, found.retries) == (3, 1, 3)


def test_a_run_costs_what_its_time_costs():
    clock = RunClock(workers=2)
    nothing = {"images": 0, "failed": 0, "model_seconds": 0.0}
    clock.add({"task": 0, "attempts": 1, "images": 10, "failed": 1, "model_seconds": 0.002})
    clock.add({"task": 1, "attempts": 1, **nothing})
    clock.add({"task": 1, "attempts": 2, **nothing})
    time.sleep(0.02)
    run = clock.account(36.0)
    assert (run.images, clock.failed, clock.retries) == (10, 1, 1) and run.seconds >= 0.02
    assert run.cost_per_million_images == pytest.approx(36.0 / 3600 * 10 / run.images_per_second / 10 * 1e6)
    assert 0 < run.model_busy <= 0.002 / (0.02 * 2)
    assert RunClock(workers=1).account(None).cost_per_million_images is None


def test_live_retries_are_those_of_the_final_account():
    clock, nothing = RunClock(workers=1), {"images": 0, "failed": 0, "model_seconds": 0.0}
    for attempt in range(1, 6):  # given up after the last
        clock.add({"task": 3, "attempts": attempt, **nothing})
    assert clock.retries == 4
    # Of attempts that killed their worker nobody tells: what comes afterwards says how many there were.
    clock.add({"task": 4, "attempts": 3, **nothing})
    assert clock.retries == 6


def test_an_account_written_again_keeps_what_the_run_took(tmp_path):
    sums, run = add_up([]), RunClock(workers=2).account(3.0)
    first = write_account(str(tmp_path), sums.account("plan", price_per_hour=3.0, run=run))
    assert first["run"]["workers"] == 2
    again = write_account(str(tmp_path), sums.account("plan", price_per_hour=None, run=None))
    assert again == first == read_account(str(tmp_path), "plan")
    other = RunClock(workers=7).account(None)
    assert write_account(str(tmp_path), sums.account("plan", price_per_hour=None, run=other))["run"]["workers"] == 7


@pytest.mark.parametrize(
    ("dead", "tasks", "done", "fails"),
    [
        (1, 100, None, False),
        (10, 100, None, False),
        (11, 100, None, True),
        (1, 2, None, False),
        (2, 2, None, True),
        (1, 2, 1, False),
        (1, 1, 0, True),
        (0, 5, 0, False),
    ],
)
def test_more_than_a_share_of_dead_tasks_or_nothing_else_ends_the_run(dead, tasks, done, fails):
    failed = [FailedTask(task=i, attempts=3, error_class="OSError", error="gone") for i in range(dead)]
    if not fails:
        check_failures(failed, num_tasks=tasks, num_done=done, share=0.1)
        return
    with pytest.raises(LabellingFailed, match=rf"{dead} of {tasks} tasks.*after 3 attempts with OSError: gone"):
        check_failures(failed, num_tasks=tasks, num_done=done, share=0.1)
