"""The pubsub RPC: our reader against libp2p's own protobuf classes, and against hostile bytes."""

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.pubsub.pb import rpc_pb2

from protocols.channels import wire
from protocols.channels.wire import IHave, Prune, Rpc, Subscription
from wire import frames
from wire.errors import BadMessage
from wire.ids import PeerId

short = st.binary(max_size=wire.ID_MAX)
topics = st.text(max_size=60)
messages = st.builds(
    wire.message,
    author=short,
    seqno=st.binary(max_size=wire.SEQNO_MAX),
    topic=topics,
    data=st.binary(max_size=300),
    signature=st.binary(max_size=80),
    key=st.binary(max_size=80),
)


def some(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(strategy, max_size=4).map(tuple)


rpcs = st.builds(
    Rpc,
    subscriptions=some(st.builds(Subscription, topics, st.booleans())),
    messages=some(messages),
    ihave=some(st.builds(IHave, topics, some(short))),
    iwant=some(short),
    graft=some(topics),
    prune=some(st.builds(Prune, topics, st.integers(0, 1 << 31))),
    idontwant=some(short),
)


def foreign(rpc: Rpc) -> rpc_pb2.RPC:
    """Say the same with libp2p's classes."""
    other = rpc_pb2.RPC()
    for item in rpc.subscriptions:
        other.subscriptions.add(subscribe=item.subscribes, topicid=item.topic)
    for message in rpc.messages:
        other.publish.add(
            from_id=message.author,
            data=message.data,
            seqno=message.seqno,
            topicIDs=[message.topic],
            signature=message.signature,
            key=message.key,
        )
    for ihave in rpc.ihave:
        other.control.ihave.add(topicID=ihave.topic, messageIDs=ihave.ids)
    for name in rpc.iwant:
        other.control.iwant.add(messageIDs=[name])
    for topic in rpc.graft:
        other.control.graft.add(topicID=topic)
    for prune in rpc.prune:
        other.control.prune.add(topicID=prune.topic, backoff=prune.backoff_s)
    for name in rpc.idontwant:
        other.control.idontwant.add(messageIDs=[name])
    return other


@given(rpcs)
def test_what_is_written_is_read(rpc: Rpc) -> None:
    assert wire.decode(wire.encode(rpc)) == rpc


@given(rpcs)
def test_libp2p_reads_what_we_write(rpc: Rpc) -> None:
    theirs = rpc_pb2.RPC.FromString(wire.encode(rpc))
    assert [(m.from_id, m.data, m.seqno, m.signature) for m in theirs.publish] == [
        (m.author, m.data, m.seqno, m.signature) for m in rpc.messages
    ]
    control = theirs.control
    assert [(s.subscribe, s.topicid) for s in theirs.subscriptions] == [
        (s.subscribes, s.topic) for s in rpc.subscriptions
    ]
    assert [(i.topicID, tuple(i.messageIDs)) for i in control.ihave] == [
        (i.topic, i.ids) for i in rpc.ihave
    ]
    assert tuple(name for item in control.iwant for name in item.messageIDs) == rpc.iwant
    assert tuple(name for item in control.idontwant for name in item.messageIDs) == rpc.idontwant
    assert tuple(item.topicID for item in control.graft) == rpc.graft
    assert [(p.topicID, p.backoff) for p in control.prune] == [
        (p.topic, p.backoff_s) for p in rpc.prune
    ]


@given(rpcs)
def test_we_read_what_libp2p_writes(rpc: Rpc) -> None:
    ours = wire.decode(foreign(rpc).SerializeToString())
    for mine, theirs in zip(rpc.messages, ours.messages, strict=True):
        assert (mine.id, mine.topic, mine.data) == (theirs.id, theirs.topic, theirs.data)
        assert (mine.signature, mine.key) == (theirs.signature, theirs.key)
    assert ours.subscriptions == rpc.subscriptions
    assert (ours.ihave, ours.iwant, ours.idontwant) == (rpc.ihave, rpc.iwant, rpc.idontwant)
    assert (ours.graft, ours.prune) == (rpc.graft, rpc.prune)


@given(st.binary(max_size=400))
def test_any_bytes(frame: bytes) -> None:
    try:
        rpc = wire.decode(frame)
    except BadMessage:
        return
    assert wire.decode(wire.encode(rpc)) == rpc


@given(rpcs, st.data())
def test_any_mutation_of_a_true_frame(rpc: Rpc, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(rpc))
    for _ in range(data.draw(st.integers(1, 4)) if frame else 0):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadMessage):
        wire.decode(bytes(frame[: data.draw(st.integers(0, len(frame)))]))


def a_message(**fields: bytes) -> wire.Message:
    return wire.message(author=b"author", seqno=b"1", topic="t", data=fields.get("data", b"data"))


