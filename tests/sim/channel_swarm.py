"""Real channel services on simulated hosts, and what each program heard."""

import random
from dataclasses import dataclass, field

import trio

from protocols.channels.history import Keep
from protocols.channels.params import Params
from protocols.channels.policy import Policy
from protocols.channels.reference import Blobs
from protocols.channels.service import ChannelService
from protocols.channels.subscription import Received, Subscription
from tests.sim.net import Net
from tests.sim.replicas import SimClock, in_place, signer
from wire.errors import NotFound
from wire.ids import PeerId, Signer

TOPIC = "news"


@dataclass
class SimBlobs:
    """The blob stores of a swarm as one: a peer has what it stored or fetched. Not the real one,
    which is another protocol's: what is tested is whom channels ask, and when.
    """

    here: dict[PeerId, dict[str, bytes]] = field(default_factory=dict[PeerId, dict[str, bytes]])
    asked: list[tuple[PeerId, list[PeerId]]] = field(
        default_factory=list[tuple[PeerId, list[PeerId]]]
    )

    def of(self, peer: PeerId) -> "PeerBlobs":
        return PeerBlobs(self, peer)


@dataclass
class PeerBlobs:
    """One peer's view of them."""

    swarm: SimBlobs
    peer: PeerId

    async def put_bytes(self, data: bytes, /) -> str:
        await trio.lowlevel.checkpoint()
        cid = f"cid{hash(data) & 0xFFFFFFFF:x}"
        self.swarm.here.setdefault(self.peer, {})[cid] = data
        return cid

    async def fetch(self, cid: str, providers: list[PeerId], /, *, limit_bytes: int) -> object:
        self.swarm.asked.append((self.peer, providers))
        await trio.sleep(0.1)
        for provider in providers:
            data = self.swarm.here.get(provider, {}).get(cid)
            if data is not None and len(data) <= limit_bytes:
                self.swarm.here.setdefault(self.peer, {})[cid] = data
                return None
        raise NotFound(f"nobody has {cid}")

    async def read_bytes(self, cid: str, /, *, limit_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.swarm.here[self.peer][cid]


@dataclass
class Node:
    """One peer: its service, and what its program heard on `TOPIC`."""

    signer: Signer
    channels: ChannelService
    heard: list[Received] = field(default_factory=list[Received])

    @property
    def peer(self) -> PeerId:
        return self.signer.peer

    @property
    def words(self) -> list[bytes]:
        return [message.data for message in self.heard]


class Swarm:
    """Makes nodes. All are connected unless `net` says otherwise."""

    def __init__(self, nursery: trio.Nursery, net: Net) -> None:
        self.nursery, self.net = nursery, net
        self.blobs = SimBlobs()
        self.nodes: list[Node] = []

    def make(self, number: int, *, params: Params | None = None) -> Node:
        """Make a node that is not running yet."""
        own = signer(number)
        blobs: Blobs = self.blobs.of(own.peer)
        channels = ChannelService(
            self.net.host(own.peer),
            self.net.rpc(own.peer),
            own,
            SimClock(),
            blobs=blobs,
            params=params,
            off_loop=in_place,
            rng=random.Random(number),
        )
        return Node(own, channels)

    async def add(self, count: int, *, listening: bool = True) -> list[Node]:
        """Start nodes; give them a moment to meet."""
        new = [self.make(len(self.nodes) + 1 + number) for number in range(count)]
        for node in new:
            await self.nursery.start(node.channels.run)
            self.nodes.append(node)
            if listening:
                await self.listen(node)
        await trio.sleep(3)
        return new

    async def listen(
        self,
        node: Node,
        *,
        policy: Policy | None = None,
        last: int = 0,
        age_s: float = 86400.0,
        keep: Keep | None = None,
    ) -> Subscription:
        """Let a node's program listen."""
        readers = list[Subscription]()

        async def read(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            listening = node.channels.listen(
                TOPIC, policy=policy, last=last, age_s=age_s, keep=keep
            )
            async with listening as messages:
                readers.append(messages)
                task_status.started()
                async for message in messages:
                    node.heard.append(message)

        await self.nursery.start(read)
        return readers[0]
