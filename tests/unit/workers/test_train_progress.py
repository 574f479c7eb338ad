"""What the caller hears of a training run, with a board that answers in this process."""

import sys
import time
from types import SimpleNamespace

import pytest
import ray

import workers.train  # noqa: F401

wait = sys.modules["workers.train"]._wait


@pytest.fixture
def board(monkeypatch):
    """Its answers, in turn; the last one again and again."""
    answers = []

    def get(_):
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    return SimpleNamespace(answers=answers, read=SimpleNamespace(remote=lambda: None))


def heard(board, fit):
    told = []
    wait(fit, board, 10, lambda *numbers, **named: told.append((numbers, named)))
    return told


def until_heard(board):
    while len(board.answers) > 1:
        time.sleep(0.01)


def test_each_change_is_told_once_and_the_end_always(board):
    board.answers += [(0, {}), (4, {"loss": 2.0}), (4, {"loss": 2.0})]
    told = heard(board, lambda: until_heard(board))
    assert told == [
        (("train", 0, 10), {}),
        (("train", 4, 10), {"loss": 2.0}),
        (("train", 10, 10), {"loss": 2.0}),
    ]


def test_a_board_lost_with_its_node_does_not_stop_the_training(board):
    board.answers += [(4, {"loss": 2.0}), ray.exceptions.RayActorError()]
    told = heard(board, lambda: until_heard(board))
    assert told == [(("train", 4, 10), {"loss": 2.0}), (("train", 10, 10), {"loss": 2.0})]


def test_the_error_of_the_run_is_raised(board):
    board.answers += [ray.exceptions.RayActorError()]

    def fail():
        raise ValueError("the loss is not finite")

    with pytest.raises(ValueError, match="the loss is not finite"):
        heard(board, fail)
