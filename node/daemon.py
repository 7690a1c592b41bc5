"""The daemon: builds the parts in order of need, starts them, and takes them down again.

This is the one place where parts are wired together. `startup.py` decides whether a daemon may
start at all; here the event loop runs.
"""

import gc
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import msgspec
import structlog
import trio

import node.control.audits as audit_routes
import node.control.blobs as blob_routes
import node.control.channels as channel_routes
import node.control.core as core_routes
import node.control.dashboard as dashboard_routes
import node.control.dht as dht_routes
import node.control.hosting as hosting_routes
import node.control.library as library_routes
import node.control.models as model_routes
import node.control.netcheck as netcheck_routes
import node.control.openai as openai_routes
import node.control.rpc as rpc_routes
import node.control.runs as run_routes
import node.control.store as store_routes
from crdt.service import StoreService
from crdt.wire import FRAME_MAX as SYNC_FRAME_MAX
from node.apps.service import AppRpc
from node.channels import ChannelDesk, origin_of
from node.config import http_address
from node.control.api import Api, Event
from node.control.server import ControlServer
from node.control.web import keys_of
from node.dht_figures import dht_figures
from node.finding import Finding
from node.host.gate import Limits
from node.host.service import LibP2pHost
from node.host.views import PeerUp
from node.known_peers import read_known, remember, remember_often
from node.logs import tame_libraries
from node.membership import MemberInfo, Membership
from node.metrics import (
    LoopLag,
    Metrics,
    app_figures,
    blob_figures,
    bulk_figures,
    channel_figures,
    core_figures,
    reach_figures,
    rpc_figures,
    store_figures,
    training_figures,
)
from node.models import Models
from node.notify import notify
from node.parts import Life, Node, Start, now_ms
from node.reach.offer import KEY as REACH
from node.reach.service import Reach, ReachOptions
from node.rendezvous import Rendezvous
from node.runs import Runs
from node.signals import exit_after, heed_signals
from node.tickets import swarm_tag
from node.token import load_or_make_token
from protocols.blobs.service import BlobService
from protocols.blobs.store import HALF_OF_FREE, BlobStore
from protocols.bulk.service import BulkService
from protocols.channels.service import ChannelService
from protocols.modelsync.service import ModelSync
from protocols.rpc.service import RpcService
from shoal.api import PeerChange
from wire.clock import SystemClock
from wire.errors import ShoalError
from wire.faults import root_cause
from wire.threads import Threads

JOIN_S = 0.5  # seconds that a start waits for a first peer; joining goes on behind it
DRAIN_S = 4.5  # seconds from the first signal to the end, whatever hangs
LEAVE_S = 1.5  # seconds for the farewell to the swarm

OnReady = Callable[[str, list[str], str], None]  # peer ID, addresses, swarm
_log = structlog.get_logger("daemon")


