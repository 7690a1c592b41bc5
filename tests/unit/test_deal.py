"""Dealing a data set: disjoint, complete, the same for everybody, anew when members change."""

from dataclasses import dataclass, field
from itertools import islice
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.deal import Deal, DealSampler

NAMES = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=9, unique=True)


@given(st.integers(1, 300), st.integers(0, 99), NAMES, st.integers(0, 50), st.integers(1, 5))
def test_pieces_are_disjoint_and_together_they_are_all(
    length: int, seed: int, members: list[str], round_: int, passes: int
) -> None:
    deal = Deal(length, seed=seed, pass_rounds=passes)
    first = round_ * passes
    for at in range(first, first + passes):
        sizes = [len(deal.indices(members, me, at)) for me in members]
        assert max(sizes) - min(sizes) <= 1
    dealt = [deal.indices(members, me, at) for me in members for at in range(first, first + passes)]
    assert np.array_equal(np.sort(np.concatenate(dealt)), np.arange(length))


@given(NAMES, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_everybody_deals_alike_in_whatever_order_members_are_known(
    members: list[str], round_: int, random: Random
) -> None:
    shuffled = members.copy()
    random.shuffle(shuffled)
    for me in members:
        one = Deal(100, seed=7).indices(members, me, round_)
        other = Deal(100, seed=7).indices(shuffled, me, round_)
        assert np.array_equal(one, other)


def test_the_deal_is_pinned() -> None:
    """A change of it would make members of two versions train on the same data."""
    assert Deal(10, seed=1).indices(["a", "b"], "a", 3).tolist() == [4, 7, 3, 9, 5]


def test_rounds_and_seeds_deal_differently() -> None:
    base = Deal(1000).indices(["a", "b"], "a", 0)
    assert not np.array_equal(base, Deal(1000).indices(["a", "b"], "a", 1))
    assert not np.array_equal(base, Deal(1000, seed=1).indices(["a", "b"], "a", 0))


def test_a_stranger_and_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="not one of the 2 members"):
        Deal(10).indices(["a", "b"], "c", 0)
    with pytest.raises(ValueError, match="nothing to deal"):
        Deal(0)


@dataclass
class Standing:
    """A trainer, as a sampler sees it."""

    member: str = "a"
    members: list[str] = field(default_factory=lambda: ["a", "b"])
    round: int = 0


def test_a_loader_gets_the_new_deal_when_members_change() -> None:
    deal, at = Deal(40), Standing()
    loader = iter(torch.utils.data.DataLoader(torch.arange(40), sampler=DealSampler(deal, at)))
    taken = [int(next(loader)) for _ in range(5)]
    assert taken == deal.indices(["a", "b"], "a", 0)[:5].tolist()
    at.members, at.round = ["a"], 1
    assert [int(x) for x in islice(loader, 40)] == deal.indices(["a"], "a", 1).tolist()


def test_ranks_share_a_piece_and_more_members_than_data_is_no_end() -> None:
    deal, at = Deal(40), Standing()
    ranks = [list(islice(DealSampler(deal, at, share=(rank, 2)), 10)) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == sorted(deal.indices(["a", "b"], "a", 0).tolist())
    few = DealSampler(Deal(1), Standing(member="b"))
    assert list(islice(few, 3)) == [0, 0, 0]
