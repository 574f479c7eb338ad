"""Starting an embedded Ray on a machine that is too busy for Ray's patience."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from workers import cluster


@pytest.mark.parametrize(("failures", "said", "starts"), [(2, "timed out during startup", 3), (9, "another", 1)])
def test_only_a_start_that_timed_out_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, failures: int, said: str, starts: int
) -> None:
    asked: list[dict[str, Any]] = []
    ended: list[bool] = []

    def init(**options: Any) -> None:
        asked.append(options)
        if len(asked) <= failures:
            raise Exception(f"The current node {said}.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    if failures < starts:
        cluster._start(2)
    else:
        with pytest.raises(Exception, match=said):
            cluster._start(2)
    assert len(asked) == starts and len(ended) == starts - 1
    assert {options["num_cpus"] for options in asked} == {2}
