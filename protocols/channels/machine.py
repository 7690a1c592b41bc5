"""GossipSub 1.1 and 1.2 without I/O: meshes, announcements, scores.

Ours differs, on our side of the wire only: a large message is pushed to few mesh peers and
announced (IHAVE) at once to the others; an announced one is asked of one peer at a time; there is
no peer exchange, and no fanout, for a node floods what it publishes itself.
Source: github.com/libp2p/specs/pubsub/gossipsub v1.0, v1.1, v1.2.
"""

import math
import random

from protocols.channels.announcements import Announcements
from protocols.channels.effects import Drop, Effect, Outbox, Validate, Verdict
from protocols.channels.mcache import MessageCache, RecentIds, Seen
from protocols.channels.mesh import LeftMeshes, Mesh
from protocols.channels.params import Params
from protocols.channels.peers import Peer, Subscribers
from protocols.channels.pending import Pending
from protocols.channels.scoring import Scores
from protocols.channels.wanted import Wanted
from protocols.channels.wire import PROTOCOLS, IHave, Message, Prune, Rpc, Subscription, author_of
from wire.errors import UsageError
from wire.ids import PeerId

_KNOWN_BEATS = 3  # heartbeats between two turns of what peers know: it is kept 3 to 6 of them
_BACKOFF_MAX_S = 3600  # a peer that asks for more gets this much; it is welcome to stay away
_FRAMING_FAULTS = 8.0  # bytes that are no RPC: two such frames are enough to be dropped


