"""The DHT's streams between real hosts: answers in order, kept streams, modes."""

import secrets

import pytest
import trio

from dht import wire as kad_wire
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    FindNode,
    Nodes,
    Ping,
    Pong,
    PutValue,
    Request,
    Stored,
    hearsay,
)
from dht.records import seal_peer, seal_provision
from dht.values import seal_multi
from node import kad
from tests.daemon.hosts import eventually
from tests.daemon.kad_ends import BORN_MS, PROTOCOL, ends, make_end, serve_instead
from wire import frames
from wire.errors import PeerUnreachable
from wire.ids import PeerId, Signer
from wire.ports import Stream


async def test_a_question_is_answered_and_both_know_each_other() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        b.answer = Nodes((a.contact,))
        reply = await a.ask(b, FindNode(b"name"))
        assert isinstance(reply.answer, Nodes)
        assert [each.peer for each in reply.answer.closer] == [a.host.peer]
        assert reply.sender is not None
        assert reply.sender.sealed == b.contact.sealed
        ((peer, sender, request),) = b.asked
        assert (peer, request) == (a.host.peer, FindNode(b"name"))
        assert sender is not None
        assert sender.sealed == a.contact.sealed


async def test_one_stream_carries_many_questions_and_each_gets_its_own_answer() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        got = dict[int, bytes]()

        async def ask(number: int) -> None:
            value = seal_multi(a.signer, f"{number}", b"", seq=1, expires_ms=1)
            reply = await a.ask(b, PutValue(value))
            assert isinstance(reply.answer, Stored)
            got[number] = reply.answer.refusal.encode()

        def echo(_peer: PeerId, _sender: Contact | None, request: Request) -> Answer:
            assert isinstance(request, PutValue)
            return Stored(0, request.value.name.decode())

        b.streams._answer = echo
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
        assert got == {number: f"/shoal/multi/{number}".encode() for number in range(50)}
        assert list(b.streams._asking.values()) == [1]


async def test_a_large_message_goes_there_and_a_large_answer_back() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        names = [secrets.token_bytes(32) for _ in range(400)]
        records = [seal_provision(a.signer, name, expires_ms=1) for name in names]
        b.answer = Stored(400)
        assert (await a.ask(b, AddProviders(tuple(records)))).answer == Stored(400)
        (_, _, request) = b.asked[0]
        assert isinstance(request, AddProviders)
        assert [each.name for each in request.provisions] == names
        addrs = [f"/ip4/10.0.0.{number}/tcp/4001" for number in range(16)]
        signers = [Signer(secrets.token_bytes(32)) for _ in range(20)]
        b.answer = Nodes(tuple(seal_peer(each, addrs, seq=1, now_ms=BORN_MS) for each in signers))
        reply = await a.ask(b, FindNode(b"name"))
        assert isinstance(reply.answer, Nodes)
        assert [each.peer for each in reply.answer.closer] == [each.peer for each in signers]


async def test_a_kept_stream_that_breaks_is_replaced_without_a_word() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        pong = frames.pack(kad_wire.encode_answer(Ping(), Pong(), None))
        streams = 0

        async def answer_once(stream: Stream) -> None:
            nonlocal streams
            streams += 1
            await stream.read(1000)
            await stream.write(pong)
            await stream.read(1000)  # and reset it

        serve_instead(b, answer_once)
        for _ in range(3):
            assert (await a.ask(b, Ping())).answer == Pong()
        assert streams == 3


async def test_a_client_refuses_and_says_nothing_of_itself() -> None:
    a, b = make_end(), make_end(is_server=False)
    async with ends(a, b):
        assert (await b.ask(a, Ping())).answer == Pong()
        assert a.asked == [(b.host.peer, None, Ping())]
        with pytest.raises(PeerUnreachable, match="does not speak"):
            await a.ask(b, Ping())
        b.mode(is_server=True)
        assert (await a.ask(b, Ping())).answer == Pong()
        b.mode(is_server=False)
        with pytest.raises(PeerUnreachable, match="does not speak"):
            await a.ask(b, Ping())
        assert PROTOCOL not in b.host._sessions.servers


async def test_streams_that_nobody_uses_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = make_end(), make_end(), make_end()
    async with ends(a, b, c):
        await a.ask(b, Ping())
        await a.ask(c, Ping())
        a.streams._lines[b.host.peer].used_at -= kad.LINE_IDLE_S + 1
        a.streams._close_idle(trio.current_time() - kad.LINE_IDLE_S)
        assert set(a.streams._lines) == {c.host.peer}
        await eventually(lambda: not b.streams._asking)
        assert c.streams._asking
    monkeypatch.setattr(kad, "LINE_IDLE_S", 0.02)
    a, b = make_end(), make_end()
    async with ends(a, b):
        await a.ask(b, Ping())
        await eventually(lambda: not a.streams._lines)


async def test_a_stream_on_which_nothing_is_asked_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kad, "IDLE_S", 0.05)
    a, b = make_end(), make_end()
    async with ends(a, b):
        for _ in range(2):
            assert (await a.ask(b, Ping())).answer == Pong()
            (line,) = a.streams._lines.values()
            await eventually(lambda line=line: line.is_over)
            (connection,) = a.host._peers.of(b.host.peer)
            assert line.stream._muxed not in connection.muxed.streams.values()
            with pytest.raises(PeerUnreachable, match="ended the stream"):
                await line.ask(b"")


async def test_no_more_streams_are_kept_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kad, "LINES_MAX", 2)
    a, *others = [make_end() for _ in range(4)]
    async with ends(a, *others):
        for other in (*others, *others):
            assert (await a.ask(other, Ping())).answer == Pong()
            await a.ask(others[0], Ping())
        assert set(a.streams._lines) == {others[0].host.peer, others[2].host.peer}
        await eventually(lambda: not others[1].streams._asking)
        assert others[0].streams._asking


async def test_a_stream_of_a_worse_connection_is_left_with_its_last_answer() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        go_on, streams = trio.Event(), 0

        async def first_waits(stream: Stream) -> None:
            nonlocal streams
            streams += 1
            is_first = streams == 1
            try:
                while await stream.read(1000):
                    if is_first:
                        await go_on.wait()
                    await stream.write(frames.pack(kad_wire.encode_answer(Ping(), Pong(), None)))
            finally:
                streams -= 1

        serve_instead(b, first_waits)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.ask, b, Ping())
            await eventually(lambda: streams == 1)
            (old,) = a.streams._lines.values()
            (connection,) = a.host._peers.of(b.host.peer)
            connection.retire(is_retired=True)
            assert (await a.ask(b, Ping())).answer == Pong()
            assert old.is_over
            go_on.set()
        assert old not in a.streams._lines.values()
        await eventually(lambda: streams == 1)
        connection.retire(is_retired=False)
        assert (await a.ask(b, Ping())).answer == Pong()


async def test_nobody_at_an_address_is_unreachable_for_all_who_ask() -> None:
    a, b = make_end(), make_end()
    async with ends(a):
        nobody = hearsay(b.host.peer, ("/ip4/127.0.0.1/tcp/1",))
        failed = list[str]()

        async def ask() -> None:
            with pytest.raises(PeerUnreachable):
                await a.ask(nobody, Ping())
            failed.append("")

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert len(failed) == 5
