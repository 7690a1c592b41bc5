"""Limits: bursts pass, floods do not, and one peer's flood is nobody else's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht import limits
from dht.limits import RATES, Limits
from wire.ids import PeerId

ALICE, BOB = PeerId("alice"), PeerId("bob")


def test_a_burst_passes_and_then_so_many_a_second() -> None:
    asked, rate = Limits(), RATES["request"]
    assert sum(asked.allows(ALICE, "request", 0.0) for _ in range(300)) == rate.burst
    assert sum(asked.allows(ALICE, "request", 1.0) for _ in range(300)) == rate.per_s
    assert sum(asked.allows(ALICE, "request", 100.0) for _ in range(300)) == rate.burst


def test_idle_peers_save_up_no_more_than_a_burst() -> None:
    asked = Limits()
    assert asked.allows(ALICE, "request", 0.0)
    later = limits.SWEEP_S - 1  # so that it is not forgotten
    assert sum(asked.allows(ALICE, "request", later) for _ in range(900)) == RATES["request"].burst


def test_peers_and_kinds_do_not_share() -> None:
    asked = Limits()
    while asked.allows(ALICE, "request", 0.0):
        pass
    assert asked.allows(BOB, "request", 0.0)
    assert asked.allows(ALICE, "record", 0.0)


def test_many_records_count_as_many_and_what_is_refused_costs_nothing() -> None:
    asked = Limits()
    assert asked.allows(ALICE, "record", 0.0, 1500)
    assert not asked.allows(ALICE, "record", 0.0, 501)
    assert asked.allows(ALICE, "record", 0.0, 500)
    assert not asked.allows(ALICE, "record", 0.0)
    assert not asked.allows(BOB, "record", 0.0, 2001)  # more than a bucket ever holds
    assert asked.allows(ALICE, "record", 10.0, 500)
    assert not asked.allows(ALICE, "record", 10.0)


def test_who_has_spent_nothing_lately_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEERS_MAX", 3)
    asked = Limits()
    for name in "abc":
        assert asked.allows(PeerId(name), "request", 0.0, 50)
    assert not asked.allows(PeerId("d"), "request", 0.0)
    assert asked.allows(PeerId("a"), "request", 0.0)
    assert len(asked) == 3
    assert asked.allows(PeerId("d"), "request", limits.SWEEP_S)
    assert len(asked) == 1


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 300)), max_size=60))
def test_nobody_gets_more_than_a_burst_and_the_rate(steps: list[tuple[float, int]]) -> None:
    asked, now_s, spent = Limits(), 0.0, 0
    rate = RATES["request"]
    for wait_s, count in steps:
        now_s += wait_s
        spent += count * asked.allows(ALICE, "request", now_s, count)
        assert spent <= rate.burst + rate.per_s * now_s + 1e-3
