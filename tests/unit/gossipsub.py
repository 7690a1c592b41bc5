"""One GossipSub machine and hand-written peers, for scripts about its rules."""

import random
from collections import Counter
from dataclasses import replace

from protocols.channels.effects import Drop, Effect, Send, Validate, Verdict
from protocols.channels.machine import GossipSub
from protocols.channels.params import Params
from protocols.channels.wire import (
    PROTOCOLS,
    IHave,
    Message,
    Prune,
    Rpc,
    Subscription,
    author_of,
    message,
)
from wire.ids import PeerId, peer_id_of

ME, *PEERS = [peer_id_of(bytes([n]) * 32) for n in range(60)]
TOPIC = "news"


def from_(author: PeerId, number: int, data: bytes = b"data", topic: str = TOPIC) -> Message:
    """Make a message."""
    seqno = number.to_bytes(8, "big")
    return message(author=author_of(author), seqno=seqno, topic=topic, data=data)


class Node:
    """The machine under test, subscribed to `TOPIC`, with some peers that are, too."""

    def __init__(
        self, peers: int = 0, *, inbound: int = 0, subscribes: bool = True, **params: object
    ) -> None:
        self.params = replace(Params(), **params)  # type: ignore[arg-type]
        self.machine = GossipSub(ME, self.params, random.Random(1))
        self.peers = PEERS[:peers]
        self.now = 0.0
        if subscribes:
            self.machine.subscribe(TOPIC, 0.0)
        for n, peer in enumerate(self.peers):
            self.up(peer, outbound=n >= inbound)

    def up(self, peer: PeerId, *, version: str = PROTOCOLS[0], outbound: bool = True) -> None:
        """A peer connects and subscribes."""
        self.machine.peer_up(peer, version, self.now, outbound=outbound)
        self.hear(peer, Rpc(subscriptions=(Subscription(TOPIC, True),)))

    def hear(self, peer: PeerId, rpc: Rpc) -> list[Effect]:
        """A peer says something."""
        return self.machine.receive(peer, rpc, self.now)

    def tell(self, peer: PeerId, *items: Message) -> list[Effect]:
        """A peer sends messages; what is to be validated is accepted."""
        effects = self.hear(peer, Rpc(messages=items))
        for item in [effect for effect in effects if isinstance(effect, Validate)]:
            effects += self.machine.validated(item.id, Verdict.ACCEPT, self.now)
        return effects

    def graft(self, peer: PeerId) -> list[Effect]:
        """A peer takes us into its mesh."""
        return self.hear(peer, Rpc(graft=(TOPIC,)))

    def prune(self, peer: PeerId, backoff_s: int = 0) -> list[Effect]:
        """A peer puts us out."""
        return self.hear(peer, Rpc(prune=(Prune(TOPIC, backoff_s),)))

    def announce(self, peer: PeerId, *names: bytes, topic: str = TOPIC) -> list[Effect]:
        """A peer has messages."""
        return self.hear(peer, Rpc(ihave=(IHave(topic, names),)))

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass; returns all that the machine does meanwhile."""
        effects, end = list[Effect](), self.now + seconds
        while self.machine.deadline <= end:
            self.now = max(self.now, self.machine.deadline)
            effects += self.machine.tick(self.now)
        self.now = end
        return effects

    @property
    def mesh(self) -> frozenset[PeerId]:
        """The mesh of the topic."""
        return self.machine.mesh(TOPIC)

    @property
    def others(self) -> list[PeerId]:
        """Connected peers outside the mesh."""
        return [peer for peer in self.peers if peer not in self.mesh]


def sends(effects: list[Effect]) -> list[tuple[PeerId, Rpc]]:
    """List every RPC that goes out."""
    return [(peer, e.rpc) for e in effects if isinstance(e, Send) for peer in e.peers]


def told(effects: list[Effect], item: Message) -> Counter[PeerId]:
    """Count who gets a message."""
    return Counter(peer for peer, rpc in sends(effects) if item in rpc.messages)


def announced(effects: list[Effect]) -> dict[PeerId, tuple[bytes, ...]]:
    """Say which ids each peer is told of."""
    found: dict[PeerId, tuple[bytes, ...]] = {}
    for peer, rpc in sends(effects):
        for ihave in rpc.ihave:
            found[peer] = found.get(peer, ()) + ihave.ids
    return found


def asked(effects: list[Effect]) -> dict[PeerId, tuple[bytes, ...]]:
    """Say which ids each peer is asked for."""
    return {peer: rpc.iwant for peer, rpc in sends(effects) if rpc.iwant}


def grafted(effects: list[Effect]) -> list[PeerId]:
    """List who gets a GRAFT."""
    return [peer for peer, rpc in sends(effects) if rpc.graft]


def pruned(effects: list[Effect]) -> dict[PeerId, int]:
    """List who gets a PRUNE, with the back-off it tells."""
    return {peer: rpc.prune[0].backoff_s for peer, rpc in sends(effects) if rpc.prune}


def unwanted(effects: list[Effect]) -> list[PeerId]:
    """List who gets an IDONTWANT."""
    return [peer for peer, rpc in sends(effects) if rpc.idontwant]


def dropped(effects: list[Effect]) -> list[PeerId]:
    """List who is dropped."""
    return [effect.peer for effect in effects if isinstance(effect, Drop)]


def validations(effects: list[Effect]) -> list[Validate]:
    """List what is to be validated."""
    return [effect for effect in effects if isinstance(effect, Validate)]
