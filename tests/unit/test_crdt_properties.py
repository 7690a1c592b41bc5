"""Agreement: the same set in any order, parts and number of times is the same state, for ever.

The histories are those of `python -m tests.soak.crdt_histories`, which draws a hundred thousand.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.fault import AUTHOR_FAULTS_MAX, FAULTS_MAX
from tests.soak.crdt_histories import converge, draw, permute

seeds = st.integers(0, 2**32)


@settings(max_examples=300, deadline=None)
@given(seeds, st.booleans())
def test_merging_commutes_and_is_idempotent(seed: int, listed: bool) -> None:
    assert permute(draw(seed, is_young=True, is_honest=True, listed=listed)) == ""


@settings(max_examples=300, deadline=None)
@given(seeds, st.booleans(), st.booleans())
def test_replicas_of_an_honest_swarm_agree_and_forget_the_same(
    seed: int, is_young: bool, listed: bool
) -> None:
    assert converge(draw(seed, is_young=is_young, is_honest=True, listed=listed)) == ""


@settings(max_examples=600, deadline=None)
@given(
    seeds,
    st.booleans(),
    st.booleans(),
    st.sampled_from((2, AUTHOR_FAULTS_MAX)),
    st.sampled_from((1, 3, FAULTS_MAX)),
)
def test_replicas_agree_whatever_authors_do(
    seed: int, is_young: bool, listed: bool, author_faults_max: int, faults_max: int
) -> None:
    history = draw(seed, is_young=is_young, listed=listed)
    assert converge(history, author_faults_max=author_faults_max, faults_max=faults_max) == ""
