"""Real DHT services whose requests go through memory, as bytes, over links with latency."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import trio

from dht import wire
from dht.messages import Contact, Request
from dht.ports import Reply
from dht.service import DhtService
from tests.sim.replicas import SimClock, in_place, signer
from wire.errors import DeadlineExceeded, PeerUnreachable
from wire.ids import PeerId, Signer


def address(number: int) -> str:
    return f"/ip4/10.0.{number >> 8}.{number & 255}/tcp/4001"


@dataclass
class Links:
    """Who is there, who is silent, who cannot reach whom."""

    latency_s: float = 0.02
    there: dict[PeerId, "Member"] = field(default_factory=dict[PeerId, "Member"])
    silent: set[PeerId] = field(default_factory=set[PeerId])
    requests: int = 0

    async def stop(self, peer: PeerId) -> None:
        """A node dies: others cannot reach it any more."""
        member = self.there.pop(peer)
        member.scope.cancel()
        await member.ended.wait()


@dataclass
class Member:
    """One service with its address book; it is its own `Transport`."""

    links: Links
    own: Signer
    addrs: list[str]
    peers: list[PeerId] = field(default_factory=list[PeerId])  # connected from the beginning
    heard: dict[PeerId, list[str]] = field(default_factory=dict[PeerId, list[str]])
    flying: int = 0
    flying_most: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    clock: SimClock = field(default_factory=SimClock)

    def serve(self, *, file: Path | None = None, is_public: bool = False) -> DhtService:
        self.dht = DhtService(
            self,
            self,
            self.own,
            self.clock,
            peers=lambda: self.peers,
            rng=random.Random(self.own.peer),
            is_public=is_public,
            file=file,
            off_loop=in_place,
        )
        return self.dht

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.dht.run(task_status=task_status)
        self.ended.set()

    def addresses(self) -> list[str]:
        return self.addrs

    def addresses_of(self, peer: PeerId) -> list[str]:
        other = self.links.there.get(peer)
        return other.addrs if other is not None else []

    def hear(self, peer: PeerId, addrs: list[str]) -> None:
        if addrs:
            self.heard[peer] = addrs

    async def ask(
        self,
        contact: Contact,
        request: Request,
        sender: Contact | None,
        *,
        timeout_s: float,
        is_check: bool,
    ) -> Reply:
        self.flying += 1
        self.flying_most = max(self.flying, self.flying_most)
        try:
            with trio.move_on_after(timeout_s):
                return await self._ask(contact.peer, request, sender)
            raise DeadlineExceeded(contact.peer)
        finally:
            self.flying -= 1

    async def _ask(self, peer: PeerId, request: Request, sender: Contact | None) -> Reply:
        links, wall_ms, me = self.links, self.clock.wall_ms(), self.own.peer
        links.requests += 1
        await trio.sleep(links.latency_s)
        if peer in links.silent or me in links.silent:
            await trio.sleep_forever()
        if peer not in links.there or me not in links.there:
            raise PeerUnreachable(peer)
        other = links.there[peer].dht
        asked, who = wire.decode_request(wire.encode_request(request, sender), me, wall_ms)
        frame = wire.encode_answer(asked, other.answer(me, who, asked), other.sender())
        await trio.sleep(links.latency_s)
        answer, them = wire.decode_answer(frame, request, peer, wall_ms, is_public=False)
        return Reply(answer, them, them.addrs[0] if them and them.addrs else None)


async def start_member(
    nursery: trio.Nursery,
    links: Links,
    number: int,
    peers: list[PeerId],
    *,
    file: Path | None = None,
) -> DhtService:
    """Start a node that is connected to `peers`, and only knows of them."""
    own = signer(number)
    member = Member(links, own, [address(number)], peers)
    dht = member.serve(file=file)
    links.there[own.peer] = member
    await nursery.start(member.run)
    for peer in peers:
        dht.peer_up(peer)
        if peer in links.there:
            links.there[peer].dht.peer_up(own.peer)
    if peers:
        nursery.start_soon(dht.bootstrap)
    return dht


async def start_swarm(nursery: trio.Nursery, links: Links, size: int) -> list[DhtService]:
    """Everybody knows the first one only; a minute later they know each other."""
    first = await start_member(nursery, links, 1, [])
    rest = [await start_member(nursery, links, n, [signer(1).peer]) for n in range(2, size + 1)]
    await trio.sleep(60)
    return [first, *rest]
