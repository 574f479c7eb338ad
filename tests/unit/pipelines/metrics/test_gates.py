"""Numbers that must be reached: how they are written, what passes."""

from __future__ import annotations

import pytest

from pipelines.metrics.gates import check_gates, parse_gates


def test_numbers_are_compared_by_name() -> None:
    gates = check_gates({"AP": 0.5, "AP50": 0.4999, "AP_small": -1.0, "AR_1": None}, parse_gates(["AP=0.5", "AP50=.5"]))
    assert [(gate.name, gate.least, gate.value, gate.passed) for gate in gates] == [
        ("AP", 0.5, 0.5, True),
        ("AP50", 0.5, 0.4999, False),
    ]
    assert str(gates[1]) == "AP50 is 0.4999, wanted 0.5 or more"


@pytest.mark.parametrize("value", [-1.0, None])
def test_what_cannot_be_measured_does_not_pass_even_zero(value: float | None) -> None:
    (gate,) = check_gates({"AP_small": value}, {"AP_small": 0.0})
    assert not gate.passed
    assert str(gate) == "AP_small has no truth to be measured on, wanted 0 or more"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["AP"], "'AP' is no NAME=NUMBER"),
        (["AP=high"], "'AP=high' is no NAME=NUMBER"),
        (["AP=50"], "'AP=50': metrics lie in 0..1"),
        (["AP=nan"], "metrics lie in 0..1"),
        (["AP=0.5", "AP=0.6"], "AP is given twice: 0.5 and 0.6"),
    ],
)
def test_refusals(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_gates(texts)


def test_an_unknown_number_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="mAP is not measured here; there are AP, AP50"):
        check_gates({"AP": 0.1, "AP50": 0.2}, {"mAP": 0.1})