def test_a_message_keeps_the_bytes_it_came_in() -> None:
    unknown = b"\xba\x3e\x03new"  # field 999, of some later version
    raw = a_message().raw + unknown
    frame = b"\x12" + bytes([len(raw)]) + raw
    rpc = wire.decode(frame)
    assert rpc.messages[0].raw == raw
    assert wire.encode(rpc) == frame


def test_the_signature_covers_the_message_in_order_of_its_fields() -> None:
    signed = wire.message(author=b"me", seqno=b"1", topic="t", data=b"d", signature=b"s", key=b"k")
    theirs = rpc_pb2.Message(from_id=b"me", data=b"d", seqno=b"1", topicIDs=["t"])
    assert wire.signed_bytes(signed) == b"libp2p-pubsub:" + theirs.SerializeToString()


def test_peer_exchange_is_passed_over() -> None:
    theirs = rpc_pb2.RPC()
    prune = theirs.control.prune.add(topicID="t", backoff=60)
    for _ in range(100):
        prune.peers.add(peerID=b"p" * 38, signedPeerRecord=b"r" * 500)
    assert wire.decode(theirs.SerializeToString()) == Rpc(prune=(Prune("t", 60),))


@pytest.mark.parametrize(
    ("rpc", "fault"),
    [
        (Rpc(messages=(a_message(),) * (wire.MESSAGES_MAX + 1)), "messages"),
        (Rpc(messages=(a_message(data=bytes(wire.PAYLOAD_MAX + 1)),)), "over the limit"),
        (Rpc(subscriptions=(Subscription("t", True),) * 1025), "subscriptions"),
        (Rpc(subscriptions=(Subscription("t" * 257, True),)), "over the limit"),
        (Rpc(ihave=(IHave("t", (b"x",) * 5001),)), "message ids"),
        (Rpc(ihave=(IHave("t", (b"x",) * 2501),) * 2), "message ids"),
        (Rpc(ihave=(IHave("t", ()),) * 257), "IHAVE"),
        (Rpc(ihave=(IHave("t", (bytes(wire.ID_MAX + 1),)),)), "over the limit"),
        (Rpc(iwant=(b"x",) * 5001), "message ids"),
        (Rpc(graft=("t",) * 257), "GRAFT"),
        (Rpc(prune=(Prune("t", 0),) * 257), "PRUNE"),
        (Rpc(idontwant=(b"x",) * 1001), "message ids"),
        (Rpc(messages=(a_message(data=bytes(60_000)),) * 5), "frame of"),
    ],
)
def test_every_list_and_field_has_a_bound(rpc: Rpc, fault: str) -> None:
    with pytest.raises(BadMessage, match=fault):
        wire.decode(wire.encode(rpc))


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        (b"\x12\x05\x0a", "cut short"),
        (b"\x12", "cut short"),
        (b"\x12\x80", "varint is cut short"),
        (b"\x12" + b"\xff" * 11, "ten bytes"),
        (b"\x02\x00", "field number 0"),
        (b"\x13\x14", "wire type 3"),  # a group
        (b"\x0d\x00", "cut short"),
        (b"\x12\x02\x08\x01", "a number where bytes"),
        (b"\x0a\x03\x0a\x01t", "bytes where a number"),
        (b"\x12\x00", "no topic"),
        (b"\x12\x06\x22\x01t\x22\x01u", "two topics"),
        (b"\x0a\x05\x12\x03\xff\xfe\xfd", "not text"),
        (b"\x08\x09", "an integer where a message"),
        (b"\x10\x09", "an integer where a message"),
        (b"\x1a\x02\x08\x09", "an integer where a message"),
    ],
)
def test_bytes_that_are_no_rpc(frame: bytes, fault: str) -> None:
    with pytest.raises(BadMessage, match=fault):
        wire.decode(frame)


@pytest.mark.parametrize("tag", [b"\x0a", b"\x12", b"\x1a", b"\x22"])
@pytest.mark.parametrize("inside_control", [False, True])
def test_a_frame_of_empty_submessages_costs_no_memory(tag: bytes, inside_control: bool) -> None:
    body = (tag + b"\x00") * ((wire.FRAME_MAX - 8) // 2)
    frame = b"\x1a" + frames.pack(body)[: -len(body)] + body if inside_control else body
    tracemalloc.start()
    with contextlib.suppress(BadMessage):
        wire.decode(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 1024 * 1024


def test_peer_ids_as_messages_carry_them() -> None:
    name = PeerId("12D3KooWNvSZnPi3RrhrTwEY4LuuBeB6K6facKUCJcyWG1aoDd2p")
    author = wire.author_of(name)
    assert len(author) == 38
    for bad in ("", "no peer: 0OIl", "1" * 500):
        with pytest.raises(BadMessage):
            wire.author_of(PeerId(bad))
