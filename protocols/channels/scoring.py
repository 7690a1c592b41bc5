"""Peer scores of GossipSub 1.1: what a peer did, weighed, and forgotten over time.

Pure bookkeeping; what a score leads to is decided in `machine` and `mesh`. P1: time in the mesh,
P2: first deliveries, P3, P3b: deliveries missing in the mesh, P4: invalid messages, P5: the
application's opinion, P6: many peers at one address, P7: broken rules.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from protocols.channels.params import ScoreParams, TopicScore
from wire.ids import PeerId


@dataclass(slots=True)
class _Conduct:
    """One peer in one topic."""

    rules: TopicScore
    mesh_since: float | None = None
    first: float = 0.0
    mesh: float = 0.0
    failure: float = 0.0
    invalid: float = 0.0

    def deficit(self, now: float) -> float:
        """P3: the square of the deliveries that are missing."""
        rules = self.rules
        if self.mesh_since is None or now - self.mesh_since < rules.mesh_activation_s:
            return 0.0
        return max(0.0, rules.mesh_threshold - self.mesh) ** 2

    def score(self, now: float) -> float:
        rules = self.rules
        in_mesh_s = 0.0 if self.mesh_since is None else now - self.mesh_since
        total = rules.in_mesh_weight * min(in_mesh_s, rules.in_mesh_cap_s)
        total += rules.first_weight * self.first
        total += rules.invalid_weight * self.invalid**2
        if rules.mesh_weight:
            total += rules.mesh_weight * self.deficit(now)
        total += rules.failure_weight * self.failure
        return rules.weight * total

    def decay(self, zero: float) -> None:
        rules = self.rules
        self.first = _decayed(self.first, rules.first_decay, zero)
        self.mesh = _decayed(self.mesh, rules.mesh_decay, zero)
        self.failure = _decayed(self.failure, rules.failure_decay, zero)
        self.invalid = _decayed(self.invalid, rules.invalid_decay, zero)


@dataclass(slots=True)
class _Record:
    address: str
    topics: dict[str, _Conduct] = field(default_factory=dict[str, _Conduct])
    application: float = 0.0
    behaviour: float = 0.0


class Scores:
    """Scores of the peers that are up, and of some that left in disgrace."""

    def __init__(self, params: ScoreParams) -> None:
        self._params = params
        self._records: dict[PeerId, _Record] = {}
        self._retained: OrderedDict[PeerId, tuple[float, _Record]] = OrderedDict()
        self._addresses: Counter[str] = Counter()
        self.counts_copies = any(  # P3 is on somewhere, so duplicates must be reported
            rules.mesh_weight for rules in (params.topic, *params.topics.values())
        )

    def up(self, peer: PeerId, address: str) -> None:
        """Begin, or go on from what was retained."""
        _, record = self._retained.pop(peer, (0.0, _Record(address)))
        record.address = address
        self._records[peer] = record
        self._addresses[address] += 1

    def down(self, peer: PeerId, now: float) -> None:
        """Keep faults; forget merits, which would be free to collect beforehand."""
        for conduct in self._records[peer].topics.values():
            conduct.first = 0.0
        score = self.value(peer, now)
        record = self._records.pop(peer)
        self._addresses[record.address] -= 1
        if not self._addresses[record.address]:
            del self._addresses[record.address]
        for topic in record.topics:
            self._leave_mesh(record.topics[topic], now)
        if score < 0:
            self._retained[peer] = (now + self._params.retain_s, record)
            if len(self._retained) > self._params.retained_max:
                self._retained.popitem(last=False)

    def graft(self, peer: PeerId, topic: str, now: float) -> None:
        """The peer entered the mesh of a topic."""
        conduct = self._conduct(peer, topic)
        conduct.mesh_since, conduct.mesh = now, 0.0

    def prune(self, peer: PeerId, topic: str, now: float) -> None:
        """The peer left the mesh of a topic; what it owed there stays (P3b)."""
        self._leave_mesh(self._conduct(peer, topic), now)

    def first(self, peer: PeerId, topic: str) -> None:
        """The peer was the first to deliver a valid message."""
        conduct = self._conduct(peer, topic)
        conduct.first = min(conduct.first + 1, conduct.rules.first_cap)
        self._count_mesh(conduct)

    def copy(self, peer: PeerId, topic: str, age_s: float) -> None:
        """The peer delivered another copy, `age_s` after the first one."""
        conduct = self._conduct(peer, topic)
        if age_s <= conduct.rules.mesh_window_s:
            self._count_mesh(conduct)

    def invalid(self, peer: PeerId, topic: str) -> None:
        """The peer delivered an invalid message."""
        self._conduct(peer, topic).invalid += 1

    def misbehaved(self, peer: PeerId, times: float = 1.0) -> None:
        """The peer broke a rule (P7)."""
        self._records[peer].behaviour += times

    def set_application(self, peer: PeerId, score: float) -> None:
        """Set P5."""
        self._records[peer].application = score

    def forget_topic(self, topic: str) -> None:
        """We left a topic."""
        for record in self._records.values():
            record.topics.pop(topic, None)

    def decay(self, now: float) -> None:
        """Forget a little: once per heartbeat. Cost: O(peers x topics)."""
        zero, params = self._params.zero, self._params
        for record in self._records.values():
            for conduct in record.topics.values():
                conduct.decay(zero)
            record.behaviour = _decayed(record.behaviour, params.behaviour_decay, zero)
        while self._retained and next(iter(self._retained.values()))[0] <= now:
            self._retained.popitem(last=False)

    def value(self, peer: PeerId, now: float) -> float:
        """Weigh it all."""
        params, record = self._params, self._records[peer]
        topics = sum(conduct.score(now) for conduct in record.topics.values())
        total = min(topics, params.topics_cap) + params.application_weight * record.application
        if record.address:
            surplus = self._addresses[record.address] - params.address_threshold
            total += params.address_weight * max(0, surplus) ** 2
        excess = max(0.0, record.behaviour - params.behaviour_threshold)
        return total + params.behaviour_weight * excess**2

    def _conduct(self, peer: PeerId, topic: str) -> _Conduct:
        topics = self._records[peer].topics
        conduct = topics.get(topic)
        if conduct is None:
            rules = self._params.topics.get(topic, self._params.topic)
            conduct = topics[topic] = _Conduct(rules)
        return conduct

    def _count_mesh(self, conduct: _Conduct) -> None:
        if conduct.mesh_since is not None:
            conduct.mesh = min(conduct.mesh + 1, conduct.rules.mesh_cap)

    def _leave_mesh(self, conduct: _Conduct, now: float) -> None:
        conduct.failure += conduct.deficit(now)
        conduct.mesh_since = None


def _decayed(value: float, factor: float, zero: float) -> float:
    value *= factor
    return value if value >= zero else 0.0
