"""The host's pure rules: addresses, places, back-off, liveness, racing."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from node.host.addresses import is_loopback, parse_address
from node.host.backoff import ADDRESSES_MAX, DELAY_MAX_S, FIRST_DELAY_S, AddressBook, Backoff
from node.host.gate import Gate, Limits
from node.host.interfaces import expand
from node.host.liveness import HURRY_S, INTERVAL_S, PATIENCE_S, REFRESH_S, Liveness, patience_s
from node.host.race import Lanes, race
from node.host.views import Rates, Traffic
from wire.errors import BadMessage, PeerUnreachable
from wire.ids import Signer

PEER = Signer(bytes(32)).peer
RELAY = Signer(b"r" * 32).peer

# Addresses


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/192.0.2.1/tcp/4001",
        "/ip6/2001:db8::1/tcp/0",
        "/dns/node-1.example.org/tcp/65535",
        "/dns4/localhost/tcp/80",
        "/dns6/a/tcp/1",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{RELAY}/p2p-circuit",
        f"/dns/node-1.example.org/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "192.0.2.1:4001",
        "/ip4/192.0.2.256/tcp/1",
        "/ip4/192.0.2.1/udp/1",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.1/tcp/-1",
        "/ip4/192.0.2.1/tcp/١",
        "/ip4/192.0.2.1/tcp/" + "9" * 100,
        "/ip4/192.0.2.1/tcp/1/p2p/nobody",
        f"/ip4/192.0.2.1/tcp/1/ws/{PEER}",
        "/ip6/fe80::1%eth0/tcp/1",
        "/dns/-bad-/tcp/1",
        "/dns/" + "a" * 300 + "/tcp/1",
        "/unix/tmp/tcp/1",
        "/ip4/192.0.2.1/tcp/1/",
        "/ip4/192.0.2.1/tcp/1/p2p-circuit",
        f"/ip4/192.0.2.1/tcp/1/p2p-circuit/p2p/{PEER}",
        f"/ip4/192.0.2.1/tcp/1/p2p/{RELAY}/p2p-circuit/p2p",
        f"/ip4/192.0.2.1/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{PEER}/p2p-circuit",
        "/ip4/192.0.2.1/tcp/00000070000",
    ],
)
def test_what_cannot_be_dialled_is_refused(text: str) -> None:
    with pytest.raises(BadMessage):
        parse_address(text)


def test_a_relay_address_names_both_and_is_the_relays_place() -> None:
    through = parse_address(f"/ip4/192.0.2.1/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{PEER}")
    assert (through.host, through.port, through.relay, through.peer) == (
        "192.0.2.1",
        4001,
        RELAY,
        PEER,
    )


@given(st.text(max_size=300))
def test_any_text_as_address(text: str) -> None:
    try:
        address = parse_address(text)
    except BadMessage:
        return
    assert parse_address(str(address)) == address


def test_loopback_is_told_from_the_rest() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"))
    assert not any(is_loopback(host) for host in ("192.0.2.1", "::ffff:192.0.2.1", "::", "name"))


def test_listening_everywhere_becomes_addresses_that_can_be_dialled() -> None:
    for text in ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"):
        places = expand([parse_address(text)])
        assert places
        assert not any(place.is_unspecified for place in places)
        assert {place.port for place in places} == {4001}
    one = parse_address("/ip4/192.0.2.1/tcp/1")
    assert expand([one]) == [one]


# Places


def test_a_place_that_is_left_can_be_taken_again_for_ever() -> None:
    gate = Gate(Limits(connections=2))
    for _ in range(10):
        one, two = gate.enter("192.0.2.1"), gate.enter(None)
        assert one
        assert two
        assert gate.enter("192.0.2.2") is None
        one.admit()
        one.leave()
        one.leave()
        two.leave()
        two.admit()
    assert (gate.total, gate.unadmitted) == (0, 0)


def test_strangers_from_one_address_take_few_places_and_admission_frees_them() -> None:
    gate = Gate(Limits(unadmitted_per_ip=2, per_ip=3))
    places = [gate.enter("192.0.2.1") for _ in range(3)]
    assert places[2] is None
    for place in places[:2]:
        assert place
        place.admit()
    assert gate.enter("192.0.2.1")
    assert gate.enter("192.0.2.1") is None  # three in all
    assert gate.enter("192.0.2.7")
    assert all(gate.enter("127.0.0.1") for _ in range(20))


def test_the_count_of_strangers_is_bounded_over_all_addresses() -> None:
    gate = Gate(Limits(unadmitted=5))
    assert sum(gate.enter(f"192.0.2.{n}") is not None for n in range(20)) == 5


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["enter", "admit", "leave"]))))
def test_places_never_go_wrong_in_any_order(steps: list[tuple[int, str]]) -> None:
    gate = Gate(Limits(connections=6, unadmitted=4, per_ip=3, unadmitted_per_ip=2))
    held = [gate.enter("192.0.2.1") for _ in range(0)]
    for host, step in steps:
        if step == "enter":
            place = gate.enter(f"192.0.2.{host}")
            held += [place] if place else []
        elif host < len(held) and (place := held[host]):
            place.admit() if step == "admit" else place.leave()
        assert 0 <= gate.unadmitted <= min(4, gate.total)
        assert gate.total <= 6
    for place in held:
        assert place
        place.leave()
    assert (gate.total, gate.unadmitted) == (0, 0)


# Back-off and address book


def test_waits_double_up_to_the_cap_with_jitter_and_begin_anew_after_success() -> None:
    backoff = Backoff()
    waits = [backoff.after_failure(0.999) for _ in range(12)]
    assert waits[0] == pytest.approx(FIRST_DELAY_S, rel=0.01)
    assert waits[1] == pytest.approx(2 * waits[0])
    assert waits[-1] == pytest.approx(DELAY_MAX_S, rel=0.01)
    assert max(waits) < DELAY_MAX_S
    assert backoff.after_failure(0.0) == DELAY_MAX_S / 2
    backoff.reset()
    assert backoff.after_failure(0.0) == FIRST_DELAY_S / 2


def test_the_address_that_worked_is_tried_first_and_old_ones_fall_out() -> None:
    book = AddressBook()
    book.learn(["a", "b", "a"])
    assert book.plan() == ["a", "b"]
    book.learn(["c"])
    book.worked("b")
    assert book.plan() == ["b", "c", "a"]
    book.learn(str(n) for n in range(100))
    assert len(book.plan()) == ADDRESSES_MAX


# Liveness


def test_a_peer_that_falls_silent_is_dead_within_ten_seconds() -> None:
    live = Liveness(next_ping_at=0.0)
    live.pinged(bytes_in=100)
    live.answered(now=0.0)
    assert live.next_ping_at == INTERVAL_S
    now = live.next_ping_at
    for expected_dead in (False, True):
        live.pinged(bytes_in=100)
        now += PATIENCE_S
        live.missed(now, bytes_in=100)
        assert live.is_dead == expected_dead
        assert live.next_ping_at == now
    assert now <= 10.0


def test_a_peer_that_talks_is_pinged_for_its_round_trip_only() -> None:
    live, now, pings = Liveness(next_ping_at=0.0), 0.0, list[float]()
    while now < 100.0:
        now = live.next_ping_at
        if live.is_due(now, heard_at=now - 1.0):
            pings.append(now)
            live.pinged(0)
            live.answered(now)
    assert pings == [0.0, REFRESH_S, 2 * REFRESH_S, 3 * REFRESH_S]


def test_a_peer_that_stops_talking_is_pinged_soon() -> None:
    live = Liveness(next_ping_at=0.0)
    live.answered(0.0)
    assert not live.is_due(INTERVAL_S - 1.0, heard_at=-INTERVAL_S)  # the answer counts as heard
    assert not live.is_due(INTERVAL_S, heard_at=INTERVAL_S - 1.0)
    assert live.next_ping_at == 2 * INTERVAL_S - 1.0
    assert live.is_due(live.next_ping_at, heard_at=INTERVAL_S - 1.0)


def test_a_missed_ping_is_repeated_at_once() -> None:
    live = Liveness(next_ping_at=0.0)
    live.answered(0.0)
    live.pinged(bytes_in=0)
    live.missed(PATIENCE_S, bytes_in=0)
    assert live.is_due(PATIENCE_S + INTERVAL_S, heard_at=0.0)


def test_a_miss_is_forgotten_when_the_peer_is_heard_again() -> None:
    live = Liveness(next_ping_at=0.0)
    live.answered(0.0)
    for at in (10.0, 20.0):
        live.pinged(bytes_in=0)
        live.missed(at, bytes_in=0)
        assert not live.is_dead
        assert not live.is_due(at, heard_at=at - 0.1)


def test_one_missed_ping_and_an_answer_are_no_harm() -> None:
    live = Liveness(next_ping_at=0.0)
    for second in range(0, 100, 10):
        live.pinged(0)
        live.missed(second + 3.0, bytes_in=0)
        live.pinged(0)
        live.answered(second + 5.0)
        assert not live.is_dead


def test_a_busy_peer_whose_bytes_come_but_whose_answer_waits_is_alive() -> None:
    live = Liveness(next_ping_at=0.0)
    for step in range(20):
        live.pinged(bytes_in=step * 1000)
        live.missed(step * 3.0, bytes_in=step * 1000 + 1)
        assert not live.is_dead


# Racing


class Runners:
    """Attempts by name: seconds to take, then succeed or fail; notes what became of each."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}
        self.started_at: dict[str, float] = {}

    async def __call__(self, runner: tuple[str, float, bool]) -> str:
        name, after_s, succeeds = runner
        self.started_at[name] = trio.current_time()
        try:
            await trio.sleep(after_s)
        except trio.Cancelled:
            self.ended[name] = "cancelled"
            raise
        self.ended[name] = "won" if succeeds else "failed"
        if not succeeds:
            raise PeerUnreachable("refused")
        return name

    def discard(self, name: str) -> None:
        self.ended[name] = "discarded"


