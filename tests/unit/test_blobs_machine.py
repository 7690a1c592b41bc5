"""Which chunk is asked of whom."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols.blobs.machine import (
    ASKERS_MAX,
    STALL_S,
    WINDOW_FIRST,
    WINDOW_MAX,
    WINDOW_MIN,
    Fetch,
    from_bits,
    full,
    members,
    to_bits,
)
from protocols.blobs.wire import GET_MAX
from wire.ids import PeerId

A, B, C = (PeerId(name) for name in "ABC")


def ask_all(fetch: Fetch, peer: PeerId, now: float = 0.0) -> list[int]:
    asked: list[int] = []
    while (found := fetch.next_for(peer, now)) is not None:
        asked += found
    return asked


def test_chunks_are_asked_in_runs_up_to_the_window() -> None:
    fetch = Fetch(full(20))
    fetch.join(A, full(20), rtt_s=0.01)
    assert fetch.next_for(A, 0.0) == range(WINDOW_FIRST)
    assert fetch.next_for(A, 0.0) is None
    fetch.arrived(A, 0, 0.0)
    assert fetch.next_for(A, 0.0) == range(WINDOW_FIRST, WINDOW_FIRST + 1)


def test_a_fetch_may_begin_anywhere_and_goes_round() -> None:
    fetch = Fetch(full(5), choose=lambda: 3)
    fetch.join(A, full(5), rtt_s=0.01)
    assert fetch.next_for(A, 0.0) == range(3, 5)
    assert fetch.next_for(A, 0.0) == range(2)


def test_who_fetches_beside_others_does_not_go_in_order() -> None:
    turns = iter([0, 7, 2, 5])
    fetch = Fetch(full(20), choose=lambda: next(turns))
    fetch.join(A, full(20), rtt_s=0.01)
    fetch.join(B, 1, rtt_s=0.01)  # who fetches it, too
    assert fetch.next_for(A, 0.0) == range(7, 11)
    fetch.arrived(A, 7, 0.0)
    assert fetch.next_for(A, 0.0) == range(2, 3)
    fetch.gained(B, full(20))
    fetch.arrived(A, 2, 0.0)
    assert fetch.next_for(A, 0.0) == range(1)


def test_the_rarest_come_first() -> None:
    fetch = Fetch(full(6))
    fetch.join(A, full(6), rtt_s=0.01)
    fetch.join(B, 0b001111, rtt_s=0.01)
    fetch.join(C, 0b000011, rtt_s=0.01)
    assert ask_all(fetch, A) == [4, 5, 2, 3]
    fetch.leave(A)
    fetch.gained(C, 0b111100)
    assert ask_all(fetch, C) == [4, 5, 0, 1]


def test_what_those_who_left_had_is_rarer() -> None:
    fetch = Fetch(full(2))
    for peer, have in ((A, 0b01), (C, 0b01), (B, 0b11), (PeerId("D"), 0b10)):
        fetch.join(peer, have, rtt_s=0.01)
    fetch.leave(A)
    fetch.leave(C)
    assert ask_all(fetch, B) == [0, 1]


def test_what_one_lacks_the_other_is_asked_for() -> None:
    fetch = Fetch(1)
    fetch.join(A, 1, rtt_s=0.01)
    fetch.join(B, 1, rtt_s=0.01)
    assert ask_all(fetch, A) == [0]
    fetch.lacks(A, 0)
    assert not fetch.is_useful(A)
    assert ask_all(fetch, A) == []
    assert ask_all(fetch, B) == [0]
    fetch.lacks(B, 0)
    assert not fetch.is_done
    assert fetch.missing == 1


def test_at_the_end_the_last_chunks_are_asked_of_two_and_the_slower_is_told_to_stop() -> None:
    fetch = Fetch(full(4))
    fetch.join(A, full(4), rtt_s=1.0)
    fetch.join(B, full(4), rtt_s=0.01)
    fetch.join(C, full(4), rtt_s=0.01)
    assert ask_all(fetch, A) == [0, 1, 2, 3]
    assert ask_all(fetch, B) == [3, 2]  # what A brings last
    assert ask_all(fetch, C) == [1, 0]  # and never three for one
    assert fetch.arrived(B, 3, 0.1) == [A]
    assert not fetch.owes(A, 3)
    assert fetch.arrived(A, 0, 0.1) == [C]
    fetch.leave(A)
    assert fetch.missing == 0b0110
    assert fetch.arrived(B, 2, 0.2) == []
    assert fetch.arrived(C, 1, 0.2) == []
    assert fetch.is_done


def test_nobody_is_asked_twice_before_the_end() -> None:
    fetch = Fetch(full(100))
    fetch.join(A, full(100), rtt_s=1.0)
    fetch.join(B, full(100), rtt_s=0.01)
    assert not set(ask_all(fetch, A)) & set(ask_all(fetch, B))


def test_a_fast_provider_gets_a_wide_window_and_a_slow_one_a_narrow_one() -> None:
    def window_after(chunks_per_s: float, rtt_s: float) -> int:
        fetch = Fetch(full(100_000))
        fetch.join(A, full(100_000), rtt_s=rtt_s)
        now = 0.0
        asked = ask_all(fetch, A)
        while now < 20:
            now += 1 / chunks_per_s
            fetch.arrived(A, asked.pop(0), now)
            asked += ask_all(fetch, A, now)
        return fetch.in_flight(A)

    assert window_after(0.5, 0.01) == WINDOW_MIN
    assert 6 <= window_after(20, 0.01) <= 10
    assert 20 <= window_after(20, 0.9) <= 28
    assert window_after(1000, 0.1) == WINDOW_MAX


def test_silence_is_noticed_only_of_those_who_owe() -> None:
    fetch = Fetch(full(8))
    fetch.join(A, full(8), rtt_s=0.01)
    fetch.join(B, full(8), rtt_s=0.01)
    assert fetch.stalled(100.0) == []
    ask_all(fetch, A, 100.0)
    assert fetch.stalled(100.0 + STALL_S - 0.1) == []
    assert fetch.stalled(100.0 + STALL_S) == [A]
    fetch.arrived(A, 0, 110.0)
    assert fetch.stalled(100.0 + STALL_S) == []


def test_a_slow_one_that_others_help_is_not_silent() -> None:
    fetch = Fetch(full(2))
    fetch.join(A, full(2), rtt_s=1.0)
    fetch.join(B, full(2), rtt_s=0.01)
    assert ask_all(fetch, A) == [0, 1]
    assert ask_all(fetch, B, 10.0) == [1, 0]
    fetch.arrived(B, 1, 12.0)
    assert fetch.stalled(12.0 + STALL_S - 0.1) == []
    assert fetch.stalled(12.0 + STALL_S) == [A, B]


def test_nobody_is_asked_at_the_end_for_what_another_brings_sooner() -> None:
    fetch = Fetch(full(2))
    fetch.join(A, full(2), rtt_s=0.01)
    fetch.join(B, full(2), rtt_s=5.0)
    assert ask_all(fetch, A) == [0, 1]
    assert ask_all(fetch, B) == []


def test_one_burst_is_no_rate_and_one_request_is_bounded() -> None:
    fetch = Fetch(full(10_000))
    fetch.join(A, full(10_000), rtt_s=1.0)
    asked, windows, largest = ask_all(fetch, A), [WINDOW_FIRST], 0
    for _ in range(100):
        fetch.arrived(A, asked.pop(0), 0.001)
        while (found := fetch.next_for(A, 0.001)) is not None:
            asked += found
            largest = max(largest, len(found))
        windows.append(fetch.in_flight(A))
        assert windows[-1] <= 2 * windows[-2]
    assert windows[-1] == WINDOW_MAX
    assert 1 < largest <= GET_MAX < WINDOW_MAX


@given(st.sets(st.integers(0, 300)), st.integers(1, 301))
def test_sets_travel(chunks: set[int], count: int) -> None:
    whole = sum(1 << index for index in chunks)
    assert set(members(whole)) == chunks
    assert set(members(from_bits(to_bits(whole), count))) == {i for i in chunks if i < count}


CHUNKS = 12
PEERS = [PeerId(name) for name in "ABCD"]


class Swarm(RuleBasedStateMachine):
    """Whatever happens in whatever order, no chunk is lost or asked too often, and it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.here: set[int] = set()
        self.have: dict[PeerId, set[int]] = {}
        self.owed: dict[PeerId, list[int]] = {}

    @initialize(dice=st.randoms(use_true_random=False))
    def begin(self, dice: Random) -> None:
        self.fetch = Fetch(full(CHUNKS), choose=lambda: dice.randrange(CHUNKS))

    @rule(peer=st.sampled_from(PEERS), have=st.sets(st.integers(0, CHUNKS - 1)))
    def join_or_gain(self, peer: PeerId, have: set[int]) -> None:
        chunks = sum(1 << index for index in have)
        if peer in self.have:
            self.fetch.gained(peer, chunks)
            self.have[peer] |= have
        else:
            self.fetch.join(peer, chunks, rtt_s=0.05)
            self.have[peer], self.owed[peer] = set(have), []

    @precondition(lambda self: self.have)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(sorted(self.have)))
        found = self.fetch.next_for(peer, self.now)
        wanted = set(range(CHUNKS)) - self.here - {i for owed in self.owed.values() for i in owed}
        if found is None:
            room = len(self.owed[peer]) < WINDOW_MIN
            assert not (room and wanted & self.have[peer]), "it could have been asked for more"
            return
        assert 0 < len(found) <= GET_MAX
        for index in found:
            assert index in self.have[peer] - self.here
            assert index not in self.owed[peer]
            askers = sum(index in owed for owed in self.owed.values())
            assert askers < ASKERS_MAX
            if askers:
                assert not wanted & self.have[peer], "asked twice although there was other work"
            self.owed[peer].append(index)
        if found[0] in wanted:
            rarity = {i: sum(i in have for have in self.have.values()) for i in wanted}
            able = wanted & self.have[peer]
            assert rarity[found[0]] == min(rarity[index] for index in able), "not the rarest"

    @precondition(lambda self: any(self.owed.values()))
    @rule(data=st.data(), wait_s=st.floats(0, 1))
    def arrive(self, data: st.DataObject, wait_s: float) -> None:
        self.now += wait_s
        peer = data.draw(st.sampled_from(sorted(p for p, owed in self.owed.items() if owed)))
        index = data.draw(st.sampled_from(self.owed[peer]))
        others = self.fetch.arrived(peer, index, self.now)
        expected = [p for p, owed in self.owed.items() if index in owed and p != peer]
        assert sorted(others) == sorted(expected)
        for each in (peer, *others):
            self.owed[each].remove(index)
        self.here.add(index)

    @precondition(lambda self: any(self.owed.values()))
    @rule(data=st.data())
    def lack(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(sorted(p for p, owed in self.owed.items() if owed)))
        index = data.draw(st.sampled_from(self.owed[peer]))
        self.fetch.lacks(peer, index)
        self.owed[peer].remove(index)
        self.have[peer].discard(index)

    @precondition(lambda self: self.have)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(sorted(self.have)))
        self.fetch.leave(peer)
        del self.have[peer], self.owed[peer]

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "fetch"):
            return
        assert set(members(self.fetch.missing)) == set(range(CHUNKS)) - self.here
        assert self.fetch.is_done == (len(self.here) == CHUNKS)
        for peer, owed in self.owed.items():
            assert self.fetch.in_flight(peer) == len(owed) <= WINDOW_MAX
            assert all(self.fetch.owes(peer, index) for index in owed)


TestSwarm = Swarm.TestCase
TestSwarm.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
