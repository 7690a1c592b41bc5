"""Two punchers and what lies between them, on a virtual clock: when and where packets are sent."""

import ipaddress
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import trio
from trio.testing import MockClock

from node.host.addresses import Address
from node.host.holes import Holes
from node.host.views import Direction, Path, PeerEvent, PeerUp, PeerView
from node.reach.dcutr import Connect, Sync, encode
from node.reach.puncher import TALK_S, Puncher
from node.reach.targets import PREDICTED
from wire.ids import PeerId
from wire.ports import Stream, StreamServer

ALICE, BOB = PeerId("alice"), PeerId("bob")
DELAY_S = 0.05  # one way, through the relay
PROBE_S = 0.03  # a STUN probe
INTERFACES = [ipaddress.ip_interface("192.168.1.7/24")]


class Pipe:
    """One end of a relayed stream."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.other: Pipe | None = None
        self.is_dropped = False
        self._send, self._receive = trio.open_memory_channel[tuple[float, bytes]](9)

    async def read(self, max_bytes: int) -> bytes:
        due, data = await self._receive.receive()
        await trio.sleep_until(due)
        return data[:max_bytes]

    async def write(self, data: bytes) -> None:
        assert self.other is not None
        await self.other._send.send((trio.current_time() + DELAY_S, data))

    def drop(self) -> None:
        self.is_dropped = True


def pipes() -> tuple[Pipe, Pipe]:
    """What Bob holds, whose other end is Alice, and what Alice holds."""
    at_bob, at_alice = Pipe(ALICE), Pipe(BOB)
    at_bob.other, at_alice.other = at_alice, at_bob
    return at_bob, at_alice


@dataclass
class World:
    """A host that sees one relayed peer, and notes what it is made to send."""

    peer: PeerId
    other: PeerId
    direction: Direction
    host: str
    nursery: trio.Nursery
    path: Path = "relayed"
    sent: list[tuple[float, Address, int | None]] = field(
        default_factory=list[tuple[float, Address, int | None]]
    )
    is_sequential: bool = False
    server: StreamServer | None = None
    world: "World | None" = None

    def __post_init__(self) -> None:
        self.holes = cast(Holes, self)
        own = [Address("ip4", "192.168.1.7", 4001), Address("ip4", self.host, 4001)]
        self.puncher = Puncher(self, lambda: own, self.predicted, own_interfaces=lambda: INTERFACES)

    def connect(self, remote: Address, *, port: int | None = None) -> socket.socket:
        self.sent.append((trio.current_time(), remote, port))
        raise OSError("nowhere")

    async def predicted(self, count: int) -> list[Address]:
        await trio.sleep(PROBE_S)
        ports = range(20_001, 20_001 + count)
        return [Address("ip4", self.host, port) for port in ports] if self.is_sequential else []

    def serve(self, protocol: str, server: StreamServer) -> None:
        self.server = server

    async def open(
        self, peer: PeerId, protocol: str, *, timeout_s: float, path: Path | None = None
    ) -> Stream:
        assert self.world is not None
        assert path == "relayed"
        here, there = Pipe(peer), Pipe(self.peer)
        here.other, there.other = there, here
        self.world.answer(there)
        return cast(Stream, here)

    def answer(self, pipe: Pipe) -> None:
        assert self.server is not None
        self.nursery.start_soon(self.server, cast(Stream, pipe))

    def peers(self) -> list[PeerView]:
        return [PeerView(self.other, "", self.direction, self.path, None, 0, 0, 0.0, 1)]

    def rtt_s(self, peer: PeerId) -> float | None:
        return 2 * DELAY_S

    async def watch(self) -> AsyncIterator[PeerEvent]:
        yield PeerUp(self.other)
        await trio.sleep_forever()


def world(nursery: trio.Nursery) -> tuple[World, World]:
    """Alice dialled Bob: he begins."""
    alice = World(ALICE, BOB, "out", "11.1.0.2", nursery)
    bob = World(BOB, ALICE, "in", "11.2.0.2", nursery)
    alice.world, bob.world = bob, alice
    return alice, bob


async def test_both_send_at_the_same_moment_whatever_a_probe_takes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    alice, bob = world(nursery)
    for one in (alice, bob):
        await nursery.start(one.puncher.run)
    await trio.sleep(1.0)
    assert abs(alice.sent[0][0] - bob.sent[0][0]) < 1e-6
    assert alice.sent[0][1:] == (Address("ip4", "11.2.0.2", 4001), None)


async def test_what_is_predicted_is_sent_first_from_new_ports_one_sweeps_the_other_aims(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    alice, bob = world(nursery)
    alice.is_sequential = bob.is_sequential = True
    for one in (alice, bob):
        await nursery.start(one.puncher.run)
    await trio.sleep(0.5)
    sweep, aim = [*range(20_001, 20_017)], [20_016] * PREDICTED
    for one, other, ports in ((bob, alice, sweep), (alice, bob, aim)):
        first = one.sent[: PREDICTED + 1]
        assert [address.port for _, address, _ in first] == [*ports, 4001]
        assert {address.host for _, address, _ in first} == {other.host}
        assert {port for _, _, port in first} == {0}
        assert len({at for at, _, _ in first}) == 1


async def test_only_the_one_that_was_dialled_begins_three_tries_then_rests(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    alice, bob = world(nursery)
    for one in (alice, bob):
        await nursery.start(one.puncher.run)
    await trio.sleep(30.0)
    assert bob.puncher.outcomes() == {"failed": 3}
    assert alice.puncher.outcomes() == {"failed": 3}
    ((record, next_s),) = bob.puncher.view()
    assert (record.peer, record.outcome, record.tries) == (ALICE, "failed", 3)
    assert next_s is not None
    alice.sent.clear()
    bob.puncher.moved()
    await trio.sleep(1.0)
    assert alice.sent


async def test_over_a_direct_connection_nobody_is_answered(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    _, bob = world(nursery)
    bob.path = "direct"
    at_bob, _ = pipes()
    bob.answer(at_bob)
    await trio.sleep(0.1)
    assert at_bob.is_dropped


async def test_what_is_no_conversation_ends_and_leaves_its_place(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    told = Connect((Address("ip4", "11.1.0.2", 4001),))
    for said in ([b"\xff" * 9], [encode(Sync())], [encode(told), encode(told)], [], [b"\x00"]):
        _, bob = world(nursery)
        at_bob, at_alice = pipes()
        bob.answer(at_bob)
        for data in said:
            await at_alice.write(data)
        await trio.sleep(TALK_S + 1.0)
        assert bob.puncher.outcomes() == {"failed": 1}
        assert not bob.sent


async def test_a_peer_that_asks_all_the_time_makes_us_send_little(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    _, bob = world(nursery)
    victim = Connect(tuple(Address("ip4", "11.9.0.9", 2000 + 7 * i) for i in range(32)))
    for _ in range(120):
        at_bob, at_alice = pipes()
        bob.answer(at_bob)
        await at_alice.write(encode(victim))
        await at_alice.write(encode(Sync()))
        await trio.sleep(1.0)
    places = 6 + 120 / 20 + 1
    assert len({at for at, _, _ in bob.sent}) > 1
    assert len(bob.sent) <= places * 32 * 12  # twelve packets in three seconds, at most