async def test_a_dead_first_address_does_not_hide_a_good_second_one(
    autojump_clock: MockClock,
) -> None:
    runners, start = Runners(), trio.current_time()
    field = [("dead", 100.0, True), ("good", 0.01, True)]
    assert await race(Lanes([field]), runners, runners.discard, stagger_s=0.05) == "good"
    assert trio.current_time() - start == pytest.approx(0.06)
    assert runners.ended == {"dead": "cancelled", "good": "won"}


async def test_a_refusal_starts_the_next_at_once(autojump_clock: MockClock) -> None:
    runners, start = Runners(), trio.current_time()
    field = [(f"refused {n}", 0.0, False) for n in range(9)] + [("good", 0.0, True)]
    assert await race(Lanes([field]), runners, runners.discard, stagger_s=5.0) == "good"
    assert trio.current_time() - start < 0.01


async def test_two_that_arrive_together_give_one_winner_and_one_discarded(
    autojump_clock: MockClock,
) -> None:
    runners = Runners()
    field = [("a", 0.1, True), ("b", 0.05, True)]
    winner = await race(Lanes([field]), runners, runners.discard, stagger_s=0.05)
    assert sorted(runners.ended.values()) in (["discarded", "won"], ["cancelled", "won"])
    assert runners.ended[winner] == "won"


