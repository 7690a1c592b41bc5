"""The DHT's streams with peers that lie, break, flood, or do not answer."""

import secrets
from contextlib import suppress

import pytest
import trio

from dht import kad_pb2 as pb
from dht import wire as kad_wire
from dht.limits import TOO_MANY
from dht.messages import (
    AddProviders,
    FindNode,
    Nodes,
    Ping,
    Pong,
    Stored,
)
from dht.records import seal_provision
from node import kad, kad_line
from tests.daemon.hosts import eventually
from tests.daemon.kad_ends import PROTOCOL, ends, make_end, serve_instead
from tests.soak import kad_bytes
from wire import frames
from wire.errors import BadMessage, Busy, DeadlineExceeded, PeerUnreachable
from wire.ports import Stream


async def test_what_is_to_be_kept_and_is_false_is_refused_with_the_reason() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        good = seal_provision(a.signer, b"name", expires_ms=1)
        false = type(good)(good.name, good.peer, 2, good.sealed[:-1] + b"?")
        reply = await a.ask(b, AddProviders((false,)))
        assert isinstance(reply.answer, Stored)
        assert "did not sign" in reply.answer.refusal
        assert (await a.ask(b, Ping())).answer == Pong()
        assert len(b.asked) == 1
        assert b.streams.bad_messages == 0


async def test_who_floods_with_records_is_slowed_and_not_one_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kad, "PAUSE_S", 0.05)
    a, b = make_end(), make_end()
    async with ends(a, b):
        false = seal_provision(a.signer, b"name", expires_ms=1).sealed[:-1] + b"?"
        message = pb.Message(type=2, key=b"name", provisions=[false] * 500).SerializeToString()
        line, _ = await a.streams._line_to(b.contact)
        said = [pb.Message.FromString(await line.ask(message)).refusal for _ in range(4)]
        assert not any(TOO_MANY.encode() in each for each in said)
        began = trio.current_time()
        assert pb.Message.FromString(await line.ask(message)).refusal == TOO_MANY.encode()
        b.answer = Stored(0, TOO_MANY)  # the node's own limits
        assert (await a.ask(b, FindNode(b"name"))).answer == Stored(0, TOO_MANY)
        assert trio.current_time() - began >= 2 * kad.PAUSE_S


@pytest.mark.parametrize("body", [b"\xff" * 10, b"\x08\x09", bytes(200)])
async def test_a_broken_question_resets_the_stream_and_not_the_connection(body: bytes) -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        a.host.learn(b.host.peer, b.host.addresses())
        stream = await a.host.open(b.host.peer, PROTOCOL, timeout_s=5)
        await stream.write(frames.pack(body))
        with pytest.raises(PeerUnreachable):
            await stream.read(1000)
        assert b.streams.bad_messages == 1
        assert (await a.ask(b, Ping())).answer == Pong()
        assert b.host.counters().server_errors == 0


async def test_garbage_of_every_kind_ends_streams_and_nothing_else() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        a.host.learn(b.host.peer, b.host.addresses())
        for frame, _ in kad_bytes.inputs(150, seed=secrets.randbits(32)):
            stream = await a.host.open(b.host.peer, PROTOCOL, timeout_s=5)
            with suppress(PeerUnreachable):
                await stream.write(frames.pack(frame))
                await stream.finish()
                while await stream.read(1 << 16):
                    pass
            stream.drop()
        assert b.streams.bad_messages > 50
        assert b.host.counters().server_errors == 0
        assert (await a.ask(b, Ping())).answer == Pong()


async def test_garbage_for_an_answer_is_a_declared_error() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        garbage = (frame for frame, _ in kad_bytes.inputs(1000, seed=secrets.randbits(32)))

        async def lie(stream: Stream) -> None:
            while await stream.read(1000):
                await stream.write(frames.pack(next(garbage)))

        serve_instead(b, lie)
        errors = 0
        for request, _ in kad_bytes.exchanges() * 15:
            try:
                await a.ask(b, request)
            except (BadMessage, PeerUnreachable):
                errors += 1
        assert errors > 50
        assert a.host.connected() == [b.host.peer]


