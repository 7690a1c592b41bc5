"""The DHT's messages as bytes: there and back, as others write them, false records, any bytes."""

import secrets
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht import kad_pb2 as pb
from dht import wire
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    FindNode,
    GetProviders,
    GetValue,
    Nodes,
    Ping,
    Pong,
    Providers,
    Provision,
    PutValue,
    Request,
    Stored,
    Values,
    hearsay,
)
from dht.records import LIFE_MAX_MS, seal_peer, seal_provision
from dht.sending import packed
from dht.values import multi_name, pk_value, public_key_bytes, seal_head, seal_multi
from tests.soak import kad_bytes
from tests.soak.kad_bytes import NAME, NOW_MS, PEER, SIGNERS
from wire.errors import BadMessage
from wire.ids import PeerId, Signer, bytes_of

OWN, *OTHERS, _ = kad_bytes.contacts()


def asked(request: Request, sender: Contact | None = None) -> tuple[Request, Contact | None]:
    return wire.decode_request(wire.encode_request(request, sender), PEER, NOW_MS)


def answered(
    request: Request, answer: Answer, sender: Contact | None = None, *, is_public: bool = False
) -> tuple[Answer, Contact | None]:
    frame = wire.encode_answer(request, answer, sender)
    return wire.decode_answer(frame, request, PEER, NOW_MS, is_public=is_public)


def told(request: Request, message: pb.Message, *, is_public: bool = False) -> Answer:
    frame = message.SerializeToString()
    return wire.decode_answer(frame, request, PEER, NOW_MS, is_public=is_public)[0]


def test_every_request_and_answer_comes_back_as_it_was() -> None:
    for request, answer in kad_bytes.exchanges():
        assert asked(request, OWN)[0] == _with_addrs(request)
        got, sender = answered(request, answer, OWN, is_public=True)
        assert sender is OWN or (sender and sender.sealed == OWN.sealed)
        if isinstance(got, Nodes | Providers | Values):
            assert isinstance(answer, Nodes | Providers | Values)
            assert _said(got.closer) == _said(answer.closer)
        match got, answer:
            case Providers(mine, _), Providers(theirs, _):
                assert [(each.peer, each.sealed) for each in mine] == [
                    (each.peer, each.sealed) for each in theirs[:-1]
                ]
            case Values(mine, _), Values(theirs, _):
                assert mine == theirs
            case Stored() | Pong(), _:
                assert got == answer
            case _:
                assert isinstance(got, Nodes)


def _said(contacts: tuple[Contact, ...]) -> list[tuple[PeerId, tuple[str, ...], int, bytes]]:
    return [(each.peer, each.addrs, each.seq, each.sealed) for each in contacts]


def _with_addrs(request: Request) -> Request:
    """Records as they come: with the addresses of who sends its own; hearsay has no expiry."""
    if not isinstance(request, AddProviders):
        return request
    if not request.provisions[0].sealed:
        return AddProviders((replace(request.provisions[0], expires_ms=NOW_MS + LIFE_MAX_MS),))
    plain = tuple(each.removesuffix(f"/p2p/{PEER}") for each in OWN.addrs)
    first, *rest = request.provisions
    return AddProviders((replace(first, addrs=plain), *rest))


def test_a_client_says_nothing_of_itself() -> None:
    assert asked(FindNode(NAME))[1] is None
    assert answered(Ping(), Pong())[1] is None


def test_a_record_of_somebody_else_is_not_the_senders() -> None:
    assert asked(FindNode(NAME), OTHERS[0])[1] is None  # go-libp2p sends back unknown fields
    assert answered(Ping(), Pong(), OTHERS[0])[1] is None


def test_a_false_sender_record_is_an_error() -> None:
    forged = replace(OWN, sealed=OWN.sealed[:-1] + bytes([OWN.sealed[-1] ^ 1]))
    with pytest.raises(BadMessage, match="did not sign"):
        asked(Ping(), forged)


