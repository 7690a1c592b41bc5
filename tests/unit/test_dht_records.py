"""Peer and provider records: genuine, bounded and in one form, or refused; judged by their time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht import records
from dht.key import key_of_peer
from dht.messages import Contact, Provision, Value, hearsay
from dht.records import (
    ADDRESSES_MAX,
    EXPIRED,
    FUTURE,
    LASTING,
    LIFE_MAX_MS,
    NAME_MAX,
    PEER_BODY_MAX,
    PEER_TAG,
    PROVIDER_TAG,
    STAMP_MAX,
    PeerBody,
    ProvisionBody,
    Signed,
    open_peer,
    open_provision,
    seal,
    seal_peer,
    seal_provision,
    why_not,
)
from tests.sim.replicas import signer
from wire import codec
from wire.errors import BadMessage, UsageError

NOW_MS = 1_800_000_000_000
ALICE, BOB = signer(1), signer(2)
NAME = b"a multihash"
ADDRS = ["/ip4/10.0.0.1/tcp/4001", "/ip6/::1/tcp/1"]


def test_a_peers_own_record_says_where_it_is() -> None:
    contact = seal_peer(ALICE, ADDRS, seq=3, now_ms=NOW_MS)
    opened = open_peer(contact.sealed)
    for one in (contact, opened):
        assert (one.peer, one.addrs, one.seq) == (ALICE.peer, tuple(ADDRS), 3)
        assert (one.key, one.issued_ms) == (key_of_peer(ALICE.peer), NOW_MS)
    assert opened.sealed == contact.sealed


def test_a_provider_record_says_who_has_what() -> None:
    provision = seal_provision(ALICE, NAME, expires_ms=NOW_MS + 1000)
    assert provision == Provision(NAME, ALICE.peer, NOW_MS + 1000, provision.sealed)
    assert open_provision(provision.sealed) == provision


def test_a_record_for_another_peer_does_not_pass() -> None:
    mine = codec.decode(
        seal_peer(ALICE, ADDRS, seq=1, now_ms=NOW_MS).sealed, records._signed_decoder, 4096
    )
    forged = Signed(mine.body.replace(ALICE.peer.encode(), BOB.peer.encode()), mine.signature)
    with pytest.raises(BadMessage, match=f"{BOB.peer} did not sign"):
        open_peer(codec.encode(forged))


def test_a_record_that_nobody_signed_does_not_pass() -> None:
    body = codec.encode(ProvisionBody(NAME, ALICE.peer, NOW_MS + 1000))
    for unsigned in (codec.encode([body]), codec.encode([body, b""]), body):
        with pytest.raises(BadMessage):
            open_provision(unsigned)
    with pytest.raises(BadMessage, match="did not sign"):
        open_provision(codec.encode([body, bytes(64)]))


def test_a_signature_for_one_kind_is_none_for_another() -> None:
    with pytest.raises(BadMessage):
        open_provision(seal_peer(ALICE, [], seq=1, now_ms=NOW_MS).sealed)
    with pytest.raises(BadMessage, match="did not sign"):
        open_peer(seal(ALICE, PROVIDER_TAG, PeerBody(ALICE.peer, (), 1, NOW_MS)))


def test_records_that_are_not_canonical_are_refused() -> None:
    body = codec.encode(ProvisionBody(NAME, ALICE.peer, NOW_MS + 1000))
    loose = b"\xdc\x00\x03" + body[1:]  # an array of 3 with a longer head than it needs
    signed = codec.encode([loose, ALICE.sign(PROVIDER_TAG, loose)])
    with pytest.raises(BadMessage, match="canonical"):
        open_provision(signed)
    good = codec.encode([body, ALICE.sign(PROVIDER_TAG, body)])
    assert open_provision(good)
    with pytest.raises(BadMessage, match="canonical"):
        open_provision(b"\xdc\x00\x02" + good[1:])


def test_oversized_records_are_refused() -> None:
    long = "/dns4/" + "h" * 200
    many = PeerBody(ALICE.peer, tuple(f"{long}{i:02}" for i in range(ADDRESSES_MAX)), 1, NOW_MS)
    with pytest.raises(BadMessage, match="over the limit"):
        open_peer(seal(ALICE, PEER_TAG, many))
    for addrs in ((long + "h" * 60,), ("/ip4/1.2.3.4",) * (ADDRESSES_MAX + 1), ("no multiaddr",)):
        with pytest.raises(BadMessage):
            open_peer(seal(ALICE, PEER_TAG, PeerBody(ALICE.peer, addrs, 1, NOW_MS)))
    for name in (b"", b"n" * (NAME_MAX + 1)):
        with pytest.raises(BadMessage):
            open_provision(seal(ALICE, PROVIDER_TAG, ProvisionBody(name, ALICE.peer, NOW_MS)))
        with pytest.raises(UsageError, match="a name of"):
            seal_provision(ALICE, name, expires_ms=NOW_MS)


def test_our_own_record_is_cut_to_the_bounds() -> None:
    addrs = ["no multiaddr", "/x" + "y" * 300] + [f"/dns4/{'h' * 200}{i}/tcp/1" for i in range(30)]
    contact = open_peer(seal_peer(ALICE, addrs, seq=1, now_ms=NOW_MS).sealed)
    assert len(contact.sealed) <= PEER_BODY_MAX + 72
    assert 5 < len(contact.addrs) <= 16
    assert all(one.startswith("/dns4/") for one in contact.addrs)


def test_the_longest_records_pass() -> None:
    longest = seal_provision(ALICE, b"n" * NAME_MAX, expires_ms=STAMP_MAX)
    assert open_provision(longest.sealed) == longest
    assert open_peer(seal_peer(ALICE, [], seq=STAMP_MAX, now_ms=STAMP_MAX).sealed).seq == STAMP_MAX


def test_a_peer_record_lives_a_day_and_does_not_come_from_the_future() -> None:
    contact = seal_peer(ALICE, [], seq=1, now_ms=NOW_MS)
    assert why_not(contact, NOW_MS + LIFE_MAX_MS - 1) == why_not(contact, NOW_MS - 30_000) == ""
    assert why_not(contact, NOW_MS + LIFE_MAX_MS) == EXPIRED
    assert why_not(contact, NOW_MS - 30_001) == FUTURE
    assert not why_not(hearsay(BOB.peer, ()), NOW_MS)  # has no time that could be wrong


def test_other_records_die_at_their_expiry_and_may_not_last_too_long() -> None:
    key = Value(b"/pk/", None, 0, STAMP_MAX, b"", b"")
    assert why_not(key, NOW_MS) == ""
    for record in (
        seal_provision(ALICE, NAME, expires_ms=NOW_MS),
        Value(NAME, ALICE.peer, 1, NOW_MS, b"", b"sealed"),
    ):
        assert why_not(record, NOW_MS - 1) == why_not(record, NOW_MS - LIFE_MAX_MS - 30_000) == ""
        assert why_not(record, NOW_MS) == EXPIRED
        assert why_not(record, NOW_MS - LIFE_MAX_MS - 30_001) == LASTING


@given(st.binary(max_size=300))
def test_any_bytes(frame: bytes) -> None:
    for open_record in (open_peer, open_provision):
        with pytest.raises(BadMessage):
            open_record(frame)
    for sealed in (codec.encode([frame, bytes(64)]), codec.encode([frame, frame])):
        with pytest.raises(BadMessage):
            open_peer(sealed)


@given(st.integers(0, 8 * 200), st.sampled_from(["peer", "provision"]))
def test_no_bit_can_be_changed(bit: int, kind: str) -> None:
    contact: Contact | Provision = seal_peer(ALICE, ADDRS, seq=1, now_ms=NOW_MS)
    if kind == "provision":
        contact = seal_provision(ALICE, NAME, expires_ms=NOW_MS)
    changed = bytearray(contact.sealed)
    changed[bit // 8 % len(changed)] ^= 1 << bit % 8
    with pytest.raises(BadMessage):
        (open_peer if kind == "peer" else open_provision)(bytes(changed))
