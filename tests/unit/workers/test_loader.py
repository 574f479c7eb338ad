"""Who reads which image when, and the reader's promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.loader import epoch_plan, shard_of_rank, steps_per_epoch

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(SIZES, st.integers(1, 6), st.integers(1, 5), st.integers(0, 50), st.integers(0, 9), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_ranks_share_an_epoch_without_overlap_and_miss_nothing(sizes, batch_size, world, epoch, seed, window):
    if sum(sizes) < world:
        return
    plans = [
        epoch_plan(sizes, batch_size=batch_size, epoch=epoch, seed=seed, world=world, rank=rank, window=window)
        for rank in range(world)
    ]
    steps = steps_per_epoch(sum(sizes), batch_size=batch_size, world=world)
    assert all(plan.shape == (steps, batch_size, 2) for plan in plans)
    seen = [{tuple(sample) for sample in plan.reshape(-1, 2).tolist()} for plan in plans]
    assert sum(len(of_rank) for of_rank in seen) == len(set.union(*seen))  # disjoint
    assert set.union(*seen) == {(g, i) for g, size in enumerate(sizes) for i in range(size)}
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_a_plan_depends_on_its_arguments_alone_and_on_each_of_them():
    def plan(**changes):
        arguments = {"batch_size": 4, "epoch": 1, "seed": 2, "world": 2, "rank": 0} | changes
        return epoch_plan([30, 50], **arguments).tolist()

    assert plan() == plan()
    for change in ({"epoch": 2}, {"seed": 3}, {"rank": 1}):
        assert plan() != plan(**change)


def test_a_rank_reads_few_row_groups_and_stays_near_them():
    sizes = [100] * 64
    plan = epoch_plan(sizes, batch_size=10, epoch=0, seed=0, world=4, rank=1, window=4)
    groups = plan.reshape(-1, 2)[:, 0]
    assert len(set(groups.tolist())) <= 17
    for start in range(0, len(groups) - 400, 400):
        assert len(set(groups[start : start + 400].tolist())) <= 9  # two windows of four, and a cut one
    # Within a window the images of its groups are mixed.
    assert len(set(groups[:40].tolist())) >= 3


def test_which_rank_gets_an_image_changes_from_epoch_to_epoch():
    shares = [
        {tuple(s) for s in epoch_plan([100], batch_size=5, epoch=e, seed=0, world=2, rank=0).reshape(-1, 2).tolist()}
        for e in range(2)
    ]
    assert 10 < len(shares[0] & shares[1]) < 40


def test_more_workers_than_images_is_an_error_that_says_how_many():
    with pytest.raises(ValueError, match="3 images cannot be shared by 4 workers; use at most 3"):
        epoch_plan([2, 1], batch_size=1, epoch=0, seed=0, world=4, rank=0)


@given(st.integers(0, 200), st.integers(1, 7))
def test_validation_shares_are_the_whole_in_order(images, world):
    shares = [shard_of_rank(images, world=world, rank=rank) for rank in range(world)]
    assert np.concatenate([np.array(share, int) for share in shares]).tolist() == list(range(images))
