"""GossipSub 1.1 and 1.2 without I/O: meshes, announcements, scores. (Interface; bodies follow.)"""

import random
from dataclasses import dataclass
from enum import Enum

from protocols.channels.params import Params
from protocols.channels.wire import Message, Rpc
from wire.ids import PeerId


class Verdict(Enum):
    """What validation found."""

    ACCEPT = "accept"  # goes on to the mesh
    IGNORE = "ignore"  # not news, or we cannot say: goes no further, nobody's fault
    REJECT = "reject"  # invalid: who passed it on is scored down


@dataclass(frozen=True, slots=True)
class Send:
    """Send one RPC to each of some peers. Encode it once: `wire.encode`, `wire.frames.pack`.

    What cannot be queued for a slow peer may be dropped: announcements repair it.
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
    """A peer broke too many rules: reset its streams, and do not take it back for a while."""

    peer: PeerId
    reason: str


Effect = Send | Validate | Drop


class GossipSub:
    """One node's part in the gossip. Every method returns effects, to be applied in order."""

    def __init__(self, own: PeerId, params: Params, rng: random.Random) -> None:
        raise NotImplementedError

    @property
    def deadline(self) -> float:
        """Time of the next needed `tick`; infinity while there are no peers."""
        raise NotImplementedError

    def peer_up(
        self, peer: PeerId, version: str, now: float, *, outbound: bool = False, address: str = ""
    ) -> list[Effect]:
        """A peer's stream is open. The first effect sends it our subscriptions.

        version: protocol of the stream, one of `wire.PROTOCOLS`. outbound: we dialled it.
        address: its IP address or address group, for scoring; "" if unknown.
        """
        raise NotImplementedError

    def peer_down(self, peer: PeerId, now: float) -> list[Effect]:
        """A peer's stream is over. Its score is kept for a while if it is bad."""
        raise NotImplementedError

    def receive(self, peer: PeerId, rpc: Rpc, now: float) -> list[Effect]:
        """Handle what a peer sent. RPCs of peers that are not up are ignored."""
        raise NotImplementedError

    def broke_framing(self, peer: PeerId, now: float) -> list[Effect]:
        """A peer sent bytes that `wire.decode` refused."""
        raise NotImplementedError

    def subscribe(self, topic: str, now: float) -> list[Effect]:
        """Join a topic. Raises UsageError over `Params.topics_max`."""
        raise NotImplementedError

    def unsubscribe(self, topic: str, now: float) -> list[Effect]:
        """Leave a topic."""
        raise NotImplementedError

    def publish(self, message: Message, now: float) -> list[Effect]:
        """Send a message of our own (signed already). It does not come back as Validate."""
        raise NotImplementedError

    def validated(self, message_id: bytes, verdict: Verdict, now: float) -> list[Effect]:
        """Tell the outcome of a `Validate`. Unknown ids (it took too long) are ignored."""
        raise NotImplementedError

    def set_application_score(self, peer: PeerId, score: float) -> None:
        """Set P5, the application's own opinion of a peer; 0 to begin with."""
        raise NotImplementedError

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: once a second the heartbeat, in between requests for announced messages."""
        raise NotImplementedError

    # For metrics and `shoal channels`.

    def mesh(self, topic: str) -> frozenset[PeerId]:
        """Peers that we exchange a topic's messages with."""
        raise NotImplementedError

    def subscribers(self, topic: str) -> int:
        """Connected peers that subscribe to a topic."""
        raise NotImplementedError

    def score(self, peer: PeerId) -> float:
        """What we think of a peer; 0 of one that we do not know."""
        raise NotImplementedError
