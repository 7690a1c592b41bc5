"""Where members of a run and hosts of a model meet when the store does not say: the DHT.

Who takes part puts its addresses under `/shoal/multi/run/NAME` or `/shoal/multi/model/NAME`. Who
knows of nobody else there asks for them and connects: the store tells the rest.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec
import structlog
import trio
from msgspec import Meta

from dht.messages import Value
from node.host.addresses import ADDRESS_MAX
from wire import codec
from wire.errors import BadMessage, ShoalError
from wire.ids import PeerId

PREFIX = "/shoal/multi/"
LOOK_S = 2.0  # between two looks at what we take part in, and who is alone
PATIENCE_S = 5.0  # somebody alone may wait for the store, which is told in a second or two
AGAIN_S = (10.0, 600.0)  # until the DHT is asked again for the same name: doubled each time
ASKED_MAX = 4  # names that are asked for in a round
TRIED_MAX = 8  # of those that say they are there, chosen by chance: liars are cheap
FIND_S = 10.0  # for one search
CONNECT_S = 5.0  # to one of them
PLACE_MAX = 4096  # bytes of one value
ADDRESSES_MAX = 8


Names = Callable[[], Iterable[str]]


class _Place(codec.Message, frozen=True):
    """The value: where its author can be dialled; none, if it takes part no more."""

    addrs: Annotated[
        list[Annotated[str, Meta(max_length=ADDRESS_MAX)]], Meta(max_length=ADDRESSES_MAX)
    ]


_decoder = msgspec.msgpack.Decoder(_Place)
_log = structlog.get_logger("rendezvous")


class Values(Protocol):
    """What is needed of the DHT."""

    @property
    def contacts(self) -> int:
        """How many servers are in our table."""
        ...

    def published(self) -> list[Value]:
        """Our own values, which are stored again and again."""
        ...

    async def get(self, name: bytes, /) -> tuple[Value, ...]:
        """Return the newest value of each author."""
        ...

    async def put_multi(self, name: str, data: bytes, /) -> object:
        """Store ours."""
        ...

    async def forget(self, name: bytes, /) -> None:
        """Store ours no more."""
        ...


class Connector(Protocol):
    """What is needed of the host."""

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        ...

    def connected(self) -> list[PeerId]:
        """Peers that we hold a connection to now."""
        ...

    async def connect(self, target: PeerId, addrs: list[str], /) -> object:
        """Connect to a peer. Raises ShoalError."""
        ...


@dataclass
class _Asked:
    """When a name may be asked for again, and how long after that."""

    due_s: float
    pause_s: float = AGAIN_S[0]


class Rendezvous:
    """Kinds are "run" and "model"; a name is "KIND/NAME" from here on."""

    def __init__(
        self,
        dht: Values,
        host: Connector,
        addresses: Callable[[], list[str]],
        kinds: Mapping[str, tuple[Names, Names]],
    ) -> None:
        """kinds: of each, what this node takes part in, and where it knows of nobody else."""
        self._dht, self._host, self._addresses, self._kinds = dht, host, addresses, kinds
        self._asked: dict[str, _Asked] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Say where we are, and look for others where we are alone, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(LOOK_S)
            if self._dht.contacts:
                await self._tell()
                await self._look()

    async def find(self, kind: str, name: str) -> int:
        """Connect to those who take part in something, by the DHT; how many are there now."""
        return await self._find(f"{kind}/{name}")

    # --- inside ----------------------------------------------------------------------------------

    async def _find(self, name: str) -> int:
        with trio.move_on_after(FIND_S):
            try:
                values = await self._dht.get((PREFIX + name).encode())
            except ShoalError:
                return 0
            places = {v.author: _addresses_in(v.data) for v in values if v.author is not None}
            places = {peer: addrs for peer, addrs in places.items() if addrs}
            places.pop(self._host.peer, None)
            tried = random.sample(sorted(places), min(TRIED_MAX, len(places)))
            async with trio.open_nursery() as nursery:
                for peer in tried:
                    nursery.start_soon(self._connect, peer, places[peer])
            found = len(set(tried) & set(self._host.connected()))
            _log.info("rendezvous", name=name, told=len(places), connected=found)
            return found
        return 0

    async def _tell(self) -> None:
        """Put what is new, and once more what is over: with no addresses in it."""
        here = {f"{PREFIX}{kind}/{n}" for kind, (names, _) in self._kinds.items() for n in names()}
        named = f"/p2p/{self._host.peer}"  # the author of the value says it
        data = codec.encode(_Place(_fitting(a.removesuffix(named) for a in self._addresses())))
        ours = tuple(f"{PREFIX}{kind}/" for kind in self._kinds)
        told = {value.name.decode(): value.data for value in self._dht.published()}
        for name in here:
            if told.get(name) != data:
                await self._put(name, data)
        for name in told:
            if name.startswith(ours) and name not in here:
                await self._put(name, codec.encode(_Place([])))
                await self._dht.forget(name.encode())

    async def _put(self, name: str, data: bytes) -> None:
        try:
            await self._dht.put_multi(name.removeprefix(PREFIX), data)
        except ShoalError as error:
            _log.debug("rendezvous.not_put", name=name, error=error)

    async def _look(self) -> None:
        now = trio.current_time()
        alone = {f"{kind}/{n}" for kind, (_, names) in self._kinds.items() for n in names()}
        self._asked = {name: one for name, one in self._asked.items() if name in alone}
        for name in alone:
            self._asked.setdefault(name, _Asked(now + PATIENCE_S))
        due = [name for name, one in self._asked.items() if one.due_s <= now]
        for name in sorted(due, key=lambda name: self._asked[name].due_s)[:ASKED_MAX]:
            await self._find(name)
            one = self._asked[name]
            one.due_s = trio.current_time() + one.pause_s
            one.pause_s = min(2 * one.pause_s, AGAIN_S[1])

    async def _connect(self, peer: PeerId, addrs: list[str]) -> None:
        with trio.move_on_after(CONNECT_S):
            try:
                await self._host.connect(peer, addrs)
            except ShoalError as error:
                _log.debug("rendezvous.not_there", peer=peer, error=error)


def _fitting(addrs: Iterable[str]) -> list[str]:
    return [one for one in addrs if len(one) <= ADDRESS_MAX][:ADDRESSES_MAX]


def _addresses_in(data: bytes) -> list[str]:
    """Read a value; [] if it is none of ours."""
    try:
        return list(codec.decode(data, _decoder, PLACE_MAX).addrs)
    except BadMessage:
        return []
