"""What the GossipSub machine asks its driver to do, gathered over one turn."""

from dataclasses import dataclass, field
from enum import Enum

from protocols.channels.wire import IHave, Message, Prune, Rpc
from wire.ids import PeerId


class Verdict(Enum):
    """What validation found. The first two only if the signature is right: the id is then seen."""

    ACCEPT = "accept"  # goes on to the mesh
    IGNORE = "ignore"  # not news, or we cannot say: goes no further, nobody's fault
    REJECT = "reject"  # invalid: who passed it on is scored down


@dataclass(frozen=True, slots=True)
class Send:
    """Send one RPC to each of some peers. Encode it once: `wire.encode`, `wire.frames.pack`.

    Messages that cannot be queued for a slow peer may be dropped: announcements repair it.
    """

    peers: tuple[PeerId, ...]
    rpc: Rpc


@dataclass(frozen=True, slots=True)
class Validate:
    """Check a new message (signature, policy), then call `validated` with its `id`, once.

    At most one is out for an id. `ACCEPT` also means: give it to the subscribers here.
    """

    peer: PeerId
    message: Message
    id: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """A peer broke too many rules: end its streams, call `peer_down`, keep it away for a while."""

    peer: PeerId
    reason: str


Effect = Send | Validate | Drop


@dataclass(slots=True)
class Draft:
    """What one peer gets at the end of the turn."""

    ihave: dict[str, list[bytes]] = field(default_factory=dict[str, list[bytes]])
    iwant: list[bytes] = field(default_factory=list[bytes])
    graft: list[str] = field(default_factory=list[str])
    prune: list[Prune] = field(default_factory=list[Prune])

    def announce(self, topic: str, name: bytes) -> None:
        """Add one message to the IHAVE of its topic."""
        self.ihave.setdefault(topic, []).append(name)

    def finish(self) -> Rpc:
        """Make one RPC of it."""
        return Rpc(
            ihave=tuple([IHave(topic, tuple(names)) for topic, names in self.ihave.items()]),
            iwant=tuple(self.iwant),
            graft=tuple(self.graft),
            prune=tuple(self.prune),
        )


@dataclass(slots=True)
class Outbox:
    """The effects of one turn."""

    effects: list[Effect] = field(default_factory=list[Effect])
    _drafts: dict[PeerId, Draft] = field(default_factory=dict[PeerId, Draft])

    def send(self, peers: tuple[PeerId, ...], rpc: Rpc) -> None:
        """Add one RPC to some peers, or to nobody."""
        if peers:
            self.effects.append(Send(peers, rpc))

    def draft(self, peer: PeerId) -> Draft:
        """Return the peer's draft, to add to."""
        draft = self._drafts.get(peer)
        if draft is None:
            draft = self._drafts[peer] = Draft()
        return draft

    def forget(self, peer: PeerId) -> None:
        """Drop the peer's draft."""
        self._drafts.pop(peer, None)

    def take(self) -> list[Effect]:
        """Return everything, and begin anew."""
        effects = self.effects
        if effects or self._drafts:
            effects += [Send((peer,), draft.finish()) for peer, draft in self._drafts.items()]
            self._drafts = {}
            self.effects = []
            return effects
        return []
