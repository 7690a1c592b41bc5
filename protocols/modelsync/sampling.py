"""Whose turn it is in a sampled run: MoDeST (de Vos et al., 2023), without its aggregators.

A round of a lane is made by the first members in an order that changes with the round, of those
that answer. Members that do not answer are skipped, so a run goes on while few of many are there.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from protocols.modelsync.wire import Ask, Round
from wire.codec import Message
from wire.errors import ShoalError
from wire.ids import PeerId
from wire.ports import Method, Rpc

PING_WAIT_S = 1.0  # seconds for a candidate to answer
PINGS_MAX = 32  # at a time
DEAD_S = 10.0  # seconds that one that did not answer is skipped without asking again
LOOK_S = 0.5  # seconds between two looks at whose turn it is


class Pong(Message, frozen=True):
    """The receiver takes part in the run; `round` is the one that it is to make next."""

    round: Round


PING = Method("modelsync.ping", Ask, Pong)


def sample_order(run: str, lane: int, round_: int, peers: Iterable[PeerId]) -> list[PeerId]:
    """Return peers in the order in which they are asked: by SHA-256(run, lane, round, peer)."""
    return sorted(
        peers, key=lambda p: hashlib.sha256(f"{run}\0{lane}\0{round_}\0{p}".encode()).digest()
    )


@dataclass
class Sampler:
    """Finds the sample of a round of one lane, as one node sees it.

    `candidates`: members by lease; before the first round, at least `min_members`. `is_over`: a
    certificate of that round, or of a later one, is in the store.
    """

    rpc: Rpc
    run: str
    lane: int
    size: int
    candidates: Callable[[], Iterable[PeerId]]
    is_over: Callable[[int], bool]
    min_members: int = 1
    sample: list[PeerId] = field(default_factory=list[PeerId])
    _dead_at: dict[PeerId, float] = field(default_factory=dict[PeerId, float])

    async def turn(self, round_: int, *, timeout_s: float) -> bool | None:
        """True: we are in the sample. False: the round is over. None: neither is so yet."""
        with trio.move_on_after(timeout_s):
            while True:
                if self.is_over(round_):
                    return False
                present = {*self.candidates(), self.rpc.peer}
                if round_ == 0 and len(present) < self.min_members:
                    await trio.sleep(LOOK_S)  # or the first to come would be the first sample
                    continue
                sample, later = await self._ask(round_, present)
                if 3 * later >= 2 * self.size:  # as many as make a round
                    return False
                if self.rpc.peer in sample:
                    self.sample = sample
                    return True
                await trio.sleep(LOOK_S)
        return None

    async def _ask(self, round_: int, present: set[PeerId]) -> tuple[list[PeerId], int]:
        """Return the first of those present that answer, and how many are in a later round."""
        order = sample_order(self.run, self.lane, round_, present)
        now = trio.current_time()
        self._dead_at = {p: at for p, at in self._dead_at.items() if at + DEAD_S > now}
        order = [peer for peer in order if peer not in self._dead_at]
        rounds: dict[PeerId, int] = {self.rpc.peer: 0}

        async def ping(peer: PeerId) -> None:
            ask = Ask(self.run, self.lane)
            try:
                rounds[peer] = (await self.rpc.call(peer, PING, ask, timeout_s=PING_WAIT_S)).round
            except ShoalError:
                self._dead_at[peer] = trio.current_time()

        sample = list[PeerId]()
        for start in range(0, len(order), PINGS_MAX):
            async with trio.open_nursery() as nursery:
                for peer in order[start : start + PINGS_MAX]:
                    if peer != self.rpc.peer:
                        nursery.start_soon(ping, peer)
            sample = [peer for peer in order[: start + PINGS_MAX] if peer in rounds][: self.size]
            if len(sample) == self.size:
                break
        return sample, sum(at > round_ for at in rounds.values())
