"""IHAVE: at once for large messages, and with every heartbeat to some peers outside the mesh."""

import math
import random

from protocols.channels.effects import Outbox
from protocols.channels.params import Params
from protocols.channels.peers import Peer


class Announcements:
    """Tells peers what we have."""

    def __init__(self, params: Params, rng: random.Random, outbox: Outbox) -> None:
        self._params, self._rng, self._out = params, rng, outbox
        self._news: list[tuple[str, bytes, list[Peer]]] = []
        self._not_before = 0.0

    @property
    def deadline(self) -> float:
        """When `flush` has something to send."""
        return self._not_before if self._news else math.inf

    def soon(self, topic: str, name: bytes, peers: list[Peer], now: float) -> None:
        """Announce a message to some peers: now, or together with others a moment later."""
        self._news.append((topic, name, peers))
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send what waits, if it may: other implementations read 10 IHAVE per heartbeat."""
        if not self._news or now < self._not_before:
            return
        for topic, name, peers in self._news:
            for peer in peers:
                if name not in peer.known and not peer.is_dropped:
                    self._out.draft(peer.peer).announce(topic, name)
        self._news.clear()
        self._not_before = now + self._params.announce_gap_s

    def gossip(self, topic: str, names: list[bytes], outsiders: list[Peer]) -> None:
        """With the heartbeat: tell some of the topic's peers outside the mesh what came lately."""
        params = self._params
        others = [peer for peer in outsiders if peer.score >= params.scores.gossip]
        count = max(params.d_lazy, math.ceil(params.gossip_factor * len(others)))
        for peer in self._rng.sample(others, min(count, len(others))):
            chosen = names
            if len(names) > params.announced_max:  # each peer another part of them
                chosen = self._rng.sample(names, params.announced_max)
            for name in chosen:
                self._out.draft(peer.peer).announce(topic, name)
