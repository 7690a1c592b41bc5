"""Peers that we stay connected to, whoever wants it: dialled now and whenever they are gone."""

import logging
import math
import random
from dataclasses import dataclass, field

import trio

from node.host.backoff import Backoff
from node.host.dialler import Dialler
from node.host.peers import Peers
from wire.errors import PeerError, PeerUnreachable
from wire.ids import PeerId

KEPT_MAX = 256  # peers that we stay connected to; beyond, a node is a hub that nobody needs
GONE_S = 3600.0  # a kept peer that was away for so long, or never here, loses its place to another
STABLE_S = 30.0  # a connection that lived for longer was a good one: the back-off begins anew
YIELD_S = 0.2  # of two that want each other, the larger peer ID lets the other dial first

log = logging.getLogger(__name__)


@dataclass
class _Kept:
    """A peer that we stay connected to."""

    backoff: Backoff
    left_at: float = -math.inf  # when the last connection ended; never was there one
    reasons: set[str] = field(default_factory=set[str])  # while there is one, it is kept
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class Keeping:
    """One per host. `begin` once the dialler has its nursery."""

    def __init__(self, own: PeerId, dialler: Dialler, peers: Peers) -> None:
        self._own, self._dialler, self._peers = own, dialler, peers
        self._kept: dict[PeerId, _Kept] = {}

    def begin(self) -> None:
        """Dial those who were asked for before."""
        for peer, kept in self._kept.items():
            self._start(peer, kept)

    def keep(self, peer: PeerId, addrs: list[str], reason: str) -> None:
        """Stay connected to a peer; see `LibP2pHost.keep`."""
        known = set(self._dialler.addresses_of(peer))
        self._dialler.learn(peer, addrs)
        if kept := self._kept.get(peer):
            if not known.issuperset(self._dialler.addresses_of(peer)):
                kept.news.unpark_all()  # it moved: do not wait for the back-off
        elif peer != self._own and self._has_place():
            kept = self._kept[peer] = _Kept(Backoff())
            self._start(peer, kept)
        if kept := self._kept.get(peer):
            kept.reasons.add(reason)

    def forget(self, peer: PeerId, reason: str) -> None:
        """Stop keeping a peer for that reason; a connection that is there stays."""
        kept = self._kept.get(peer)
        if kept is None:
            return
        kept.reasons.discard(reason)
        if not kept.reasons:
            del self._kept[peer]
            kept.scope.cancel()

    def hurry(self) -> None:
        """The network is another: dial now, and try often again."""
        for kept in self._kept.values():
            kept.backoff.reset()
            kept.news.unpark_all()

    def _start(self, peer: PeerId, kept: _Kept) -> None:
        if self._dialler.nursery is not None:
            self._dialler.nursery.start_soon(self._keep, peer, kept)

    async def _keep(self, peer: PeerId, kept: _Kept) -> None:
        with kept.scope:
            if self._own > peer:
                await trio.sleep(YIELD_S)
            while True:
                since, reason = trio.current_time(), "the connection ended"
                try:
                    await self._dialler.reach(peer)
                except (PeerUnreachable, PeerError) as error:
                    reason = str(error)
                while self._peers.best(peer) is not None:
                    await self._peers.changed.park()
                    kept.left_at = trio.current_time()
                if trio.current_time() - since > STABLE_S:
                    kept.backoff.reset()
                wait_s = kept.backoff.after_failure(random.random())
                log.debug("keep.retry peer=%s in_s=%.2f %s", peer, wait_s, reason)
                with trio.move_on_after(wait_s):
                    await kept.news.park()

    def _has_place(self) -> bool:
        """Tell whether another peer can be kept, making room if there is somebody to let go."""
        if len(self._kept) < KEPT_MAX:
            return True
        for peer, kept in self._kept.items():  # who was kept first goes first
            is_gone = trio.current_time() - kept.left_at > GONE_S
            if is_gone and self._peers.best(peer) is None:
                del self._kept[peer]
                kept.scope.cancel()
                return True
        return False