class Daemon:
    """All parts of one node. Later parts may use earlier ones."""

    def __init__(self, start: Start) -> None:
        self.start = start
        config, home = start.loaded.config, start.home
        self.life = Life()
        self.clock = SystemClock()
        self.version = version("shoal")
        self.started_ms = now_ms()
        limits = Limits(connections=config.net.max_connections)
        self.host = LibP2pHost(
            start.seed, start.swarm.key, config.net.listen, limits=limits, mdns=config.net.mdns
        )
        self.host.ports_file = home.ports
        peers = self.host.connected
        self.rpc = RpcService(self.host)
        self.apps = AppRpc(self.rpc)
        self.bulk = BulkService(self.rpc, self.host.lanes)
        self.reach = self._make_reach()
        self.finding = self._make_finding()
        self.dht = self.finding.dht
        self.blobs = self._make_blobs()
        self.channels = ChannelService(
            self.host,
            self.rpc,
            start.signer,
            self.clock,
            blobs=self.blobs,
            origin=origin_of(self.host.peers),
        )
        self.store = StoreService(
            self.rpc.network("crdt.sync", frame_max=SYNC_FRAME_MAX),
            self.channels,
            self.clock,
            start.signer,
            home.store,
            peers=peers,
            salt=swarm_tag(start.swarm.key).encode(),
            blobs=self.blobs,
        )
        self.rpc.answer("crdt.sync", self.store.answer, frame_max=SYNC_FRAME_MAX)
        self.membership = Membership(
            self.store, self.host, self._about_us, self.clock, finder=self.dht
        )
        self.reach.on_change = self._moved
        self.membership.on_moved = self.reach.peer_moved
        self.modelsync = ModelSync(self.rpc, self.store, start.signer, peers=peers, bulk=self.bulk)
        self.runs = Runs(
            home.runs,
            self.modelsync,
            member=self.host.peer,
            env={"SHOAL_HOME": str(home.path)},
            traffic=self.traffic,
        )
        self.models = self._make_models()
        self.rendezvous = self._make_rendezvous()
        self.models.look_for = partial(self.rendezvous.find, "model")
        self.lag = LoopLag()
        self.api = self._declare_routes()
        self.control = ControlServer(self.api)
        self.dashboard = dashboard_routes.Dashboard(self.control, home.token)
        dashboard_routes.routes(self.api, self.dashboard)

    def _make_reach(self) -> Reach:
        net = self.start.loaded.config.net
        return Reach(
            self.host,
            lambda: self.membership.members(),
            ReachOptions(net.relay, net.relay_mib_s * 2**20, net.port_mapping),
            is_closed=self.start.swarm.key is not None,
        )

    def _make_finding(self) -> Finding:
        return Finding(
            self.host,
            self.reach,
            self.start.signer,
            self.clock,
            swarm=self.start.swarm.key,
            is_public=self.start.loaded.config.dht.public,
            file=self.start.home.dht,
        )

    def _make_blobs(self) -> BlobService:
        options = self.start.loaded.config.blobs
        quota_bytes = int(options.quota_gib * 2**30) or HALF_OF_FREE
        return BlobService(
            self.rpc,
            BlobStore(self.start.home.blobs, quota_bytes=quota_bytes),
            peers=self.host.connected,
            finder=self.dht,
            upload_bytes_per_s=options.upload_mib_s * 2**20,
        )

    def _make_models(self) -> Models:
        options = self.start.loaded.config.serve
        return Models(
            folder=self.start.home.models,
            store=self.store,
            blobs=self.blobs,
            rpc=self.rpc,
            members=lambda: [*self.membership.members()],
            signer=self.start.signer,
            clock=self.clock,
            options=options,
            rtt_s=self.host.rtt_s,
            off_loop=Threads(),
        )

    def _make_rendezvous(self) -> Rendezvous:
        kinds = {
            "run": (self.runs.names, self.runs.alone),
            "model": (self.models.hosted, self.models.without_hosts),
        }
        return Rendezvous(self.dht, self.host, self.reach.addresses, kinds)

    def _declare_routes(self) -> Api:
        node = Node(
            home=self.start.home,
            loaded=self.start.loaded,
            swarm=self.start.swarm,
            name=self.start.name,
            version=self.version,
            logs=self.start.logs,
            life=self.life,
            host=self.host,
            membership=self.membership,
            addresses=self.reach.addresses,
            run_names=self.runs.names,
            model_names=self.models.names,
            loop_lag_ms=self.lag.worst_ms,
            clock_skew_ms=lambda: self.store.clock_skew_ms,
            traffic=self.traffic,
            reach=self.reach.view,
        )
        metrics = Metrics()
        metrics.add(*core_figures(node), *rpc_figures(self.rpc.counters))
        metrics.add(*bulk_figures(self.bulk.counters), *store_figures(self.store.stats))
        metrics.add(*channel_figures(self.channels), *blob_figures(self.blobs))
        metrics.add(*app_figures(self.apps), *training_figures(self.runs.figures))
        metrics.add(*reach_figures(node), *dht_figures(self.finding))
        api = Api()
        core = core_routes.routes(api, node, metrics)
        netcheck_routes.routes(api, node)
        dht_routes.routes(api, self.finding, node, core.resolve, self.membership.name_of)
        desk = ChannelDesk(self.channels, self.membership.name_of, core.resolve)
        channel_routes.routes(api, desk)
        self.blob_routes = blob_routes.BlobRoutes(self.blobs, core.resolve)
        blob_routes.routes(api, self.blob_routes)
        handlers = store_routes.StoreRoutes(
            self.store, self.blobs, core.resolve, self.membership.name_of
        )
        store_routes.routes(api, handlers)
        rpc_routes.routes(api, self.apps, core.resolve)
        run_routes.routes(api, self.runs)
        model_routes.routes(api, self.models)
        audit_routes.routes(api, self.models, self.models.audits)
        library_routes.routes(api, self.models.library, self.runs)
        hosting_routes.routes(api, self.models)
        openai_routes.routes(api, self.models)
        return api

    def _moved(self) -> None:
        self.membership.moved()
        self.dht.moved()

    def _about_us(self) -> MemberInfo:
        return MemberInfo(
            name=self.start.name,
            addrs=self.reach.addresses(),
            version=self.version,
            started_ms=self.started_ms,
            offers={**self.models.offers(), REACH: msgspec.to_builtins(self.reach.offer())},
        )

    def traffic(self) -> tuple[int, int]:
        """Bytes at all sockets between peers: libp2p's, and those of bulk lanes."""
        counters, (lanes_in, lanes_out) = self.host.counters(), self.bulk.pool.wire_bytes()
        return counters.bytes_in + lanes_in, counters.bytes_out + lanes_out

    async def run(self, on_ready: OnReady) -> None:
        """Run all parts until somebody asks to stop; then drain."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heed_signals, self.life)
            await nursery.start(self.lag.run)
            for part in (
                self.rpc,  # before the host: a line that began earlier could not move
                self.host,
                self.bulk,
                self.channels,
                self.store,
                self.finding,
                self.models.offering,
                self.membership,
                self.reach,
                self.blobs,
                self.blob_routes,
                self.modelsync,
                self.runs,
                self.models,
                self.rendezvous,
                self.dashboard,
            ):
                await nursery.start(part.run)
            await nursery.start(self.control.serve_unix, self.start.home.socket)
            await self._start_http(nursery)
            await self._join(nursery)
            self.life.enter("ready")
            notify("READY=1")
            on_ready(self.host.peer, self.host.addresses(), self.start.swarm.swarm_name)
            await self.life.stopping()
            await self._drain()
            nursery.cancel_scope.cancel()

    async def _start_http(self, nursery: trio.Nursery) -> None:
        address = http_address(self.start.loaded.config.http.listen)
        if address is None:
            return
        open_models = self.start.loaded.config.http.open_models
        keys = keys_of(load_or_make_token(self.start.home.token), open_models=open_models)
        port = await nursery.start(self.control.serve_tcp, *address, keys)
        self.dashboard.is_at(address[0], port)
        _log.info("http", listen=f"{address[0]}:{port}", token=self.start.home.token)

    async def _join(self, nursery: trio.Nursery) -> None:
        """Dial everybody we know of, and wait a moment for the first to answer."""
        self.life.enter("joining")
        first = trio.Event()
        nursery.start_soon(self._follow_peers, first)
        nursery.start_soon(remember_often, self.start.home.peers, self.host)
        known = read_known(self.start.home.peers, self.start.swarm.bootstrap)
        known.pop(self.host.peer, None)
        for peer, addresses in known.items():
            self.host.keep(peer, addresses)
        if known:
            with trio.move_on_after(JOIN_S):
                await first.wait()

    async def _follow_peers(self, first: trio.Event) -> None:
        """Tell the parts, and whoever reads `/v1/events`, who comes and goes."""
        async for event in self.host.watch():
            if event.is_move:
                continue
            is_up = isinstance(event, PeerUp)
            change = PeerChange(event.peer, is_up, now_ms())
            self.life.events.send(Event(change, name="peer"))
            if is_up:
                self.store.peer_up(event.peer)
                self.finding.peer_up(event.peer)
                first.set()

    async def _drain(self) -> None:
        """Say farewell within `DRAIN_S`; a hanging part does not keep the process."""
        exit_after(DRAIN_S)
        notify("STOPPING=1")
        self.reach.leave()
        self.life.enter("draining")
        async with trio.open_nursery() as nursery:  # DRAIN_S ends it, if a disk is too slow
            nursery.start_soon(self.runs.drain)
            nursery.start_soon(self.finding.leave)
            with trio.move_on_after(LEAVE_S):
                await self.models.leave()  # before the farewell, which brings it to the others
            with trio.move_on_after(LEAVE_S):
                await self.membership.leave(timeout_s=LEAVE_S)
            with trio.move_on_after(LEAVE_S):
                await remember(self.start.home.peers, self.host)
        self.life.events.close()
        self.start.logs.fresh.close()
        await self.control.drain()


async def _run(start: Start, on_ready: OnReady) -> None:
    start.logs.attach()
    try:
        daemon = Daemon(start)
        daemon.life.enter("starting")
        await daemon.run(on_ready)
        daemon.life.enter("stopped")
    finally:
        start.logs.detach()


def run(start: Start, on_ready: OnReady) -> None:
    """Run a daemon to its end. Raises what kept it from starting as one error, not as a group."""
    tame_libraries(start.loaded.config.log.level)  # libp2p's were made when it was imported
    gc.freeze()  # what was imported stays: a full collection of it would stop the loop for 70 ms
    try:
        trio.run(_run, start, on_ready)
    except BaseExceptionGroup as group:
        cause = root_cause(group)
        if isinstance(cause, ShoalError):
            raise cause from None
        _log.error("daemon.bug", exc_info=group)
        raise