async def test_a_peer_has_a_bounded_number_of_streams() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        a.host.learn(b.host.peer, b.host.addresses())
        streams = [
            await a.host.open(b.host.peer, PROTOCOL, timeout_s=5)
            for _ in range(kad.STREAMS_MAX + 1)
        ]
        ask = frames.pack(kad_wire.encode_request(Ping(), None))
        for stream in streams[:-1]:
            await stream.write(ask)
            assert await stream.read(1000)
        with pytest.raises(PeerUnreachable):
            await streams[-1].read(1000)
        for stream in streams:
            await stream.reset()
        await eventually(lambda: not b.streams._asking)


async def test_a_peer_that_does_not_answer_is_given_up_and_asked_on_a_new_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kad_line, "STUCK_S", 0.01)
    a, b = make_end(), make_end()
    async with ends(a, b):
        seen = list[Stream]()

        async def silent(stream: Stream) -> None:
            seen.append(stream)
            await trio.sleep_forever()

        serve_instead(b, silent)
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await a.ask(b, Ping(), timeout_s=0.1)
        assert len(seen) == 2


async def test_who_gives_up_early_takes_nobodys_answer() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        go_on = trio.Event()

        async def slow(stream: Stream) -> None:
            parser = frames.FrameParser(1000)
            while data := await stream.read(1000):
                for frame in parser.feed(data):
                    await go_on.wait()
                    request, _ = kad_wire.decode_request(frame, a.host.peer, 0)
                    answer = Pong() if isinstance(request, Ping) else Nodes(())
                    await stream.write(frames.pack(kad_wire.encode_answer(request, answer, None)))

        serve_instead(b, slow)
        with pytest.raises(DeadlineExceeded):
            await a.ask(b, FindNode(b"given up"), timeout_s=0.1)
        (line,) = a.streams._lines.values()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.ask, b, Ping())
            await trio.sleep(0.01)
            go_on.set()
        assert (await a.ask(b, Ping())).answer == Pong()
        assert list(a.streams._lines.values()) == [line]
        assert not line.is_over


async def test_nobody_waits_for_more_answers_of_one_peer_than_there_may_be() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):

        async def silent(_stream: Stream) -> None:
            await trio.sleep_forever()

        serve_instead(b, silent)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                await a.ask(b, Ping(), timeout_s=60)

            for _ in range(kad_line.IN_FLIGHT_MAX):
                nursery.start_soon(ask)
            await eventually(lambda: a.streams._lines)
            (line,) = a.streams._lines.values()
            await eventually(lambda: len(line._asked) == kad_line.IN_FLIGHT_MAX)
            with pytest.raises(Busy):
                await a.ask(b, Ping())
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\x7f",  # a frame of 256 MB
        frames.pack(b"\xff"),
        frames.pack(kad_wire.encode_answer(FindNode(b"x"), Nodes(()), None)),
    ],
)
async def test_a_broken_answer_is_an_error_of_that_peer_only(said: bytes) -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):

        async def lie(stream: Stream) -> None:
            await stream.read(1000)
            await stream.write(said)
            await trio.sleep_forever()

        serve_instead(b, lie)
        with pytest.raises((BadMessage, PeerUnreachable)):
            await a.ask(b, Ping())
        assert all(line.is_over for line in a.streams._lines.values())
        assert a.host.connected() == [b.host.peer]


async def test_an_answer_to_nothing_ends_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):

        async def say_too_much(stream: Stream) -> None:
            await stream.read(1000)
            await stream.write(frames.pack(kad_wire.encode_answer(Ping(), Pong(), None)) * 2)
            await trio.sleep_forever()

        serve_instead(b, say_too_much)
        assert (await a.ask(b, Ping())).answer == Pong()
        await eventually(lambda: all(line.is_over for line in a.streams._lines.values()))
        assert [each for each in caplog.records if each.levelname == "ERROR"] == []


async def test_a_stream_that_breaks_at_once_is_not_tried_for_ever() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        streams = 0

        async def refuse(stream: Stream) -> None:
            nonlocal streams
            streams += 1
            await stream.read(1000)

        serve_instead(b, refuse)
        with pytest.raises(PeerUnreachable):
            await a.ask(b, Ping())
        assert streams == 1
