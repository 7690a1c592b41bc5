"""The timeline: a sorted set by comparison with a plain one, and the cuts."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import timeline
from crdt.timeline import (
    CHUNK,
    END,
    START,
    Timeline,
    cut_by_age,
    cut_evenly,
    print_of,
    prints_of,
    separator,
    short,
)

stamps = st.binary(min_size=40, max_size=40).map(lambda raw: b"\x00" + raw[1:])
bounds = st.binary(max_size=40)


def some(count: int, seed: int = 1) -> list[bytes]:
    rng = random.Random(seed)
    return sorted(rng.getrandbits(319).to_bytes(40) for _ in range(count))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_sorted_set_however_it_grew(seed: int) -> None:
    rng, model, line = random.Random(seed), set[bytes](), Timeline()
    pool = some(3 * CHUNK, seed)
    for _ in range(8 * CHUNK):
        stamp = rng.choice(pool)
        if stamp in model and rng.random() < 0.4:
            model.remove(stamp)
            line.remove(stamp)
        else:
            model.add(stamp)
            line.add(stamp)
    ordered = sorted(model)
    assert list(line) == ordered == list(Timeline(model))
    assert len(line) == len(ordered)
    for low, high in zip(some(50, seed + 100), some(50, seed + 200), strict=True):
        inside = [stamp for stamp in ordered if low <= stamp < high]
        assert line.between(low, high) == inside
        assert line.between(low, high, 3) == inside[:3]
        assert line.count(low, high) == len(inside)
        assert line.position(low) == sum(stamp < low for stamp in ordered)
    assert all((stamp in line) == (stamp in model) for stamp in pool)
    for stamp in ordered:
        line.remove(stamp)
    assert len(line) == line.position(END) == 0
    assert list(line) == line.between(START, END) == []


def test_what_is_not_there_cannot_be_removed_and_what_is_there_is_not_added_twice() -> None:
    line = Timeline([b"a"])
    line.add(b"a")
    assert len(line) == 1
    with pytest.raises(KeyError):
        line.remove(b"b")
    with pytest.raises(KeyError):
        Timeline().remove(b"a")
    assert 7 not in line


@given(st.sets(stamps, min_size=2, max_size=2))
def test_a_separator_is_the_shortest_bound_between_two_stamps(pair: set[bytes]) -> None:
    below, above = sorted(pair)
    bound = separator(below, above)
    assert below < bound <= above
    assert len(bound) == 1 or above[: len(bound) - 1] <= below


@given(st.sets(stamps, max_size=80), st.integers(1, 20))
def test_even_cuts_differ_by_one_stamp_at_most(of: set[bytes], parts: int) -> None:
    ordered = sorted(of)
    line = Timeline(ordered)
    inner = cut_evenly(ordered, parts)
    assert inner == sorted(set(inner))
    edges = [START, *inner, END]
    sizes = [line.count(low, high) for low, high in pairwise(edges)]
    assert sum(sizes) == len(ordered)
    if len(ordered) >= parts:
        assert len(sizes) == parts
        assert max(sizes) - min(sizes) <= 1


def test_cuts_by_age_are_finer_the_newer_it_is() -> None:
    ordered = some(20_000)
    line = Timeline(ordered)
    edges = [START, *cut_by_age(ordered, 40, 16), END]
    sizes = [line.count(low, high) for low, high in pairwise(edges)]
    assert sum(sizes) == 20_000
    assert sizes[-5:] == [128, 64, 32, 16, 16]
    assert len(sizes) < 50
    assert max(sizes) <= 500


def test_fingerprints_name_a_range_and_the_nonce() -> None:
    ordered = some(100)
    line = Timeline(ordered)
    edges = [START, ordered[10], ordered[50], END]
    prints = prints_of(b"n" * 8, line, edges)
    assert prints[:8] == print_of(b"n" * 8, ordered[:10])
    assert prints[16:] == print_of(b"n" * 8, ordered[50:])
    assert prints != prints_of(b"m" * 8, line, edges)
    line.remove(ordered[49])
    assert prints_of(b"n" * 8, line, edges)[8:16] != prints[8:16]
    assert short(b"n" * 8, ordered[0]) != short(b"m" * 8, ordered[0])
    assert timeline.PRINT_BYTES == len(short(b"n" * 8, ordered[0])) == 8