def test_false_contacts_are_dropped_one_by_one() -> None:
    forged = replace(OTHERS[0], sealed=OTHERS[0].sealed[:-1] + b"?")
    moved = pb.Peer(id=bytes_of(OTHERS[1].peer), sealed=OTHERS[2].sealed)
    rsa = pb.Peer(id=bytes.fromhex("1220") + bytes(32))
    message = pb.Message.FromString(
        wire.encode_answer(FindNode(NAME), Nodes((forged, OTHERS[2], OWN)), None)
    )
    message.closerPeers.extend([moved, rsa, pb.Peer()])
    answer = told(FindNode(NAME), message)
    assert isinstance(answer, Nodes)
    assert _said(answer.closer) == _said((OTHERS[2], OWN))


def test_false_values_and_records_of_another_name_are_dropped_one_by_one() -> None:
    name = multi_name("runs")
    good = [seal_multi(each, "runs", b"x", seq=1, expires_ms=1) for each in SIGNERS]
    other = seal_multi(SIGNERS[0], "walks", b"x", seq=1, expires_ms=1)
    forged = replace(good[0], sealed=good[0].sealed[:-1] + b"?")
    got, _ = answered(GetValue(name), Values((other, good[1], forged, good[2]), ()))
    assert got == Values((good[1], good[2]), ())
    fine = seal_provision(SIGNERS[1], NAME, expires_ms=1)
    strange = seal_provision(SIGNERS[2], b"another", expires_ms=1)
    false = replace(fine, peer=PEER, sealed=fine.sealed[:-1] + b"?")
    found, _ = answered(GetProviders(NAME), Providers((strange, false, fine), ()))
    assert found == Providers((fine,), ())


def test_only_a_public_dht_believes_providers_without_a_signature() -> None:
    rumour = Provision(NAME, PEER, NOW_MS + LIFE_MAX_MS, addrs=("/ip4/10.0.0.1/tcp/4001",))
    assert answered(GetProviders(NAME), Providers((rumour,), ()))[0] == Providers((), ())
    public, _ = answered(GetProviders(NAME), Providers((rumour,), ()), is_public=True)
    assert public == Providers((rumour,), ())


def test_what_is_to_be_kept_and_is_false_is_told_apart() -> None:
    value = seal_head(SIGNERS[0], "run", b"x", seq=1, expires_ms=1)
    provision = seal_provision(SIGNERS[0], NAME, expires_ms=1)
    for request in (
        PutValue(replace(value, sealed=value.sealed[:-1] + b"?")),
        PutValue(replace(value, name=b"/unknown/x")),
        AddProviders((replace(provision, sealed=provision.sealed[:-1] + b"?"),)),
    ):
        frame = wire.encode_request(request, OWN)
        with pytest.raises(wire.BadRecord):
            wire.decode_request(frame, PEER, NOW_MS)
        draft = wire.Draft(frame)
        assert draft.signatures == 1
        refused = wire.decode_answer(
            draft.refuse("false", None), request, PEER, NOW_MS, is_public=False
        )
        assert refused == (Stored(0, "false"), None)


def test_who_echoes_a_value_has_kept_it_and_who_does_not_has_not() -> None:
    put = PutValue(pk_value(public_key_bytes(PEER)))
    echo = pb.Message(type=0, key=put.value.name)
    assert told(put, echo) == Stored(0, "the peer does not say why")
    echo.record.value = put.value.sealed
    assert told(put, echo) == Stored(1)


def test_a_refusal_answers_every_request_and_is_fit_for_a_terminal() -> None:
    message = pb.Message(type=4, refusal=b"\x1b[2J\xff" + b"x" * 1000)
    answer = told(FindNode(NAME), message)
    assert isinstance(answer, Stored)
    assert answer.refusal.startswith("?[2J\ufffdx")
    assert len(answer.refusal) == wire.REFUSAL_MAX


