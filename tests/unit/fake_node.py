"""A node of fakes behind the real core routes, and the commands as real processes against it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import trio

from node.config import load
from node.control import netcheck
from node.control.api import Api
from node.control.core import routes
from node.control.server import ControlServer
from node.home import Home
from node.host.views import Counters, PeerView, Pong
from node.logs import LogBook
from node.membership import Member
from node.metrics import Metrics, core_figures, reach_figures
from node.parts import Life, Node
from node.tickets import fresh_swarm
from wire.errors import DeadlineExceeded, NotFound
from wire.ids import PeerId, peer_id_of

ME, BOB, EVE = (peer_id_of(bytes([number]) * 32) for number in (1, 2, 3))
SHOAL = (sys.executable, "-P", "-m", "node.cli.main")


class FakeHost:
    """A host with a list of peers; EVE never answers pings."""

    def __init__(self) -> None:
        self.views = [view(BOB, 0.4)]
        self.pongs = list[Pong]()  # the next answers

    @property
    def peer(self) -> PeerId:
        return ME

    def addresses(self) -> list[str]:
        return [f"/ip4/127.0.0.1/tcp/1/p2p/{ME}", f"/ip4/10.0.0.1/tcp/1/p2p/{ME}"]

    def connected(self) -> list[PeerId]:
        return [each.peer for each in self.views]

    def peers(self) -> list[PeerView]:
        return list(self.views)

    def counters(self) -> Counters:
        return Counters(10, 20, 1, 2, 3, 4, 5, 6)

    async def probe(self, peer: PeerId, *, timeout_s: float) -> Pong:
        if peer == EVE:
            raise DeadlineExceeded(f"no answer within {timeout_s:g} s")
        return self.pongs.pop(0) if self.pongs else Pong(0.00123, "direct", "/ip4/10.0.0.2/tcp/9")


class FakeMembers:
    """Ourselves and Bob."""

    def members(self) -> list[Member]:
        return [
            Member(ME, "me", ["/a"], "0.1", {}, 1, True, False),
            Member(BOB, "bob", ["/b"], "0.1", {}, 2, True, True),
        ]

    def resolve(self, name: str, /) -> PeerId:
        for member in self.members():
            if name in (member.name, member.peer):
                return member.peer
        raise NotFound(f"no member {name!r}", hint="`shoal members` lists them")


def view(peer: PeerId, rtt_ms: float | None) -> PeerView:
    return PeerView(peer, "/ip4/10.0.0.2/tcp/9", "out", "direct", rtt_ms, 2048, 1, 0.0, 1)


@dataclass
class Running:
    """A served node of fakes."""

    node: Node
    host: FakeHost

    async def shoal(self, *args: str) -> "subprocess.CompletedProcess[bytes]":
        return await shoal(self.node.home.path, *args)

    async def json(self, *args: str) -> object:
        done = await self.shoal(*args, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


async def shoal(home: Path, *args: str) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "SHOAL_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    environment.pop("SHOAL_SOCKET", None)
    with trio.fail_after(30):
        return await trio.run_process(
            [*SHOAL, *args], capture_stdout=True, capture_stderr=True, check=False, env=environment
        )


@contextlib.asynccontextmanager
async def running(path: Path) -> AsyncIterator[Running]:
    host = FakeHost()
    node = Node(
        home=Home(path),
        loaded=load(file=None, environment={"SHOAL_LOG__LEVEL": "debug"}, flags={}),
        swarm=fresh_swarm("reef"),
        name="me",
        version="0.1",
        logs=LogBook(None, stream=None),
        life=Life(),
        host=host,
        membership=FakeMembers(),
        addresses=host.addresses,
        traffic=lambda: (10, 20),
    )
    node.logs.attach()
    metrics, api = Metrics(), Api()
    metrics.add(*core_figures(node), *reach_figures(node))
    routes(api, node, metrics)
    netcheck.routes(api, node)
    async with trio.open_nursery() as nursery:
        await nursery.start(ControlServer(api).serve_unix, node.home.socket)
        node.life.enter("ready")
        yield Running(node, host)
        nursery.cancel_scope.cancel()
