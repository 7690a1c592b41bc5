"""Nodes with real runs and control routes over in-memory streams; trainers in threads."""

from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.from_thread

import node.control.runs as run_routes
from node.control.api import Api, Request
from node.runs import Runs
from protocols.modelsync.service import ModelSync
from shoal.errors import ApiError
from tests.sim.net import Net
from tests.sim.training import SharedStore
from wire.errors import ShoalError
from wire.ids import PeerId, Signer
from wire.ports import Item


class BridgeClient:
    """`shoal.Client.call` for a trainer in a thread: straight into the routes, through JSON."""

    def __init__(self, api: Api, token: trio.lowlevel.TrioToken) -> None:
        self._api, self._token = api, token
        self.path = Path("/nowhere")

    def call(
        self, method: str, path: str, body: object = None, *, reply: Any = None, timeout_s: float
    ) -> Any:
        data = msgspec.json.encode(body) if body is not None else b""
        answer = trio.from_thread.run(self._ask, method, path, data, trio_token=self._token)
        return None if reply is None else msgspec.json.decode(answer, type=reply)

    async def _ask(self, method: str, path: str, data: bytes) -> bytes:
        route, params = self._api.find(method, path)
        try:
            return msgspec.json.encode(
                await route.handler(Request(method, path, params, body=data))
            )
        except ShoalError as error:
            raise ApiError(str(error), code=error.code, status=400) from error


class RunNodes:
    """Some nodes that see each other."""

    def __init__(self, nursery: trio.Nursery, home: Path) -> None:
        self.nursery, self.home = nursery, home
        self.net = Net(nursery, latency_s=0.0)
        self.items: dict[tuple[str, str], tuple[Item, float]] = {}
        self.runs: list[Runs] = []
        self.peers: list[PeerId] = []

    async def add(self) -> Any:
        """Add a node; return the client of its daemon."""
        signer = Signer(bytes([len(self.runs) + 1]) * 32)
        store = SharedStore(signer.peer, self.items)
        rpc, peers = self.net.rpc(signer.peer), self.net.host(signer.peer).connected
        sync = ModelSync(rpc, store, signer, peers=peers)
        runs = Runs(
            self.home / signer.peer, sync, member=signer.peer, env={}, traffic=lambda: (0, 0)
        )
        await self.nursery.start(sync.run)
        await self.nursery.start(runs.run)
        api = Api()
        run_routes.routes(api, runs)
        self.runs.append(runs)
        self.peers.append(signer.peer)
        return BridgeClient(api, trio.lowlevel.current_trio_token())