@pytest.mark.parametrize(
    "message",
    [
        pb.Message(type=6, key=NAME),
        pb.Message(type=-1, key=NAME),
        pb.Message(type=4),
        pb.Message(type=4, key=bytes(257)),
        pb.Message(type=2, key=NAME),
        pb.Message(type=2, key=NAME, provisions=[b""] * 501),
        pb.Message(type=0, key=NAME),
    ],
)
def test_requests_outside_the_bounds_are_refused(message: pb.Message) -> None:
    with pytest.raises(BadMessage):
        wire.decode_request(message.SerializeToString(), PEER, NOW_MS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (FindNode(NAME), pb.Message(type=3)),
        (GetValue(NAME), pb.Message(type=1, values=[b""] * 64)),
        (PutValue(pk_value(public_key_bytes(PEER))), pb.Message(type=0, kept=2)),
    ],
)
def test_answers_outside_the_bounds_are_refused(request_: Request, message: pb.Message) -> None:
    with pytest.raises(BadMessage):
        told(request_, message)


def test_too_long_a_message_is_not_parsed() -> None:
    with pytest.raises(BadMessage, match="limit"):
        wire.decode_request(bytes(wire.MESSAGE_MAX + 1), PEER, NOW_MS)


def test_no_more_contacts_are_read_than_an_answer_may_have() -> None:
    message = pb.Message(type=4)
    message.closerPeers.extend([pb.Peer(id=bytes_of(PEER))] * 1000)
    answer = told(FindNode(NAME), message, is_public=True)
    assert isinstance(answer, Nodes)
    assert len(answer.closer) == wire.CLOSER_MAX


def test_only_a_public_dht_believes_what_others_say_of_where_a_peer_is() -> None:
    old = seal_peer(SIGNERS[1], ["/ip4/10.0.0.9/tcp/1"], seq=1, now_ms=NOW_MS - LIFE_MAX_MS)
    said = hearsay(PEER, ("/ip4/10.0.0.7/tcp/1",))
    answer = Nodes((said, old, OTHERS[2]))
    got, _ = answered(FindNode(NAME), answer)
    assert isinstance(got, Nodes)
    assert _said(got.closer) == _said((OTHERS[2],))
    got, _ = answered(FindNode(NAME), answer, is_public=True)
    assert isinstance(got, Nodes)
    assert _said(got.closer) == _said((said, OTHERS[2]))


def test_an_answer_fits_a_message_whatever_it_holds() -> None:
    big = [
        seal_multi(each, "runs", secrets.token_bytes(8192), seq=1, expires_ms=1)
        for each in [Signer(bytes([number]) * 32) for number in range(1, 9)]
    ]
    signers = [Signer(bytes([9, number]) * 16) for number in range(120)]
    addrs = [f"/ip4/10.0.0.{number}/tcp/4001" for number in range(16)]
    closer = tuple(seal_peer(each, addrs, seq=1, now_ms=NOW_MS) for each in signers)
    frame = wire.encode_answer(GetValue(big[0].name), Values(tuple(big), closer), OWN)
    assert wire.MESSAGE_MAX - 1000 < len(frame) <= wire.MESSAGE_MAX
    got, _ = wire.decode_answer(frame, GetValue(big[0].name), PEER, NOW_MS, is_public=False)
    assert isinstance(got, Values)
    assert got.values == tuple(big)
    assert _said(got.closer) == _said(closer[: len(got.closer)])


def test_providers_with_many_long_addresses_leave_room_for_contacts() -> None:
    signers = [Signer(bytes([9, number]) * 16) for number in range(64)]
    name = bytes(256)
    long = tuple(f"/dns4/{number:02}{'x' * 120}/tcp/4001" for number in range(16))
    records = tuple(
        replace(seal_provision(each, name, expires_ms=NOW_MS + 1), addrs=long) for each in signers
    )
    addrs = [f"/ip4/10.0.0.{number}/tcp/4001" for number in range(16)]
    others = [Signer(bytes([8, number]) * 16) for number in range(20)]
    closer = tuple(seal_peer(each, addrs, seq=1, now_ms=NOW_MS) for each in others)
    got, _ = answered(GetProviders(name), Providers(records, closer), OWN)
    assert isinstance(got, Providers)
    assert [each.sealed for each in got.provisions] == [each.sealed for each in records]
    assert {each.addrs for each in got.provisions} == {long[:2]}
    assert _said(got.closer) == _said(closer)


