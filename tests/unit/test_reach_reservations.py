"""Which relays a node holds reservations on: scripts on a clock that is passed in."""

import typing

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.reach.reservations import (
    HELD,
    RETRY_S,
    SETTLED_S,
    Ask,
    Candidate,
    Effect,
    Release,
    Reservations,
)
from wire.ids import PeerId

ANN, BEN, CAT, DAN = (PeerId(name) for name in ("ann", "ben", "cat", "dan"))
HOUR_S = 3600.0


def relay(
    peer: PeerId, net: int, *, rtt_s: float | None = 0.02, free: int | None = 99
) -> Candidate:
    return Candidate(peer, f"11.{net}.0.1", free, rtt_s)


def asked(effects: list[Effect]) -> set[PeerId]:
    return {effect.peer for effect in effects if isinstance(effect, Ask)}


def released(effects: list[Effect]) -> set[PeerId]:
    return {effect.peer for effect in effects if isinstance(effect, Release)}


def holding(*relays: Candidate, now: float = 0.0) -> Reservations:
    """A machine that holds what these gave."""
    machine = Reservations(PeerId("me"))
    machine.update(relays, is_wanted=True, now=now)
    for one in relays:
        machine.granted(one.peer, [f"/at/{one.peer}"], HOUR_S, now)
    assert machine.held.keys() == {one.peer for one in relays}
    return machine


def test_the_two_nearest_relays_of_different_networks_are_asked() -> None:
    machine = Reservations(PeerId("me"))
    relays = [relay(ANN, 1, rtt_s=0.01), relay(BEN, 1, rtt_s=0.02), relay(CAT, 2, rtt_s=0.2)]
    assert asked(machine.update(relays, is_wanted=True, now=0.0)) == {ANN, CAT}
    assert machine.granted(CAT, ["/cat"], HOUR_S, 0.1) == []
    assert machine.granted(ANN, ["/ann"], HOUR_S, 0.2) == []
    assert machine.addresses == ["/cat", "/ann"]
    farther = [relay(ANN, 1, rtt_s=0.3), relay(CAT, 2, rtt_s=0.2)]
    machine.update(farther, is_wanted=True, now=1.0)
    assert machine.addresses == ["/cat", "/ann"]  # each change would be told to everybody


def test_two_of_one_network_are_better_than_one_until_another_comes() -> None:
    machine = holding(relay(ANN, 1, rtt_s=0.01), relay(BEN, 1, rtt_s=0.02))
    both = [relay(ANN, 1, rtt_s=0.01), relay(BEN, 1, rtt_s=0.02)]
    assert asked(machine.update([*both, relay(CAT, 2, rtt_s=0.3)], is_wanted=True, now=1.0)) == {
        CAT
    }
    assert released(machine.granted(CAT, ["/cat"], HOUR_S, 1.5)) == {BEN}
    assert machine.held.keys() == {ANN, CAT}


def test_a_full_relay_is_not_asked_and_an_emptier_one_is_preferred() -> None:
    machine = Reservations(PeerId("me"))
    relays = [relay(ANN, 1, free=0), relay(BEN, 2, free=2), relay(CAT, 3), relay(DAN, 4)]
    assert asked(machine.update(relays, is_wanted=True, now=0.0)) == {CAT, DAN}


def test_members_that_offer_come_before_peers_that_say_nothing() -> None:
    machine = Reservations(PeerId("me"))
    silent = relay(ANN, 1, rtt_s=0.001, free=None)
    offers = [relay(BEN, 2, rtt_s=None), relay(CAT, 3, rtt_s=0.2)]
    assert asked(machine.update([silent, *offers], is_wanted=True, now=0.0)) == {BEN, CAT}
    alone = Reservations(PeerId("me"))
    assert asked(alone.update([silent], is_wanted=True, now=0.0)) == {ANN}


def test_what_is_granted_when_nothing_is_wanted_any_more_is_given_back() -> None:
    machine = Reservations(PeerId("me"))
    assert asked(machine.update([relay(ANN, 1)], is_wanted=True, now=0.0)) == {ANN}
    assert released(machine.update([relay(ANN, 1)], is_wanted=False, now=1.0)) == {ANN}
    assert machine.granted(ANN, ["/ann"], HOUR_S, 2.0) == []
    assert machine.held == {}
    gone = Reservations(PeerId("me"))
    assert asked(gone.update([relay(ANN, 1)], is_wanted=True, now=0.0)) == {ANN}
    gone.update([], is_wanted=True, now=1.0)
    assert released(gone.granted(ANN, ["/ann"], HOUR_S, 2.0)) == {ANN}


def test_nobody_is_asked_while_no_relay_is_needed() -> None:
    machine = Reservations(PeerId("me"))
    assert machine.update([relay(ANN, 1)], is_wanted=False, now=0.0) == []
    assert machine.deadline == float("inf")


def test_a_node_that_becomes_public_gives_all_back() -> None:
    machine = holding(relay(ANN, 1))
    machine.update([relay(ANN, 1), relay(BEN, 2)], is_wanted=True, now=1.0)  # BEN is being asked
    assert released(machine.update([relay(ANN, 1)], is_wanted=False, now=2.0)) == {ANN, BEN}
    assert machine.addresses == []
    assert machine.granted(BEN, ["/ben"], HOUR_S, 3.0) == []  # too late


def test_a_reservation_is_renewed_at_half_its_life() -> None:
    machine = holding(relay(ANN, 1))
    assert machine.deadline == HOUR_S / 2
    assert machine.tick(HOUR_S / 2 - 1) == []
    assert machine.tick(HOUR_S / 2) == [Ask(ANN)]
    assert machine.tick(HOUR_S / 2 + 1) == []  # once
    machine.granted(ANN, ["/ann"], HOUR_S, HOUR_S / 2 + 2)
    assert machine.deadline == HOUR_S + 2
    assert machine.addresses == ["/ann"]


