"""STUN's and AutoNAT's messages: what is written is read, and any bytes are read or refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.host.addresses import Address
from node.host.interfaces import is_global, network_of
from node.reach import autonat_wire as wire
from node.reach import stun
from node.reach.autonat import AT_ONCE, IN_ALL, PER_PEER, Quota, choose
from node.reach.behaviour import Behaviour, Observation, classify, next_ports
from node.reach.fields import bytes_field, decode_place, encode_place, number_field, read_fields
from tests.sim.replicas import signer
from wire import multiaddrs
from wire.errors import BadMessage
from wire.ids import PeerId

PORTS = st.integers(1, 65535)
PLACES = st.builds(Address, st.just("ip4"), st.ip_addresses(v=4).map(str), PORTS) | st.builds(
    Address, st.just("ip6"), st.ip_addresses(v=6).map(str), PORTS
)
TRANSACTIONS = st.binary(min_size=12, max_size=12)
# RFC 5769, section 2.2: a sample answer, less its SOFTWARE, MESSAGE-INTEGRITY and FINGERPRINT
SAMPLE = bytes.fromhex("0101000c2112a442b7e7a701bc34d686fa87dfae002000080001a147e112a643")
SAMPLE_6 = bytes.fromhex(
    "010100182112a442b7e7a701bc34d686fa87dfae002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
)


@given(PLACES, st.none() | PLACES, TRANSACTIONS)
def test_a_stun_answer_tells_what_was_written(
    mapped: Address, other: Address | None, transaction: bytes
) -> None:
    request = stun.decode_request(stun.encode_request(transaction))
    message = stun.encode_answer(request, mapped, other)
    assert stun.decode_answer(message, transaction) == stun.Answer(transaction, mapped, other)


def test_the_samples_of_rfc_5769() -> None:
    transaction = SAMPLE[8:20]
    assert stun.decode_answer(SAMPLE, transaction).mapped == Address("ip4", "192.0.2.1", 32853)
    six = Address("ip6", "2001:db8:1234:5678:11:2233:4455:6677", 32853)
    assert stun.decode_answer(SAMPLE_6, transaction).mapped == six


def test_an_answer_to_somebody_elses_question_is_none() -> None:
    with pytest.raises(BadMessage):
        stun.decode_answer(SAMPLE, bytes(12))


@given(st.binary(max_size=200))
def test_any_bytes_as_stun(message: bytes) -> None:
    with suppress(BadMessage):
        stun.decode_request(message)
    with suppress(BadMessage):
        stun.decode_answer(message, message[8:20])


@given(st.binary(max_size=80), TRANSACTIONS)
def test_any_attributes_as_stun(body: bytes, transaction: bytes) -> None:
    body = body[: len(body) // 4 * 4]
    rest = len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + transaction + body
    with suppress(BadMessage):
        assert stun.decode_request(b"\x00\x01" + rest).transaction == transaction
    with suppress(BadMessage):
        assert stun.decode_answer(b"\x01\x01" + rest, transaction).mapped.port


@given(st.lists(PLACES, max_size=8), st.integers(0, 2**64 - 1))
def test_a_dial_request_is_read_as_it_was_written(places: list[Address], nonce: int) -> None:
    message = wire.encode_request(places, nonce)
    assert wire.decode(_body(message)) == wire.DialRequest(tuple(places), nonce)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_the_other_messages_of_autonat(status: int, index: int, dial: int) -> None:
    answer = wire.encode_response(status, index, dial)
    assert wire.decode(_body(answer)) == wire.DialResponse(status, index, dial)
    asked = wire.encode_data_request(index, status * 100)
    assert wire.decode(_body(asked)) == wire.DataRequest(index, status * 100)
    assert wire.decode(_body(wire.encode_data(dial))) == wire.Data(dial)
    assert wire.decode_back(_body(wire.encode_back(status))) == status


def test_the_bytes_are_protobufs() -> None:
    place = Address("ip4", "1.2.3.4", 4001)
    assert encode_place(place).hex() == "0401020304060fa1"
    assert wire.encode_request([place], 1).hex() == (
        "15" + "0a13" + "0a08" + "0401020304060fa1" + "11" + "0100000000000000"
    )
    assert wire.encode_response(200, 1, 101).hex() == "09" + "1207" + "08c801" + "1001" + "1865"


@given(st.binary(max_size=300))
def test_any_bytes_as_autonat(message: bytes) -> None:
    for parse in (wire.decode, wire.decode_back, read_fields):
        try:
            parse(message)
        except BadMessage:
            continue


@given(st.binary(max_size=40))
def test_any_bytes_as_a_place(data: bytes) -> None:
    place = decode_place(data)
    assert place is None or data.startswith(encode_place(place))


def test_places_that_cannot_be_dialled_keep_their_index() -> None:
    udp = b"\x04\x01\x02\x03\x04\x91\x02\x0f\xa1"
    websocket = encode_place(Address("ip4", "1.2.3.4", 80)) + b"\xdd\x03"
    relayed = multiaddrs.pack(f"/ip4/1.2.3.4/tcp/80/p2p/{signer(1).peer}/p2p-circuit")
    named = multiaddrs.pack("/dns/relay/tcp/80")
    assert relayed
    assert named
    places = (udp, websocket, b"", relayed, named)
    body = b"".join(bytes_field(1, place) for place in places)
    assert wire.decode(bytes_field(1, body)) == wire.DialRequest((None,) * 5, 0)


def test_a_message_of_a_thousand_fields_is_refused() -> None:
    with pytest.raises(BadMessage, match="fields"):
        read_fields(number_field(1, 1) * 1000)


# who is dialled


def _places(*texts: str) -> list[Address]:
    found = list[Address]()
    for text in texts:
        host, port = text.rsplit(" ", 1)
        found.append(Address("ip6" if ":" in host else "ip4", host, int(port)))
    return found


@pytest.mark.parametrize(
    ("places", "chosen"),
    [
        (["9.9.9.9 4001"], 0),  # theirs
        (["9.9.9.9 80"], 0),  # their own low port
        (["8.8.8.8 4001"], 0),  # somebody else's, for a price
        (["8.8.8.8 80"], None),
        (["10.0.0.1 4001", "192.168.0.1 4001", "127.0.0.1 4001", "169.254.169.254 8080"], None),
        (["100.64.0.1 4001", "224.0.0.1 4001", "0.0.0.0 4001", "255.255.255.255 4001"], None),
        (["11.1.1.1 4001"], None),  # the server's own
        (["10.0.0.1 4001", "9.9.9.9 4001", "8.8.8.8 4001"], 1),
        (["2a01:4f8::1 4001"], 0),
        (["64:ff9b::a00:1 4001", "2002:a00:1::1 4001", "2001:0:a00:1::1 4001"], None),  # 10.0.0.1
        (["::1 4001", "fd00::1 4001", "fe80::1 4001", "::ffff:8.8.8.8 4001"], None),
    ],
)
def test_only_what_may_be_dialled_is_chosen(places: list[str], chosen: int | None) -> None:
    own = ["11.1.1.1", "2a01:4f8::9"]
    assert choose(_places(*places), "9.9.9.9", own) == chosen


def test_who_has_no_ipv6_dials_none() -> None:
    assert choose(_places("2a01:4f8::1 4001"), "9.9.9.9", ["11.1.1.1", "fd00::2"]) is None


def test_a_neighbour_behind_our_firewall_is_dialled_for_nobody_else() -> None:
    def is_near(host: str) -> bool:
        return host.startswith("2a01:4f8:")

    own, place = ["2a01:4f8::9"], _places("2a01:4f8::5 4001")
    assert choose(place, "9.9.9.9", own, is_near=is_near) is None
    assert choose(place, "2a01:4f8::5", own, is_near=is_near) == 0


def test_one_peer_asks_a_few_times_a_minute_and_one_at_a_time() -> None:
    quota, peer = Quota(), PeerId("a")
    assert quota.begin(peer, 0.0)
    assert not quota.begin(peer, 0.0)
    for _ in range(PER_PEER - 1):
        quota.end(peer)
        assert quota.begin(peer, 1.0)
    quota.end(peer)
    assert not quota.begin(peer, 2.0)
    assert quota.begin(peer, 61.5)


def test_all_peers_together_ask_so_often_and_no_more_at_once() -> None:
    quota = Quota()
    peers = [PeerId(str(at)) for at in range(IN_ALL + 5)]
    at_once = [peer for peer in peers if quota.begin(peer, 0.0)]
    assert at_once == peers[:AT_ONCE]
    for peer in at_once:
        quota.end(peer)
    for peer in peers[AT_ONCE:]:
        quota.begin(peer, 1.0)
        quota.end(peer)
    assert not quota.begin(PeerId("late"), 2.0)
    assert quota.begin(PeerId("late"), 62.0)


# mapping behaviour


def _seen(*rows: tuple[int, str, int]) -> list[Observation]:
    """Rows of local port, server (its last number is the port) and external port."""
    found = list[Observation]()
    for local, server, mapped in rows:
        remote = Address("ip4", server[:-1], 4000 + int(server[-1]))
        found.append(
            Observation(
                Address("ip4", "10.0.0.2", local), remote, Address("ip4", "9.9.9.9", mapped)
            )
        )
    return found


@pytest.mark.parametrize(
    ("rows", "mapping", "step"),
    [
        ([(1, "a1", 50), (1, "b1", 50)], "endpoint-independent", 0),
        ([(1, "a1", 50), (1, "a2", 50), (1, "b1", 70)], "address-dependent", 0),
        ([(1, "a1", 50), (1, "a2", 51), (1, "b1", 52)], "sequential", 1),
        ([(1, "a1", 50), (1, "a2", 52), (1, "b1", 54), (2, "a1", 58)], "sequential", 2),
        ([(1, "a1", 50), (1, "a2", 51), (1, "b1", 600), (2, "a1", 601), (2, "b1", 602)],
         "sequential", 1),
        ([(1, "a1", 50), (1, "a2", 9000), (1, "b1", 52)], "random", 0),
        ([(1, "a1", 90), (1, "a2", 80), (1, "b1", 70)], "random", 0),
        ([(1, "a1", 1), (2, "a1", 2), (3, "a1", 3)], "endpoint-independent", 0),
    ],
)  # fmt: skip
def test_the_behaviour_is_told_from_what_was_seen(
    rows: list[tuple[int, str, int]], mapping: str, step: int
) -> None:
    found = classify(_seen(*rows))
    assert found is not None
    assert (found.mapping, found.step) == (mapping, step)
    assert found.words


def test_too_little_says_nothing() -> None:
    assert classify([]) is None
    assert classify(_seen((1, "a1", 50), (2, "a1", 51))) is None


def test_predicted_ports_end_where_ports_do() -> None:
    behaviour = Behaviour("sequential", False, 2, step=2)
    found = next_ports(Address("ip4", "9.9.9.9", 65531), behaviour, 16)
    assert [one.port for one in found] == [65533, 65535]


# which addresses


def test_what_is_global_is_one_machine_on_the_internet() -> None:
    assert is_global("9.9.9.9")
    assert is_global("2a01:4f8::1")
    assert not any(
        is_global(host)
        for host in ("10.0.0.1", "100.64.0.1", "224.0.0.1", "example.org", "64:ff9b::1", "fd00::1")
    )


def test_networks_are_of_one_provider_or_so() -> None:
    assert network_of("9.9.1.2") == network_of("9.9.250.1") != network_of("9.8.1.2")
    assert network_of("2a01:4f8:1::1") == network_of("2a01:4f8:2::1") != network_of("2a02::1")


def _body(message: bytes) -> bytes:
    """Less the length in front."""
    return message[1:] if message[0] < 0x80 else message[2:]
