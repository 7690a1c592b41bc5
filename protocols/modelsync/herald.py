"""Tells the other members of a lane that we are ready, and hears from them."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from protocols.modelsync.part import Census
from protocols.modelsync.roster import Roster
from protocols.modelsync.wire import READY, Certificate, Heard, Ready, Shape
from wire.errors import RemoteError, ShoalError
from wire.ids import PeerId
from wire.ports import Rpc

REPEAT_S = 1.0  # seconds between two announcements: who froze since is found out by the next
READY_WAIT_S = 2.0  # seconds for an answer to it; who does not answer is not waited for
REFUSALS_MAX = 256  # peers whose refusal is remembered
ASKED_MAX = 3  # announcements to one peer at a time: a dead one answers none of them
MESSAGE_MAX = 512  # characters kept of a refusal


class SchemaMismatch(ShoalError):
    """Another member's run of this name has other parameters or another codec."""

    code = "schema"
    hint = "give the run another --name, or start all its members with the same settings"


def is_alike(ready: Ready, shape: Shape, mine: Ready | None) -> bool:
    """True if it may be of our run: sizes follow the state from round to round, up to the lane's,
    but before the first round they are alike.
    """
    if mine is not None and mine.round == ready.round == 0:
        return ready.shape == mine.shape
    most = shape.elements
    return ready.elements <= most and ready.shape._replace(elements=most) == shape


@dataclass
class Herald:
    """`ready` returns what we announce now, if anything; `learn` takes what peers answer."""

    rpc: Rpc
    roster: Roster
    census: Callable[[], Census]
    ready: Callable[[], Ready | None]
    learn: Callable[[PeerId, Heard], None]
    _wake: trio.Event = field(default_factory=trio.Event)
    _asked: Counter[PeerId] = field(default_factory=Counter[PeerId])
    _refusals: dict[PeerId, str] = field(default_factory=dict[PeerId, str])

    async def run(self) -> None:
        """Announce until cancelled: at once when poked, and again every `REPEAT_S`."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                ready = self.ready()
                if ready is not None:
                    census = self.census()
                    for peer in {*census.live, *census.others} - {self.rpc.peer}:
                        if self._asked[peer] < ASKED_MAX:
                            nursery.start_soon(self._tell, peer, ready)
                with trio.move_on_after(REPEAT_S if ready is not None else math.inf):
                    await self._wake.wait()

    def poke(self) -> None:
        """What we announce has changed."""
        self._wake.set()

    def start_round(self) -> None:
        """What was refused before does not count any more."""
        self._refusals.clear()

    def check(self, certificate: Certificate | None) -> None:
        """Believe that we do not fit the run if most of its other members say so, and it has not
        had a round with us. Raises SchemaMismatch.
        """
        if certificate is not None and self.rpc.peer in certificate.members:
            return
        others = set(self.census().live) - {self.rpc.peer}
        said = sorted(others & self._refusals.keys())
        if 2 * len(said) > len(others):
            raise SchemaMismatch(self._refusals[said[0]])

    async def _tell(self, peer: PeerId, ready: Ready) -> None:
        heard = Heard()
        self._asked[peer] += 1
        try:
            heard = await self.rpc.call(peer, READY, ready, timeout_s=READY_WAIT_S)
        except RemoteError as error:
            self.roster.lose(peer)  # not in the run, or in another of the same name
            if error.code == SchemaMismatch.code and len(self._refusals) < REFUSALS_MAX:
                self._refusals[peer] = str(error)[:MESSAGE_MAX]
        except ShoalError:
            self.roster.lose(peer)
        else:
            self.roster.meet(peer)
        finally:
            self._asked[peer] -= 1
            self._asked += Counter()  # forgets whom we ask nothing
        self.learn(peer, heard)
