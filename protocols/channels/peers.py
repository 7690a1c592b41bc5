"""What the GossipSub machine keeps of each peer, and who subscribes to what."""

from dataclasses import dataclass, field

from protocols.channels.mcache import RecentIds
from wire.ids import PeerId


@dataclass(slots=True, eq=False)
class Peer:
    """What the machine keeps of one peer; budgets count within one heartbeat."""

    peer: PeerId
    author: bytes  # its ID's bytes
    knows_idontwant: bool  # it speaks 1.2
    is_outbound: bool  # we dialled it
    known: RecentIds  # messages that it has or does not want
    came: float = 0.0  # when its stream was opened
    score: float = 0.0  # as of the last heartbeat or fault
    is_dropped: bool = False
    topics: dict[str, None] = field(default_factory=dict[str, None])
    buckets: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    ihaves: int = 0
    asked: int = 0
    iwants: int = 0
    given_bytes: int = 0  # in answer to IWANT
    dont_wants: int = 0

    def take_token(self, topic: str, rate: float, burst: float, now: float) -> bool:
        """Tell whether one more new message of a topic is within the peer's rate."""
        tokens, since = self.buckets.get(topic, (burst, now))
        tokens = min(burst, tokens + (now - since) * rate)
        is_within = tokens >= 1
        self.buckets[topic] = (tokens - is_within, now)
        return is_within

    def new_heartbeat(self) -> None:
        """Budgets begin anew."""
        self.ihaves = self.asked = self.iwants = self.given_bytes = self.dont_wants = 0


class Subscribers:
    """Connected peers by topic, ours or not. Bounded by each peer's number of topics."""

    def __init__(self, peer_topics_max: int) -> None:
        self._limit = peer_topics_max
        self._topics: dict[str, dict[PeerId, Peer]] = {}

    def of(self, topic: str) -> list[Peer]:
        """Return a topic's subscribers, in the order in which they came."""
        return list(self._topics.get(topic, {}).values())

    def count(self, topic: str) -> int:
        """Count them."""
        return len(self._topics.get(topic, {}))

    def add(self, topic: str, peer: Peer) -> None:
        """A peer subscribes; what is over its limit is ignored."""
        if topic not in peer.topics and len(peer.topics) < self._limit:
            peer.topics[topic] = None
            self._topics.setdefault(topic, {})[peer.peer] = peer

    def remove(self, topic: str, peer: Peer) -> None:
        """A peer leaves a topic."""
        if topic in peer.topics:
            del peer.topics[topic]
            subscribers = self._topics[topic]
            del subscribers[peer.peer]
            if not subscribers:
                del self._topics[topic]

    def remove_all(self, peer: Peer) -> None:
        """A peer is gone."""
        for topic in list(peer.topics):
            self.remove(topic, peer)
