"""Splits by ratio: stable, near their shares, and no group in two of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.splits import SplitRule, edges, fraction_of, group_key, straddling

RULE = SplitRule.of({"train": 0.7, "val": 0.2, "test": 0.1})


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), unique=True), st.lists(st.text(max_size=20)), st.integers(0, 9))
def test_a_key_keeps_its_split_whoever_else_comes(keys, others, seed):
    rule = SplitRule.of({"a": 1, "b": 2}, seed=seed)
    before = {key: rule.split_of(key) for key in keys}
    _ = [rule.split_of(key) for key in others]
    assert {key: rule.split_of(key) for key in reversed(keys)} == before


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 99)), unique=True, max_size=60))
def test_a_group_never_straddles(images):
    image_ids = [f"{group}/{number}.jpg" for group, number in images]
    keys = [group_key(image_id, pattern=r"^([^/]+)/") for image_id in image_ids]
    assert keys == [group for group, _ in images]
    assert straddling(keys, [RULE.split_of(key) for key in keys]) == {}


@settings(deadline=None)
@given(st.text(), st.integers())
def test_fractions_are_in_the_interval_and_fall_into_their_edge(key, seed):
    place = fraction_of(key, seed)
    assert 0 <= place < 1
    rule = SplitRule.of({"train": 0.7, "val": 0.2, "test": 0.1}, seed=seed)
    assert [name for name, low, high in edges(rule) if low <= place < high] == [rule.split_of(key)]


def test_shares_are_met_and_seeds_are_independent():
    keys = [f"images/{i:06d}.jpg" for i in range(20_000)]
    found = [RULE.split_of(key) for key in keys]
    for name, share in zip(RULE.names, RULE.ratios):
        assert abs(found.count(name) / len(keys) - share) < 0.012  # 3.5 standard deviations of the largest
    other = SplitRule.of({"train": 0.7, "val": 0.2, "test": 0.1}, seed=1)
    both = sum(a == "test" == other.split_of(key) for key, a in zip(keys, found))
    assert abs(both / len(keys) - 0.01) < 0.003


def test_the_hash_is_the_same_for_ever():
    assert [RULE.split_of(k) for k in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")] == [
        "val",
        "train",
        "test",
        "train",
        "train",
    ]


@pytest.mark.parametrize("ratios", [{}, {"a": 0}, {"a": -1, "b": 2}, {"a": float("nan")}, {"a": float("inf")}])
def test_bad_shares_are_refused(ratios):
    with pytest.raises(ValueError, match="positive"):
        SplitRule.of(ratios)


def test_keys():
    assert group_key("a/b.jpg") == "a/b.jpg"
    assert group_key("a/b.jpg", "patient 7") == "patient 7"
    assert group_key("clip3_0001.jpg", pattern=r"clip\d+") == "clip3"
    assert group_key("other.jpg", "patient 7", pattern=r"clip\d+") == "other.jpg"
    assert straddling(["g", "g", "h"], ["train", "val", "val"]) == {"g": ["train", "val"]}