async def test_lanes_start_at_once_and_their_candidates_one_after_the_other(
    autojump_clock: MockClock,
) -> None:
    runners, start = Runners(), trio.current_time()
    direct, relayed = (
        [("d1", 9.0, True), ("d2", 9.0, True)],
        [("r1", 0.0, False), ("r2", 1.0, True)],
    )
    assert await race(Lanes([direct, relayed]), runners, runners.discard, stagger_s=0.05) == "r2"
    begun = {name: round(at - start, 2) for name, at in runners.started_at.items()}
    assert begun == {"d1": 0.0, "d2": 0.05, "r1": 0.0, "r2": 0.0}


async def test_who_comes_during_a_race_runs_too_and_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    runners, lanes, start = Runners(), Lanes([[("dead", 100.0, False)]]), trio.current_time()

    async def come_late() -> None:
        await trio.sleep(3)
        lanes.add([("late", 0.5, True)])

    nursery.start_soon(come_late)
    assert await race(lanes, runners, runners.discard, stagger_s=0.05) == "late"
    assert runners.ended == {"dead": "cancelled", "late": "won"}
    assert trio.current_time() - start == pytest.approx(3.5)


async def test_when_all_fail_every_reason_is_told(autojump_clock: MockClock) -> None:
    runners, both = Runners(), Lanes([[("a", 1.0, False), ("b", 2.0, False)]])
    with pytest.raises(PeerUnreachable, match=r"'a'.*refused.*'b'.*refused"):
        await race(both, runners, runners.discard, stagger_s=0.05)
    with pytest.raises(PeerUnreachable, match="no address"):
        await race(both, runners, runners.discard, stagger_s=0.05)


def test_silence_is_noticed_within_three_seconds_while_a_call_waits() -> None:
    live = Liveness(next_ping_at=0.0)
    live.answered(now=0.0)
    assert not live.is_due(0.5, heard_at=0.0, hurries=True)
    now = live.next_ping_at
    assert now == HURRY_S
    while not live.is_dead:
        assert live.is_due(now, heard_at=0.0, hurries=True)
        live.pinged(bytes_in=100)
        now += patience_s(0.05, hurries=True)
        live.missed(now, bytes_in=100)
    assert now == 3.0


def test_a_far_peer_has_time_to_answer_and_an_unmeasured_one_all_of_it() -> None:
    assert patience_s(0.5, hurries=True) == 2.0
    assert patience_s(5.0, hurries=True) == PATIENCE_S
    assert patience_s(None, hurries=True) == patience_s(0.01, hurries=False) == PATIENCE_S


def test_a_doubted_connection_is_asked_until_it_answers_whatever_else_it_says() -> None:
    live = Liveness(next_ping_at=0.0)
    live.answered(now=0.0)
    live.check(now=1.0)
    assert live.next_ping_at == 1.0
    for now in (1.0, 2.0, 3.0):
        assert live.is_due(now, heard_at=now)
        live.pinged(bytes_in=int(now))
        live.missed(now + 1.0, bytes_in=int(now) + 1)  # it talks, but this is not the answer
        assert not live.is_dead
    live.answered(now=4.5)
    assert not live.is_due(4.6, heard_at=4.5)


def test_rates_are_of_the_last_seconds() -> None:
    total, rates = Traffic(), Rates(now=0.0)
    assert rates.since(0.0, total) == (0.0, 0.0)
    for second in range(100):
        total.bytes_in += 1000 if second < 50 else 100
        total.bytes_out += 10
        rates.note(float(second), total)
    assert rates.since(99.0, total) == (100.0, 10.0)
    assert rates.since(999.0, total)[0] < 1.0
