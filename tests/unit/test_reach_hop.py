"""Circuit relay v2: its messages, and whom a relay serves with how much."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from multiaddr import Multiaddr

from node.host.addresses import parse_address
from node.host.negotiate import Awaited, proposal
from node.reach.hop import (
    ASKERS_MAX,
    ASKS_PER_S,
    ASKS_SHED_PER_S,
    BURST_S,
    Asking,
    Bucket,
    Circuit,
    Hop,
    RelayBudget,
)
from node.reach.messages import (
    MESSAGE_MAX,
    Answer,
    Connect,
    Limits,
    Opening,
    Reserve,
    Status,
    pack_hop,
    pack_stop,
    read_hop,
    read_stop,
)
from wire.errors import BadMessage, PeerUnreachable
from wire.frames import pack
from wire.ids import PeerId, Signer

ALICE, BOB, CAROL, DAVE = (Signer(bytes([number]) * 32).peer for number in range(1, 5))
PLACE = parse_address(f"/ip4/192.0.2.1/tcp/4001/p2p/{CAROL}")
SMALL = RelayBudget(reservations=2, circuits=3, circuits_per_peer=2, reservation_s=100.0)


def body(packed: bytes) -> bytes:
    found = Opening().feed(packed)
    assert found is not None
    assert found[1] == b""
    return found[0]


# Messages


@pytest.mark.parametrize(
    "message",
    [
        Reserve(),
        Connect(BOB),
        Answer(Status.OK, Limits(60, 1 << 30)),
        Answer(Status.OK, Limits(60, 1 << 30), 1_900_000_000, (PLACE,)),
        Answer(Status.NO_RESERVATION),
    ],
)
def test_messages_of_hop_arrive_as_they_were(message: Reserve | Connect | Answer) -> None:
    assert read_hop(body(pack_hop(message))) == message


@pytest.mark.parametrize("message", [Connect(BOB, Limits(60, 1 << 30)), Answer(Status.OK)])
def test_messages_of_stop_arrive_as_they_were(message: Connect | Answer) -> None:
    assert read_stop(body(pack_stop(message))) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for read in (read_hop, read_stop):
        try:
            read(data)
        except BadMessage:
            continue


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_an_opening_ends_where_it_says_and_leaves_the_rest(parts: list[bytes]) -> None:
    rest = b"".join(parts)
    data, opening = pack_hop(Connect(BOB)) + rest, Opening()
    for at in range(len(data)):
        found = opening.feed(data[at : at + 1])
        if found is not None:
            assert read_hop(found[0]) == Connect(BOB)
            assert found[1] + data[at + 1 :] == rest
            return
    raise AssertionError("never whole")


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x81\x20", pack(bytes(MESSAGE_MAX + 1))])
def test_an_opening_over_the_limit_is_refused_by_its_length(data: bytes) -> None:
    with pytest.raises(BadMessage, match="over 4096 B"):
        Opening().feed(data[:2])


def test_addresses_that_cannot_be_dialled_are_passed_over() -> None:
    made = pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK)
    made.reservation.expire = 1
    made.reservation.addrs.extend([b"\xff" * 9, b"", Multiaddr(str(PLACE)).to_bytes()])
    answer = read_hop(made.SerializeToString())
    assert isinstance(answer, Answer)
    assert answer.addresses == (PLACE,)


def test_every_status_has_words() -> None:
    assert all(status.in_words() for status in Status)


# The answer to a proposal that nobody waits for


@given(st.integers(min_value=1, max_value=60), st.binary(max_size=20))
def test_an_answer_is_cut_off_however_it_comes(size: int, rest: bytes) -> None:
    awaited, data, got = Awaited("/echo"), proposal("/echo") + rest, b""
    for at in range(0, len(data), size):
        got += awaited.cut_off(data[at : at + size])
    assert got == rest
    assert not awaited.left_bytes


def test_a_refusal_and_nonsense_are_told_apart() -> None:
    with pytest.raises(PeerUnreachable, match="does not speak /echo"):
        Awaited("/echo").cut_off(proposal("na"))
    with pytest.raises(BadMessage, match="answers"):
        Awaited("/echo").cut_off(b"HTTP/1.1 400 Bad Request")


# Reservations and circuits


def connected(hop: Hop, source: PeerId, target: PeerId, now: float = 0.0) -> Circuit:
    found = hop.connect(source, target, is_relayed=False, now=now)
    assert isinstance(found, Circuit), found
    return found


def test_a_reservation_lasts_until_it_is_renewed_or_over() -> None:
    hop = Hop(SMALL)
    assert hop.reserve(ALICE, is_relayed=False, now=0.0) is Status.OK
    assert hop.reserve(ALICE, is_relayed=False, now=60.0) is Status.OK
    assert hop.reserved_until(ALICE) == 160.0
    connected(hop, BOB, ALICE, now=159.0)
    assert hop.connect(BOB, ALICE, is_relayed=False, now=160.0) is Status.NO_RESERVATION
    assert hop.free(160.0) == 2
    assert hop.reserved_until(ALICE) == -math.inf


def test_reservations_are_limited_and_given_again() -> None:
    hop = Hop(SMALL)
    for peer in (ALICE, BOB):
        assert hop.reserve(peer, is_relayed=False, now=0.0) is Status.OK
    assert hop.reserve(CAROL, is_relayed=False, now=1.0) is Status.RESERVATION_REFUSED
    assert hop.reserve(BOB, is_relayed=False, now=2.0) is Status.OK
    hop.gone(BOB)
    assert hop.reserve(CAROL, is_relayed=False, now=3.0) is Status.OK
    assert hop.reserve(DAVE, is_relayed=False, now=100.0) is Status.OK  # ALICE's is over
    assert hop.reservations(100.0) == [CAROL, DAVE]


def test_nothing_is_given_over_a_circuit() -> None:
    hop = Hop(SMALL)
    hop.reserve(ALICE, is_relayed=False, now=0.0)
    assert hop.reserve(BOB, is_relayed=True, now=0.0) is Status.PERMISSION_DENIED
    assert hop.connect(BOB, ALICE, is_relayed=True, now=0.0) is Status.PERMISSION_DENIED
    assert hop.connect(ALICE, ALICE, is_relayed=False, now=0.0) is Status.PERMISSION_DENIED


def test_circuits_are_limited_at_both_ends_and_in_all() -> None:
    hop = Hop(SMALL)
    for peer in (ALICE, BOB):
        hop.reserve(peer, is_relayed=False, now=0.0)
    first, _ = connected(hop, CAROL, ALICE), connected(hop, DAVE, ALICE)
    assert hop.connect(BOB, ALICE, is_relayed=False, now=0.0) is Status.RESOURCE_LIMIT_EXCEEDED
    connected(hop, CAROL, BOB)
    assert hop.connect(DAVE, BOB, is_relayed=False, now=0.0) is Status.RESOURCE_LIMIT_EXCEEDED
    hop.ended(first)
    hop.ended(first)
    connected(hop, DAVE, BOB)
    assert len(hop.circuits()) == 3


# Asking and pacing


def test_who_asks_too_often_is_refused_and_then_not_even_answered() -> None:
    asking = Asking()
    verdicts = [asking.ask(ALICE, now=0.0) for _ in range(100)]
    assert verdicts.count("serve") == ASKS_PER_S
    assert verdicts.count("refuse") == ASKS_SHED_PER_S - ASKS_PER_S
    assert verdicts[-1] == "shed"
    assert asking.ask(BOB, now=0.0) == "serve"
    assert asking.ask(ALICE, now=0.5) == "serve"


def test_a_thousand_a_second_get_the_rate_and_no_more() -> None:
    asking = Asking()
    verdicts = [asking.ask(ALICE, now=number / 1000) for number in range(10_000)]
    assert verdicts.count("serve") <= 11 * ASKS_PER_S
    assert verdicts.count("shed") > 9_000


def test_askers_that_are_forgotten_are_those_of_long_ago() -> None:
    asking = Asking()
    asking.ask(ALICE, now=0.0)
    for number in range(ASKERS_MAX + 10):
        asking.ask(PeerId(f"peer {number}"), now=1.0)
    assert len(asking._asked) == ASKERS_MAX  # pyright: ignore[reportPrivateUsage]
    assert ALICE not in asking._asked  # pyright: ignore[reportPrivateUsage]


@given(st.lists(st.integers(min_value=1, max_value=65_000), min_size=30, max_size=200))
def test_a_bucket_lets_its_rate_through_and_a_burst(sizes: list[int]) -> None:
    rate, now = 1e6, 10.0
    bucket = Bucket(rate, now)
    for size in sizes:
        if bucket.is_empty(now):
            now = bucket.ready_at
            assert not bucket.is_empty(now)
        bucket.take(size)
    most = rate * (now - 10.0 + BURST_S) + 65_000
    assert sum(sizes) <= most


def test_who_asked_too_often_is_answered_again_a_second_later() -> None:
    asking = Asking()
    for _ in range(100):
        asking.ask(ALICE, now=0.0)
    verdicts = [asking.ask(ALICE, now=1.0) for _ in range(100)]
    assert verdicts.count("serve") == ASKS_PER_S
    assert verdicts.count("refuse") == ASKS_SHED_PER_S - ASKS_PER_S
