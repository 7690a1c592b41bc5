"""Records: genuine, fresh and bounded, or refused; and the shelf they lie on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dht.providers
from dht import wire
from dht.providers import Providers
from dht.records import (
    BODY_MAX,
    PEER_RECORD_MS,
    PROVIDER_MAX_MS,
    ProviderRecord,
    Signed,
    content_key,
    open_peer,
    open_provider,
    sign_peer,
    sign_provider,
)
from dht.table import K
from tests.sim.replicas import signer
from wire import codec
from wire.errors import BadMessage

NOW_MS = 1_800_000_000_000
ALICE, BOB = signer(1), signer(2)
KEY = content_key(b"cid")


def provider(
    number: int, key: bytes = KEY, expires_ms: int = NOW_MS + 1000
) -> tuple[ProviderRecord, Signed]:
    signed = sign_provider(signer(number), key, expires_ms=expires_ms)
    return open_provider(signed, NOW_MS), signed


def test_a_peers_own_record_says_where_it_is() -> None:
    addrs = ["/ip4/10.0.0.1/tcp/4001", "/ip6/::1/tcp/1"]
    contact = open_peer(sign_peer(ALICE, addrs, seq=3, now_ms=NOW_MS), NOW_MS)
    assert (contact.peer, contact.addrs, contact.seq) == (ALICE.peer, tuple(addrs), 3)


def test_a_record_for_another_peer_does_not_pass() -> None:
    mine = sign_peer(ALICE, ["/ip4/10.0.0.1/tcp/1"], seq=1, now_ms=NOW_MS)
    forged = Signed(mine.body.replace(ALICE.peer.encode(), BOB.peer.encode()), mine.signature)
    with pytest.raises(BadMessage, match="did not sign"):
        open_peer(forged, NOW_MS)


def test_a_record_lives_a_day_and_does_not_come_from_the_future() -> None:
    signed = sign_peer(ALICE, [], seq=1, now_ms=NOW_MS)
    assert open_peer(signed, NOW_MS + PEER_RECORD_MS - 1)
    with pytest.raises(BadMessage, match="older"):
        open_peer(signed, NOW_MS + PEER_RECORD_MS)
    with pytest.raises(BadMessage, match="future"):
        open_peer(signed, NOW_MS - 30_001)


def test_our_own_record_is_cut_to_the_bounds() -> None:
    addrs = ["no multiaddr", "/x" + "y" * 300] + [f"/dns4/{'h' * 200}{i}/tcp/1" for i in range(30)]
    signed = sign_peer(ALICE, addrs, seq=1, now_ms=NOW_MS)
    contact = open_peer(signed, NOW_MS)
    assert len(signed.body) <= BODY_MAX
    assert 5 < len(contact.addrs) <= 16
    assert all(one.startswith("/dns4/") for one in contact.addrs)


def test_a_provider_record_dies_at_its_expiry_and_may_not_last_too_long() -> None:
    record, signed = provider(1)
    assert (record.peer, record.key) == (ALICE.peer, KEY)
    with pytest.raises(BadMessage, match="expires"):
        open_provider(signed, NOW_MS + 1000)
    lasting = sign_provider(ALICE, KEY, expires_ms=NOW_MS + PROVIDER_MAX_MS + 60_000)
    with pytest.raises(BadMessage, match="expires"):
        open_provider(lasting, NOW_MS)


def test_a_peer_record_is_not_a_provider_record() -> None:
    with pytest.raises(BadMessage):
        open_provider(sign_peer(ALICE, [], seq=1, now_ms=NOW_MS), NOW_MS)


def test_records_that_are_not_canonical_are_refused() -> None:
    signed = sign_provider(ALICE, KEY, expires_ms=NOW_MS + 1000)
    body = b"\xdc\x00\x04" + signed.body[1:]
    with pytest.raises(BadMessage, match="canonical"):
        open_provider(Signed(body, ALICE.sign("dht/provider/1", body)), NOW_MS)


def test_the_shelf_hands_out_live_records_and_forgets_the_dead() -> None:
    shelf = Providers()
    for number in (1, 2):
        record, signed = provider(number, expires_ms=NOW_MS + number * 1000)
        assert shelf.store(record, signed, NOW_MS)
    assert len(shelf.get(KEY, NOW_MS)) == 2
    assert shelf.get(KEY, NOW_MS + 1000) == [provider(2, expires_ms=NOW_MS + 2000)[1]]
    shelf.expire(NOW_MS + 2000)
    assert len(shelf) == 0
    assert shelf == Providers()


def test_an_older_record_does_not_replace_a_newer_one() -> None:
    shelf = Providers()
    new, old = provider(1, expires_ms=NOW_MS + 2000), provider(1, expires_ms=NOW_MS + 1000)
    assert shelf.store(*new, NOW_MS)
    assert not shelf.store(*old, NOW_MS)
    assert shelf.get(KEY, NOW_MS) == [new[1]]
    assert len(shelf) == 1


def test_keys_peers_and_providers_of_a_key_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dht.providers, "PER_KEY_MAX", 2)
    monkeypatch.setattr(dht.providers, "PER_PEER_MAX", 3)
    monkeypatch.setattr(dht.providers, "KEYS_MAX", 4)
    shelf = Providers()
    assert [shelf.store(*provider(n), NOW_MS) for n in (1, 2)] == [True, True]
    others = [content_key(bytes([n])) for n in range(6)]
    assert [shelf.store(*provider(1, key), NOW_MS) for key in others] == [True, True, *[False] * 4]
    for number, key in enumerate(others, 10):
        shelf.store(*provider(number, key), NOW_MS)
    assert sum(bool(shelf.get(key, NOW_MS)) for key in [KEY, *others]) == 4


def test_who_came_first_or_comes_often_does_not_keep_others_out_of_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dht.providers, "PER_KEY_MAX", 4)
    records, kept = [provider(number) for number in range(1, 9)], 0
    honest = records[-1]
    for _ in range(60):  # nodes, each with a secret of its own
        shelf = Providers()
        for record in [*records, *records[:-1], *records[:-1]]:
            shelf.store(*record, NOW_MS)
        assert len(shelf) == len(shelf.get(KEY, NOW_MS)) == 4
        again = Providers(_secret=shelf._secret)
        for record in reversed(records):
            again.store(*record, NOW_MS)
        assert set(again.get(KEY, NOW_MS)) == set(shelf.get(KEY, NOW_MS))
        kept += honest[1] in shelf.get(KEY, NOW_MS)
    assert 12 < kept < 48  # a half of 60 on average; first come, first served would be none


def test_the_largest_answer_fits_a_frame() -> None:
    addrs = [f"/dns4/{'h' * 180}{i:04}/tcp/1" for i in range(30)]
    contacts = [sign_peer(signer(n), addrs, seq=2**52, now_ms=NOW_MS) for n in range(1, K + 2)]
    records = [provider(n)[1] for n in range(1, wire.PER_KEY_MAX + 1)]
    frame = codec.encode(wire.Found(contacts[0], records, contacts[1:]))
    assert len(contacts[0].body) > BODY_MAX - 250
    assert len(frame) <= wire.FRAME_MAX
    assert codec.decode(frame, wire.answer_decoder, wire.FRAME_MAX)


@given(st.binary(max_size=300))
def test_any_bytes(frame: bytes) -> None:
    for decoder in (wire.request_decoder, wire.answer_decoder):
        try:
            message: object = codec.decode(frame, decoder, wire.FRAME_MAX)  # type: ignore[arg-type]
        except BadMessage:
            continue
        assert codec.decode(codec.encode(message), decoder, wire.FRAME_MAX) == message  # type: ignore[arg-type]
    for open_record in (open_peer, open_provider):
        with pytest.raises(BadMessage):
            open_record(Signed(frame, bytes(64)), NOW_MS)
