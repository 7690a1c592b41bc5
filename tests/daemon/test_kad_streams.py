"""The DHT's streams between real hosts: answers in order, broken peers, modes, checks."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from dht import kad_pb2 as pb
from dht import wire as kad_wire
from dht.limits import TOO_MANY
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
from dht.ports import Reply
from dht.records import seal_peer, seal_provision
from dht.values import seal_multi
from node import kad, kad_line
from node.host.service import LibP2pHost
from node.kad import KadStreams
from tests.daemon.hosts import KEY, eventually, make_host, running
from wire import frames
from wire.clock import SystemClock
from wire.errors import BadMessage, Busy, DeadlineExceeded, PeerUnreachable
from wire.ids import PeerId, Signer
from wire.ports import Stream

PROTOCOL = "/shoal/test/kad/1.0.0"
PUBLIC = "/ipfs/kad/1.0.0"


@dataclass
class End:
    """A host with streams; it answers with itself, and keeps what it was asked."""

    host: LibP2pHost
    signer: Signer
    is_server: bool = True
    answer: Answer = field(default_factory=Pong)
    asked: list[tuple[PeerId, Contact | None, Request]] = field(default_factory=list)
    streams: KadStreams = field(init=False)
    protocol: str = PROTOCOL

    def __post_init__(self) -> None:
        self.streams = KadStreams(
            self.host,
            self.protocol,
            self.take,
            lambda: self.is_server,
            own=lambda: self.contact if self.is_server else None,
            clock=SystemClock(),
        )

    def take(self, peer: PeerId, sender: Contact | None, request: Request) -> Answer:
        self.asked.append((peer, sender, request))
        return Pong() if isinstance(request, Ping) else self.answer

    @property
    def contact(self) -> Contact:
        return seal_peer(self.signer, self.host.addresses(), seq=1, now_ms=1)

    async def ask(
        self,
        other: "End | Contact",
        request: Request,
        *,
        timeout_s: float = 5.0,
        is_check: bool = False,
    ) -> Reply:
        contact = other.contact if isinstance(other, End) else other
        sender = self.contact if self.is_server else None
        return await self.streams.ask(
            contact, request, sender, timeout_s=timeout_s, is_check=is_check
        )

    async def mode(self, *, is_server: bool) -> None:
        self.is_server = is_server
        self.streams.mode_changed()


def make_end(*, is_server: bool = True, protocol: str = PROTOCOL) -> End:
    seed = secrets.token_bytes(32)
    host = make_host(seed=seed, key=None if protocol == PUBLIC else KEY)
    return End(host, Signer(seed), is_server, protocol=protocol)


@asynccontextmanager
async def ends(*of: End) -> AsyncIterator[None]:
    async with running(*[end.host for end in of]), trio.open_nursery() as nursery:
        for end in of:
            await nursery.start(end.streams.run)
        yield
        nursery.cancel_scope.cancel()


async def test_a_question_is_answered_and_both_know_each_other() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        b.answer = Nodes((hearsay(a.host.peer, ("/ip4/10.0.0.1/tcp/1",)),))
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

        b.take = echo  # type: ignore[method-assign]
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
        signers = [Signer(secrets.token_bytes(32)) for _ in range(30)]
        b.answer = Nodes(tuple(seal_peer(each, addrs, seq=1, now_ms=1) for each in signers))
        reply = await a.ask(b, FindNode(b"name"))
        assert isinstance(reply.answer, Nodes)
        assert [each.peer for each in reply.answer.closer] == [each.peer for each in signers]


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
        said = [pb.Message.FromString(await line.ask(message)).refusal for _ in range(3)]
        assert [TOO_MANY.encode() in each for each in said] == [False, False, True]


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


def serve_instead(end: End, server: Callable[[Stream], object]) -> None:
    """Let a peer answer in another way."""
    end.host.unserve(PROTOCOL)

    async def serve(stream: Stream) -> None:
        await server(stream)  # type: ignore[misc]

    end.host.serve(PROTOCOL, serve)


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
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.ask, b, Ping())
            await trio.sleep(0.01)
            go_on.set()
        assert (await a.ask(b, Ping())).answer == Pong()


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


async def test_an_answer_to_nothing_ends_the_stream() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):

        async def say_too_much(stream: Stream) -> None:
            await stream.read(1000)
            await stream.write(frames.pack(kad_wire.encode_answer(Ping(), Pong(), None)) * 2)
            await trio.sleep_forever()

        serve_instead(b, say_too_much)
        assert (await a.ask(b, Ping())).answer == Pong()
        await eventually(lambda: all(line.is_over for line in a.streams._lines.values()))


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


async def test_a_client_refuses_and_says_nothing_of_itself() -> None:
    a, b = make_end(), make_end(is_server=False)
    async with ends(a, b):
        assert (await b.ask(a, Ping())).answer == Pong()
        assert a.asked == [(b.host.peer, None, Ping())]
        with pytest.raises(PeerUnreachable, match="does not speak"):
            await a.ask(b, Ping())
        await b.mode(is_server=True)
        assert (await a.ask(b, Ping())).answer == Pong()
        await b.mode(is_server=False)
        with pytest.raises(PeerUnreachable):
            await a.ask(b, Ping())


async def test_streams_that_nobody_uses_are_closed() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        await a.ask(b, Ping())
        a.streams._close_idle(trio.current_time() - 60)
        assert len(a.streams._lines) == 1
        a.streams._close_idle(trio.current_time() + 1)
        assert not a.streams._lines
        await eventually(lambda: not b.streams._asking)


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


async def test_a_local_peer_is_believed_on_a_connection_that_it_made() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        assert (await a.ask(b, Ping())).address == _place(b)  # dialled
        accepted = b.host.counters().accepted, a.host.counters().accepted
        reply = await b.ask(a, Ping(), is_check=True)
        assert reply.address == _place(a)  # a made the connection, from another port
        assert (b.host.counters().accepted, a.host.counters().accepted) == accepted


async def test_who_claims_nothing_local_is_not_believed_for_coming_from_there() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        await a.host.connect(b.host.addresses()[0])
        rumour = hearsay(a.host.peer, ("/ip4/8.8.8.8/tcp/1",))
        assert (await b.ask(rumour, Ping())).address == _place(a)  # its own word counts
        a.streams._own = lambda: None
        for claims in ((), rumour.addrs, (f"{_place(a)}/p2p/{b.host.peer}",)):
            assert (await b.ask(hearsay(a.host.peer, claims), Ping())).address is None
        assert (await b.ask(hearsay(a.host.peer, (_place(a),)), Ping())).address == _place(a)


@pytest.fixture
def everywhere_is_global(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback stands for the internet."""
    monkeypatch.setattr(kad, "_is_global", lambda address: address.network.startswith("ip"))