def test_records_of_many_providers_fit_a_request_with_where_they_are() -> None:
    signers = [Signer(bytes([9, number]) * 16) for number in range(70)]
    long = tuple(f"/dns4/{number:02}{'x' * 80}/tcp/4001" for number in range(16))
    records = [
        replace(seal_provision(each, bytes([n]) * 6, expires_ms=NOW_MS + 1), addrs=long)
        for each in signers
        for n in range(8)
    ]
    (request, *rest) = packed(records)
    assert isinstance(request, AddProviders)
    assert rest
    assert len(wire.encode_request(request, OWN)) <= wire.MESSAGE_MAX
    got, _ = asked(request, OWN)
    assert isinstance(got, AddProviders)
    assert [each.sealed for each in got.provisions] == [each.sealed for each in request.provisions]
    assert sum(bool(each.addrs) for each in got.provisions) > 450


def test_other_implementations_see_peers_with_binary_addresses() -> None:
    addrs = (f"/ip4/10.0.0.1/tcp/4001/p2p/{PEER}", "/unix/socket", "/dns4/x.org/tcp/1")
    frame = wire.encode_answer(FindNode(NAME), Nodes((hearsay(PEER, addrs),)), None)
    (peer,) = pb.Message.FromString(frame).closerPeers
    assert peer.id == bytes_of(PEER)
    assert list(peer.addrs) == [
        bytes.fromhex("040a00000106") + (4001).to_bytes(2, "big"),
        bytes.fromhex("3605") + b"x.org" + bytes.fromhex("060001"),
    ]


def test_a_provider_is_told_to_others_with_the_senders_addresses() -> None:
    provision = seal_provision(SIGNERS[0], NAME, expires_ms=1)
    message = pb.Message.FromString(wire.encode_request(AddProviders((provision,)), OWN))
    assert (message.key, list(message.provisions)) == (NAME, [provision.sealed])
    (peer,) = message.providerPeers
    assert (peer.id, len(peer.addrs)) == (bytes_of(PEER), len(OWN.addrs))


def test_broken_messages_raise_nothing_but_the_declared_error() -> None:
    seen = kad_bytes.fuzz(20_000, seed=secrets.randbits(32))
    assert set(seen) == {"read", "BadMessage", "BadRecord"}  # and none of them is a rarity
    assert min(seen.values()) > 200


def test_others_are_told_no_addresses_of_somebody_else() -> None:
    handed_over = seal_provision(SIGNERS[1], NAME, expires_ms=1)
    message = pb.Message.FromString(wire.encode_request(AddProviders((handed_over,)), OWN))
    (peer,) = message.providerPeers
    assert (peer.id, list(peer.addrs)) == (bytes_of(SIGNERS[1].peer), [])


def test_only_a_value_that_was_kept_is_echoed() -> None:
    put = PutValue(pk_value(public_key_bytes(PEER)))
    kept = pb.Message.FromString(wire.encode_answer(put, Stored(1), None))
    assert (kept.key, kept.record.key) == (put.value.name, put.value.name)
    assert kept.record.value == put.value.sealed
    refused = pb.Message.FromString(wire.encode_answer(put, Stored(0, "no room"), None))
    assert (refused.key, refused.record.value) == (b"", b"")


def test_there_is_a_limit_to_the_records_of_one_message() -> None:
    sealed = seal_provision(SIGNERS[1], NAME, expires_ms=1).sealed
    message = pb.Message(type=3, provisions=[sealed] * wire.PROVISIONS_MAX)
    assert isinstance(told(GetProviders(NAME), message), Providers)
    message.provisions.append(sealed)
    with pytest.raises(BadMessage, match="501 provider records"):
        told(GetProviders(NAME), message)


@given(st.binary(max_size=300))
def test_any_bytes(frame: bytes) -> None:
    try:
        request, _ = kad_bytes.read_request(frame)
    except BadMessage:
        return
    assert kad_bytes.read_request(wire.encode_request(request, None))[0] == request
