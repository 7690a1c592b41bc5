"""The mesh of one topic: who is in it, who may enter, and how a heartbeat balances it.

Source: gossipsub v1.1, sections on PRUNE back-off, score-based and outbound-preserving
over-subscription management, opportunistic grafting.
"""

import random
import statistics
from dataclasses import dataclass

from protocols.channels.params import Params
from protocols.channels.peers import Peer
from wire.ids import PeerId


@dataclass(frozen=True)
class Changes:
    """What a heartbeat changes in a mesh."""

    grafts: list[Peer]
    prunes: list[Peer]


class Mesh:
    """Peers that one topic's messages are exchanged with."""

    def __init__(self, topic: str, params: Params, rng: random.Random) -> None:
        self.topic = topic
        self.limits = params.topic_limits.get(topic, params.limits)
        self.members: dict[PeerId, Peer] = {}  # in order of entry: runs can be repeated
        self._params, self._rng = params, rng
        self._chosen: set[PeerId] = set()  # members that we chose; the others chose us
        self._backoffs: dict[PeerId, tuple[float, float]] = {}  # (until, since)

    def back_off(self, peer: PeerId, seconds: float, now: float) -> None:
        """No GRAFT between us and a peer for a while; a longer back-off stays."""
        until = max(now + seconds, self._backoffs.pop(peer, (0.0, 0.0))[0])
        if len(self._backoffs) >= self._params.backoffs_max:
            del self._backoffs[next(iter(self._backoffs))]
        self._backoffs[peer] = (until, now)

    def backoff_faults(self, peer: Peer, now: float) -> int:
        """Count the rules that a GRAFT breaks now: 0, 1 in back-off, 2 right after the PRUNE.

        A peer that has begun anew since does not know of it: nodes are restarted.
        """
        until, since = self._backoffs.get(peer.peer, (0.0, 0.0))
        if now >= until or since < peer.came:
            return 0
        return 2 if now < since + self._params.graft_flood_s else 1

    def refuses(self, peer: Peer) -> bool:
        """Tell whether a peer that GRAFTs stays out: by its score, or because the mesh is full.

        A full mesh still takes peers that we dialled, so that it cannot be taken from outside.
        """
        return peer.score < 0 or (len(self.members) >= self._params.d_high and not peer.is_outbound)

    def balance(self, subscribers: list[Peer], now: float, *, opportunistic: bool) -> Changes:
        """Choose whom to take in and whom to put out. Does it to `members` as well."""
        params, members = self._params, self.members
        prunes = [peer for peer in members.values() if peer.score < 0]
        if len(members) > params.d_high:
            prunes += self._surplus([peer for peer in members.values() if peer.score >= 0])
        for peer in prunes:
            del members[peer.peer]
            self.back_off(peer.peer, params.backoff_s, now)
        grafts: list[Peer] = []
        if len(members) < params.d_low:
            grafts += self._enter(self._candidates(subscribers, now), params.d - len(members))
        outbound = sum(peer.is_outbound for peer in members.values())
        if len(members) >= params.d_low and outbound < params.d_out:
            candidates = [p for p in self._candidates(subscribers, now) if p.is_outbound]
            grafts += self._enter(candidates, params.d_out - outbound)
        chosen = self._count_chosen()
        if len(members) >= params.d_low and chosen < params.d_chosen:
            grafts += self._enter(self._candidates(subscribers, now), params.d_chosen - chosen)
        if opportunistic and len(members) > 1:
            median = statistics.median(peer.score for peer in members.values())
            if median < params.scores.opportunistic:
                better = [p for p in self._candidates(subscribers, now) if p.score > median]
                grafts += self._enter(better, params.opportunistic_peers)
        return Changes(grafts, prunes)

    def expire(self, now: float) -> None:
        """Forget back-offs that are over for certain."""
        over = now - self._params.heartbeat_s
        for peer in [peer for peer, (until, _) in self._backoffs.items() if until < over]:
            del self._backoffs[peer]

    def leave(self, now: float) -> None:
        """We leave the topic, and tell all members to stay away for a while: so do we."""
        for peer in self.members:
            self.back_off(peer, self._params.backoff_leave_s, now)
        self.members.clear()

    @property
    def has_backoffs(self) -> bool:
        """Whether anybody is to be left alone."""
        return bool(self._backoffs)

    def _count_chosen(self) -> int:
        self._chosen &= self.members.keys()
        return len(self._chosen)

    def _candidates(self, subscribers: list[Peer], now: float) -> list[Peer]:
        # A heartbeat more than told: the other side's clock may be behind.
        over = now - self._params.heartbeat_s
        return [
            peer
            for peer in subscribers
            if peer.peer not in self.members
            and peer.score >= 0
            and not peer.is_dropped
            and self._backoffs.get(peer.peer, (0.0, 0.0))[0] <= max(over, 0.0)
        ]

    def _enter(self, candidates: list[Peer], count: int) -> list[Peer]:
        chosen = self._rng.sample(candidates, min(count, len(candidates)))
        self._count_chosen()  # who left before is not chosen any more
        self.members.update((peer.peer, peer) for peer in chosen)
        self._chosen.update(peer.peer for peer in chosen)
        return chosen

    def _surplus(self, members: list[Peer]) -> list[Peer]:
        """Choose whom to put out, down to D. The best by score stay, and D_out outbound ones."""
        params = self._params
        self._rng.shuffle(members)
        members.sort(key=lambda peer: peer.score, reverse=True)
        best, rest = members[: params.d_score], members[params.d_score :]
        self._rng.shuffle(rest)
        missing = params.d_out - sum(peer.is_outbound for peer in best)
        outbound = [peer for peer in rest if peer.is_outbound][: max(0, missing)]
        kept = best + outbound
        kept += [peer for peer in rest if peer not in outbound][: max(0, params.d - len(kept))]
        return [peer for peer in members if peer not in kept]


class LeftMeshes:
    """Meshes of topics that we have left: their back-offs hold if we come back. Bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._meshes: dict[str, Mesh] = {}

    def put(self, mesh: Mesh, now: float) -> None:
        """Leave a mesh; the one that was left first makes room."""
        mesh.leave(now)
        if len(self._meshes) >= self._limit:
            del self._meshes[next(iter(self._meshes))]
        self._meshes[mesh.topic] = mesh

    def take(self, topic: str) -> Mesh | None:
        """Return to a topic."""
        return self._meshes.pop(topic, None)

    def expire(self, now: float) -> None:
        """Forget those whose back-offs are over."""
        for topic, mesh in list(self._meshes.items()):
            mesh.expire(now)
            if not mesh.has_backoffs:
                del self._meshes[topic]