@pytest.mark.usefixtures("everywhere_is_global")
async def test_a_peer_that_came_to_us_is_dialled_where_it_claims_to_be() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        await a.ask(b, Ping())  # a dials
        assert (await b.ask(a, Ping())).address is None
        accepted = a.host.counters().accepted
        assert (await b.ask(a, Ping(), is_check=True)).address == _place(a)
        assert a.host.counters().accepted == accepted + 1
        assert b.host.connected() == [a.host.peer]
        assert len(b.host.peers()) == b.host.peers()[0].connections == 1


@pytest.mark.usefixtures("everywhere_is_global")
async def test_a_peer_that_is_not_where_it_claims_to_be_fails_the_check() -> None:
    a, b, c = make_end(), make_end(), make_end()
    async with ends(a, b, c):
        await a.ask(b, Ping())
        for address in ("/ip4/127.0.0.1/tcp/1", c.host.addresses()[0].split("/p2p/")[0]):
            a.host.addresses = lambda address=address: [address]  # type: ignore[method-assign]
            with pytest.raises(PeerUnreachable):
                await b.ask(a, Ping(), is_check=True)
        assert (await a.ask(b, Ping(), is_check=True)).address == _place(b)


async def test_another_implementation_takes_providers_without_an_answer() -> None:
    a, b = make_end(protocol=PUBLIC), make_end(protocol=PUBLIC)
    async with ends(a, b):
        taken, ends_well = list[bytes](), True

        async def take(stream: Stream) -> None:
            parser, found = frames.FrameParser(1000), list[memoryview]()
            while data := await stream.read(1000):
                found += parser.feed(data)
            taken.extend(pb.Message.FromString(bytes(each)).key for each in found)
            if not ends_well:
                raise BadMessage("no")

        b.host.unserve(PUBLIC)
        b.host.serve(PUBLIC, take)
        other = hearsay(b.host.peer, tuple(b.host.addresses()))
        records = tuple(seal_provision(a.signer, name, expires_ms=1) for name in (b"x", b"y"))
        assert (await a.ask(other, AddProviders(records))).answer == Stored(2)
        assert taken == [b"x", b"y"]
        ends_well = False  # js-libp2p resets a stream that we have finished
        assert (await a.ask(other, AddProviders(records[:1]))).answer == Stored(1)
        assert taken == [b"x", b"y", b"x"]


def _place(end: End) -> str:
    return end.host.addresses()[0].split("/p2p/")[0]