class GossipSub:
    """One node's part in the gossip. Every method returns effects, to be applied in order."""

    def __init__(self, own: PeerId, params: Params, rng: random.Random) -> None:
        self._author, self._params, self._rng = author_of(own), params, rng
        self._peers: dict[PeerId, Peer] = {}
        self._subscribers = Subscribers(params.peer_topics_max)
        self._meshes: dict[str, Mesh] = {}  # our subscriptions
        self._left = LeftMeshes(params.topics_max)
        self._seen = Seen(params.seen_s, params.seen_max)
        self._cache = MessageCache(params.history_beats, params.gossip_beats, params.cache_bytes)
        self._pending = Pending(params.pending_max, params.pending_bytes)
        self._wanted = Wanted(params.ask_delay_s, params.ask_again_s, params.follow_up_s)
        self._scores = Scores(params.scores)
        self._out = Outbox()
        self._announcements = Announcements(params, rng, self._out)
        self._beat_at, self._beats = math.inf, 0
        self.copies = self.limited = 0  # messages that came again; over a limit, and not read

    @property
    def deadline(self) -> float:
        """Time of the next needed `tick`; infinity before the first peer."""
        return min(self._beat_at, self._wanted.deadline, self._announcements.deadline)

    def peer_up(
        self, peer: PeerId, version: str, now: float, *, outbound: bool = False, address: str = ""
    ) -> list[Effect]:
        """A peer's stream is open. The first effect sends it our subscriptions.

        version: protocol of the stream, one of `wire.PROTOCOLS`. outbound: we dialled it.
        address: its public IP address, for scoring; "" if it is private or unknown.
        """
        if peer in self._peers:
            return []
        if len(self._peers) >= self._params.peers_max:
            return [Drop(peer, f"more than {self._params.peers_max} peers")]
        known = RecentIds(self._params.dont_wants)
        state = Peer(peer, author_of(peer), version == PROTOCOLS[0], outbound, known, now)
        self._peers[peer] = state
        self._scores.up(peer, address)
        self._judge(state, now)
        if self._beat_at == math.inf:
            self._beat_at = now + self._params.first_heartbeat_s
        if self._meshes and not state.is_dropped:
            topics = tuple(Subscription(topic, True) for topic in self._meshes)
            self._out.send((peer,), Rpc(subscriptions=topics))
        return self._out.take()

    def peer_down(self, peer: PeerId, now: float) -> list[Effect]:
        """A peer's stream is over. Its score is kept for a while if it is bad."""
        state = self._peers.pop(peer, None)
        if state is not None:
            self._subscribers.remove_all(state)
            for mesh in self._meshes.values():
                mesh.members.pop(peer, None)
            self._scores.down(peer, now)
            self._wanted.forget(peer)
        return self._out.take()

    def set_application_score(self, peer: PeerId, score: float) -> None:
        """Set P5, the application's own opinion of a peer that is up; 0 to begin with."""
        if peer in self._peers:
            self._scores.set_application(peer, score)

    def broke_framing(self, peer: PeerId, now: float) -> list[Effect]:
        """A peer sent bytes that `wire.decode` refused."""
        state = self._peers.get(peer)
        if state is not None:
            self._scores.misbehaved(peer, _FRAMING_FAULTS)
            self._judge(state, now)
        return self._out.take()

    def subscribe(self, topic: str, now: float) -> list[Effect]:
        """Join a topic. Raises UsageError over `Params.topics_max`."""
        if topic in self._meshes:
            return []
        if len(self._meshes) >= self._params.topics_max:
            raise UsageError(f"more than {self._params.topics_max} subscriptions")
        self._meshes[topic] = self._left.take(topic) or Mesh(topic, self._params, self._rng)
        self._tell_all(Subscription(topic, True))
        self._balance(self._meshes[topic], now, opportunistic=False)
        return self._out.take()

    def unsubscribe(self, topic: str, now: float) -> list[Effect]:
        """Leave a topic."""
        mesh = self._meshes.pop(topic, None)
        if mesh is None:
            return []
        self._tell_all(Subscription(topic, False))
        for peer in mesh.members:
            self._out.draft(peer).prune.append(Prune(topic, self._params.backoff_leave_s))
        self._left.put(mesh, now)
        self._scores.forget_topic(topic)
        for state in self._peers.values():
            state.buckets.pop(topic, None)
        return self._out.take()

    def publish(self, message: Message, now: float) -> list[Effect]:
        """Send a message of our own (signed already). It does not come back as Validate."""
        params, name = self._params, message.id
        self._seen.add(name, now)
        self._cache.put(message)
        mesh = self._meshes.get(message.topic)
        everybody = self._subscribers.of(message.topic)
        targets = [peer for peer in everybody if peer.score >= params.scores.publish]
        if len(message.data) < params.large_min:
            self._out.send(tuple(peer.peer for peer in targets), Rpc(messages=(message,)))
        else:
            self._rng.shuffle(targets)
            if mesh is not None:
                targets.sort(key=lambda peer: peer.peer not in mesh.members)
            self._push(message, targets[: params.large_told], params.d, now)
        return self._out.take()

    def receive(self, peer: PeerId, rpc: Rpc, now: float) -> list[Effect]:
        """Handle what a peer sent. RPCs of peers that are not up, or dropped, are ignored."""
        state = self._peers.get(peer)
        if state is None or state.is_dropped:
            return []
        for message in rpc.messages:
            self._take(state, message, now)
        for subscription in rpc.subscriptions:
            self._on_subscription(state, subscription, now)
        for topic in rpc.graft:
            self._on_graft(state, topic, now)
        for prune in rpc.prune:
            self._on_prune(state, prune, now)
        if rpc.idontwant:
            self._on_idontwant(state, rpc.idontwant)
        for ihave in rpc.ihave:
            self._on_ihave(state, ihave, now)
        if rpc.iwant:
            self._on_iwant(state, rpc.iwant)
        return self._out.take()

    def validated(self, message_id: bytes, verdict: Verdict, now: float) -> list[Effect]:
        """Tell the outcome of a `Validate`. Unknown ids are ignored."""
        outcome = self._pending.finish(message_id, is_final=verdict is not Verdict.REJECT)
        if outcome is None:
            return []
        first, message = outcome.peer, outcome.message
        if verdict is Verdict.REJECT:
            for peer in (first, *outcome.same):
                self._invalid(peer, message.topic, now)
            if outcome.other is not None:
                self._out.effects.append(Validate(*outcome.other, message_id))
            return self._out.take()
        self._seen.add(message_id, now)
        self._wanted.arrived(message_id, first)  # a forgery keeps no promise
        mesh = self._meshes.get(message.topic)
        if verdict is Verdict.ACCEPT and mesh is not None:
            if first in self._peers:
                self._scores.first(first, message.topic)
            self._cache.put(message)
            self._forward(mesh, message, message_id, first, now)
        return self._out.take()

    def _take(self, state: Peer, message: Message, now: float) -> None:
        name = message.author + message.seqno
        since = self._seen.get(name)
        if since is not None:
            self.copies += 1
            if self._scores.counts_copies and message.topic in self._meshes:
                self._scores.copy(state.peer, message.topic, now - since)
            return
        mesh = self._meshes.get(message.topic)
        if mesh is None or message.author == self._author:
            return  # not asked for; or ours, from before a restart
        if self._pending.join(name, state.peer, message):
            self.copies += 1
            return
        limits = mesh.limits
        if not message.author or not message.seqno or len(message.data) > limits.payload_max:
            self._invalid(state.peer, message.topic, now)
            return
        is_within = state.take_token(message.topic, limits.messages_per_s, limits.burst, now)
        if not is_within or not self._pending.begin(name, state.peer, message):
            self.limited += 1
            self._wanted.excuse(name, state.peer)
            return  # not seen: an announcement brings it back
        if len(message.data) >= self._params.dont_want_min:
            others = mesh.members.values()
            peers = [p.peer for p in others if p.knows_idontwant and p is not state]
            self._out.send(tuple(peers), Rpc(idontwant=(name,)))
        self._out.effects.append(Validate(state.peer, message, name))

    def _forward(
        self, mesh: Mesh, message: Message, name: bytes, source: PeerId, now: float
    ) -> None:
        author = message.author
        targets = [
            peer
            for peer in mesh.members.values()
            if peer.peer != source and peer.author != author and name not in peer.known
        ]
        if len(message.data) < self._params.large_min:
            peers = tuple([peer.peer for peer in targets])
            self._out.send(peers, Rpc(messages=(message,)))
            return
        # Each member that was ahead of us shows how far it has spread: a push is likely a copy.
        ahead = sum(name in peer.known for peer in mesh.members.values())
        self._rng.shuffle(targets)
        pushes = self._params.large_pushes - ahead * self._params.large_pushes_ahead
        self._push(message, targets, pushes, now)

    def _push(self, message: Message, targets: list[Peer], count: int, now: float) -> None:
        """Send a large message to the first `count` targets, and announce it to the others."""
        count = max(0, count)
        self._out.send(tuple(p.peer for p in targets[:count]), Rpc(messages=(message,)))
        self._announcements.soon(message.topic, message.id, targets[count:], now)

    # Control.

    def _on_subscription(self, state: Peer, subscription: Subscription, now: float) -> None:
        if subscription.subscribes:
            self._subscribers.add(subscription.topic, state)
            return
        self._subscribers.remove(subscription.topic, state)
        if subscription.topic in self._meshes:
            self._leave(self._meshes[subscription.topic], state, now)

    def _on_graft(self, state: Peer, topic: str, now: float) -> None:
        mesh = self._meshes.get(topic)
        if mesh is None or state.peer in mesh.members:
            return  # of an unknown topic: no answer, which would make a flood of two
        faults = mesh.backoff_faults(state, now)
        if not faults and not mesh.refuses(state):
            self._subscribers.add(topic, state)  # it is one, whatever it said
            mesh.members[state.peer] = state
            self._scores.graft(state.peer, topic, now)
            return
        mesh.back_off(state.peer, self._params.backoff_s, now)
        self._out.draft(state.peer).prune.append(Prune(topic, self._params.backoff_s))
        if faults:
            self._scores.misbehaved(state.peer, faults)
            self._judge(state, now)

    def _on_prune(self, state: Peer, prune: Prune, now: float) -> None:
        mesh = self._meshes.get(prune.topic)
        if mesh is not None:
            self._leave(mesh, state, now)
            backoff_s = min(prune.backoff_s or self._params.backoff_s, _BACKOFF_MAX_S)
            mesh.back_off(state.peer, backoff_s, now)

    def _on_idontwant(self, state: Peer, names: tuple[bytes, ...]) -> None:
        for name in names:
            state.dont_wants += 1
            if state.dont_wants > self._params.dont_wants:
                return
            if name not in self._seen:  # else it is forwarded already
                state.known.add(name)

    def _on_ihave(self, state: Peer, ihave: IHave, now: float) -> None:
        params = self._params
        state.ihaves += 1
        if (
            state.ihaves > params.ihave_messages
            or state.score < params.scores.gossip
            or ihave.topic not in self._meshes
        ):
            return
        for name in ihave.ids:
            if name in self._seen:
                continue
            if state.asked >= params.ihave_ids:
                return
            state.asked += 1
            state.known.add(name)
            if name not in self._pending and not self._wanted.announced(name, state.peer, now):
                return

    def _on_iwant(self, state: Peer, names: tuple[bytes, ...]) -> None:
        params = self._params
        if state.score < params.scores.gossip:
            return
        for name in names:
            state.iwants += 1
            if state.iwants > params.iwant_ids:
                return
            given = self._cache.give(name, state.peer, params.retransmissions)
            if given is not None and state.given_bytes < params.iwant_bytes:
                state.given_bytes += len(given.raw)
                self._out.send((state.peer,), Rpc(messages=(given,)))

    # Time.

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: announcements, requests for announced messages, the heartbeat."""
        self._announcements.flush(now)
        for peer, names in self._wanted.due(now, self._pending).items():
            state = self._peers.get(peer)
            if state is not None and state.score >= self._params.scores.gossip:
                self._out.draft(peer).iwant += names
        if now >= self._beat_at:
            self._beat_at = now + self._params.heartbeat_s
            self._heartbeat(now)
        return self._out.take()

    def _heartbeat(self, now: float) -> None:
        self._beats += 1
        for peer in self._wanted.take_broken():
            if peer in self._peers:
                self._scores.misbehaved(peer)
        self._scores.decay(now)
        for state in self._peers.values():
            state.new_heartbeat()
            self._judge(state, now)
            if self._beats % _KNOWN_BEATS == 0:
                state.known.turn()
        opportunistic = self._beats % self._params.opportunistic_beats == 0
        for mesh in self._meshes.values():
            mesh.expire(now)
            self._balance(mesh, now, opportunistic=opportunistic)
        for topic, names in self._cache.recent().items():  # also of topics we only publish to
            inside = self._meshes[topic].members if topic in self._meshes else ()
            outside = [p for p in self._subscribers.of(topic) if p.peer not in inside]
            self._announcements.gossip(topic, names, outside)
        self._cache.shift()
        self._seen.expire(now)
        self._left.expire(now)

    def _balance(self, mesh: Mesh, now: float, *, opportunistic: bool) -> None:
        changes = mesh.balance(self._subscribers.of(mesh.topic), now, opportunistic=opportunistic)
        for state in changes.grafts:
            self._scores.graft(state.peer, mesh.topic, now)
            self._out.draft(state.peer).graft.append(mesh.topic)
        for state in changes.prunes:
            self._scores.prune(state.peer, mesh.topic, now)
            self._out.draft(state.peer).prune.append(Prune(mesh.topic, self._params.backoff_s))

    # Scores.

    def _invalid(self, peer: PeerId, topic: str, now: float) -> None:
        if peer in self._peers:
            self._scores.invalid(peer, topic)
            self._judge(self._peers[peer], now)

    def _judge(self, state: Peer, now: float) -> None:
        """Weigh a peer anew. Below the graylist threshold it is dropped, once."""
        state.score = self._scores.value(state.peer, now)
        if state.score < self._params.scores.graylist and not state.is_dropped:
            state.is_dropped = True
            for mesh in self._meshes.values():
                self._leave(mesh, state, now)
            self._out.forget(state.peer)
            self._out.effects.append(Drop(state.peer, f"score {state.score:.0f}"))

    def _leave(self, mesh: Mesh, state: Peer, now: float) -> None:
        if mesh.members.pop(state.peer, None) is not None:
            self._scores.prune(state.peer, mesh.topic, now)

    def _tell_all(self, subscription: Subscription) -> None:
        self._out.send(tuple(self._peers), Rpc(subscriptions=(subscription,)))

    # For metrics and `shoal channels`.

    def mesh(self, topic: str) -> frozenset[PeerId]:
        """Peers that we exchange a topic's messages with."""
        mesh = self._meshes.get(topic)
        return frozenset(mesh.members) if mesh is not None else frozenset()

    def subscribers(self, topic: str) -> int:
        """Connected peers that subscribe to a topic."""
        return self._subscribers.count(topic)

    def score(self, peer: PeerId) -> float:
        """What we think of a peer; 0 of one that we do not know."""
        state = self._peers.get(peer)
        return state.score if state is not None else 0.0