def test_a_refused_renewal_is_tried_again_and_the_reservation_stands_until_its_end() -> None:
    machine, now = holding(relay(ANN, 1)), HOUR_S / 2
    tries = 0
    while ANN in machine.held:
        now = machine.deadline
        tries += ANN in asked(machine.tick(now))
        machine.refused(ANN, now)
        assert tries < 50
    assert now == HOUR_S
    assert tries > 10  # seconds apart at first, then minutes


def test_a_lost_relay_is_replaced_at_once() -> None:
    machine = holding(relay(ANN, 1), relay(BEN, 2))
    machine.update([relay(peer, net) for net, peer in enumerate((ANN, BEN, CAT))], is_wanted=True,
                   now=1.0)  # fmt: skip
    effects = machine.lost(ANN, 2.0)
    assert released(effects) == {ANN}
    assert asked(effects) == {CAT}
    assert machine.addresses == ["/at/ben"]


def test_a_lost_relay_without_another_is_asked_again_soon() -> None:
    machine = holding(relay(ANN, 1))
    assert asked(machine.lost(ANN, 10.0)) == set()
    assert machine.deadline == 10.0 + RETRY_S
    assert asked(machine.tick(10.0 + RETRY_S)) == {ANN}


def test_refusals_are_answered_with_patience_and_news_ends_it() -> None:
    machine = Reservations(PeerId("me"))
    starting = relay(ANN, 1, free=None)
    assert asked(machine.update([starting], is_wanted=True, now=0.0)) == {ANN}
    waits, now = list[float](), 0.0
    for _ in range(12):
        machine.refused(ANN, now)
        waits.append(machine.deadline - now)
        now = machine.deadline
        assert asked(machine.tick(now)) == {ANN}
    assert waits[:3] == [0.5, 1.0, 2.0]
    assert waits[-1] == 300.0
    machine.refused(ANN, now)
    assert asked(machine.update([starting], is_wanted=True, now=now + 1)) == set()
    assert asked(machine.update([relay(ANN, 1, free=128)], is_wanted=True, now=now + 2)) == {ANN}


def test_a_slightly_better_relay_causes_no_move_and_a_much_better_one_only_in_time() -> None:
    held = [relay(ANN, 1, rtt_s=0.1), relay(BEN, 2, rtt_s=0.1)]
    machine = holding(*held)
    slightly, much = relay(CAT, 3, rtt_s=0.08), relay(DAN, 4, rtt_s=0.005)
    later = 2 * SETTLED_S
    assert machine.update([*held, slightly], is_wanted=True, now=later) == []
    fresh = holding(*held)
    assert fresh.update([*held, much], is_wanted=True, now=SETTLED_S - 1) == []
    assert asked(fresh.update([*held, much], is_wanted=True, now=SETTLED_S)) == {DAN}
    effects = fresh.granted(DAN, ["/dan"], HOUR_S, SETTLED_S)
    assert len(released(effects)) == 1  # only once the new one stands
    assert DAN in fresh.held


def test_equal_relays_are_shared_among_many_nodes() -> None:
    relays = [relay(PeerId(f"relay{net}"), net) for net in range(10)]
    load = dict.fromkeys((one.peer for one in relays), 0)
    for number in range(200):
        machine = Reservations(PeerId(f"node{number}"))
        for peer in asked(machine.update(relays, is_wanted=True, now=0.0)):
            load[peer] += 1
    assert max(load.values()) < 80  # of 400; the mean is 40


peers = st.sampled_from([PeerId(f"p{number}") for number in range(6)])
candidates = st.builds(
    Candidate,
    peers,
    st.sampled_from(["11.1.0.1", "11.2.0.1", "2a01:1::1"]),
    st.sampled_from([None, 0, 1, 128]),
    st.sampled_from([None, 0.001, 0.1]),
)
steps = st.one_of(
    st.tuples(st.just("update"), st.lists(candidates, max_size=4), st.booleans()),
    st.tuples(st.sampled_from(["granted", "refused", "lost"]), peers, st.none()),
    st.tuples(st.just("wait"), st.floats(0.0, 4000.0), st.none()),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=25))
def test_whatever_happens_few_are_held_and_asked(script: list[tuple[str, object, object]]) -> None:
    machine, now = Reservations(PeerId("me")), 0.0
    open_: set[PeerId] = set()  # asked, not answered
    kept: set[PeerId] = set()
    for what, value, wanted in script:
        effects: list[Effect] = []
        match what, value:
            case "wait", float():
                now += value
                effects = machine.tick(now)
            case "update", list():
                effects = machine.update(
                    typing.cast("list[Candidate]", value), is_wanted=bool(wanted), now=now
                )
            case "granted", str():
                peer = PeerId(value)
                effects = machine.granted(peer, [f"/{peer}"], HOUR_S, now)
                open_.discard(peer)
                if peer in machine.held:
                    kept.add(peer)
            case "refused", str():
                effects = machine.refused(PeerId(value), now)
                open_.discard(PeerId(value))
            case "lost", str():
                effects = machine.lost(PeerId(value), now)
                open_.discard(PeerId(value))
            case _:
                raise AssertionError(what)
        kept -= released(effects)
        open_ -= released(effects)
        assert not asked(effects) & open_, "asked twice"
        open_ |= asked(effects)
        assert len(machine.held) <= HELD
        assert kept == machine.held.keys(), "each that is let go is released"
        assert len(open_ - machine.held.keys()) <= HELD
        assert machine.deadline > now, "time alone must not make it spin"
        assert all(hold.until > now for hold in machine.held.values())
        assert machine.is_wanted or not machine.held
