"""Figures for Prometheus at /metrics, read from the parts when they are asked for.

Nothing is counted here: each part keeps its own counters, and this file gives them names.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from crdt.shown import StoreStats
from node.apps.service import AppRpc
from node.parts import Node
from node.reach.checks import path_of
from node.reach.family import State
from protocols.blobs.service import BlobService
from protocols.bulk.counters import BulkCounters
from protocols.channels.service import ChannelService
from protocols.rpc.line import RpcCounters

LAG_INTERVAL_S = 1.0  # between two measurements of the event loop's lag
LAG_KEPT = 10  # measurements: the figure is the worst of the last 10 s

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class LoopLag:
    """How late the event loop wakes a sleeper: what slows every peer's answer."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque([0.0], maxlen=LAG_KEPT)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Measure until cancelled."""
        task_status.started()
        while True:
            before = time.perf_counter()
            await trio.sleep(LAG_INTERVAL_S)
            self._late_s.append(max(0.0, time.perf_counter() - before - LAG_INTERVAL_S))

    def worst_ms(self) -> float:
        """Return the worst lag of the last 10 s."""
        return max(self._late_s) * 1000


@dataclass(frozen=True)
class Figure:
    """One number, or with a label one for each of its values: `read` is called at each scrape.

    A total only grows.
    """

    name: str
    help: str
    read: Callable[[], float | Mapping[str, float]]
    is_total: bool = False
    label: str = ""


class Metrics(Collector):
    """The registry of one node; areas add their figures with `add`."""

    def __init__(self) -> None:
        self._figures: list[Figure] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def add(self, *figures: Figure) -> None:
        """Publish figures; names begin with `shoal_` and end with their unit."""
        self._figures.extend(figures)

    def collect(self) -> Iterator[Metric]:
        """Read all figures, for prometheus_client."""
        for figure in self._figures:
            family = CounterMetricFamily if figure.is_total else GaugeMetricFamily
            value = figure.read()
            if isinstance(value, Mapping):
                metric = family(figure.name, figure.help, labels=[figure.label])
                for name, each in value.items():
                    metric.add_metric([name], each)
                yield metric
            elif math.isfinite(value):
                yield family(figure.name, figure.help, value=value)

    def text(self) -> bytes:
        """Return the page that Prometheus reads."""
        return generate_latest(self._registry)


def core_figures(node: Node) -> list[Figure]:
    """Return the figures of host and process."""
    host, life = node.host, node.life
    return [
        Figure("shoal_peers", "Connected peers.", lambda: len(host.connected())),
        Figure(
            "shoal_members",
            "Members alive.",
            lambda: sum(m.alive for m in node.membership.members()),
        ),
        Figure("shoal_ready", "1 while ready.", lambda: float(life.state == "ready")),
        Figure("shoal_uptime_seconds", "Since the start.", lambda: life.uptime_s),
        Figure("shoal_loop_lag_ms", "Worst of the last 10 s.", node.loop_lag_ms),
        _total("shoal_bytes_in", "From peers' sockets.", lambda: node.traffic()[0]),
        _total("shoal_bytes_out", "To peers' sockets.", lambda: node.traffic()[1]),
        _total("shoal_accepted", "Connections taken.", lambda: host.counters().accepted),
        _total("shoal_refused", "Connections over a limit.", lambda: host.counters().refused),
        _total(
            "shoal_failed_handshakes",
            "Inbound garbage, time-outs, wrong protocol.",
            lambda: host.counters().failed_handshakes,
        ),
        _total(
            "shoal_failed_admissions",
            "Peers without the swarm's key.",
            lambda: host.counters().failed_admissions,
        ),
    ]


def reach_figures(node: Node) -> list[Figure]:
    """Return the figures of paths, relays, punches and dial-backs."""

    def paths() -> Mapping[str, float]:
        seen = Counter(path_of(peer) for peer in node.host.peers())
        return {path: seen[path] for path in ("direct", "punched", "relayed")}

    return [
        Figure("shoal_reach_peers", "Connected peers, by path.", paths, label="path"),
        Figure(
            "shoal_reach_state",
            "1 for the state that holds.",
            lambda: {state: node.reach().verdict == state for state in get_args(State)},
            label="state",
        ),
        Figure(
            "shoal_reach_port_mapped",
            "1 while a router forwards a port.",
            lambda: bool(node.reach().port_maps),
        ),
        Figure(
            "shoal_relay_reservations_held",
            "On relays, for us.",
            lambda: len(node.reach().held),
        ),
        Figure(
            "shoal_relay_reservations",
            "Served here, for others.",
            lambda: node.reach().relay.reservations,
        ),
        Figure("shoal_relay_circuits", "Relayed here now.", lambda: node.reach().relay.circuits),
        _total("shoal_relay_bytes", "Relayed here.", lambda: node.reach().relay.bytes),
        _total(
            "shoal_relay_refused",
            "Reservations and circuits over a limit.",
            lambda: node.reach().relay.refused,
        ),
        Figure(
            "shoal_reach_punches",
            "Hole punchings, by outcome.",
            lambda: node.reach().punched,
            is_total=True,
            label="outcome",
        ),
        Figure(
            "shoal_reach_dial_backs",
            "Dials to prove an address: asked of peers, served to peers.",
            lambda: node.reach().dial_backs,
            is_total=True,
            label="side",
        ),
    ]


def rpc_figures(counters: RpcCounters) -> list[Figure]:
    """Return the figures of the calls between peers."""
    return [
        _total("shoal_rpc_calls_out", "Calls to peers.", lambda: counters.calls_out),
        _total("shoal_rpc_calls_in", "Calls of peers.", lambda: counters.calls_in),
        _total("shoal_rpc_errors_out", "Calls to peers that failed.", lambda: counters.errors_out),
        _total("shoal_rpc_errors_in", "Calls answered with errors.", lambda: counters.errors_in),
        _total("shoal_rpc_repeated", "Calls made again.", lambda: counters.repeated),
        _total(
            "shoal_rpc_replayed", "Calls with a key, not done twice.", lambda: counters.replayed
        ),
        Figure("shoal_rpc_active_in", "Calls being answered.", lambda: counters.active_in),
        Figure("shoal_rpc_lines", "Long-lived streams of calls.", lambda: counters.lines),
        _total("shoal_rpc_refused", "Calls answered busy.", lambda: counters.refused),
        _total("shoal_rpc_bad_messages", "Peers' nonsense.", lambda: counters.bad_messages),
        _total("shoal_rpc_bytes_out", "RPC frames sent.", lambda: counters.bytes_out),
        _total("shoal_rpc_bytes_in", "RPC frames received.", lambda: counters.bytes_in),
    ]


def bulk_figures(counters: BulkCounters) -> list[Figure]:
    """Return the figures of bulk transfers and their lanes."""
    return [
        _total("shoal_bulk_sent", "Transfers that arrived in full.", lambda: counters.sent),
        _total("shoal_bulk_received", "Transfers received in full.", lambda: counters.received),
        _total("shoal_bulk_failed", "Transfers that failed.", lambda: counters.failed),
        _total("shoal_bulk_bytes_out", "Sent and arrived.", lambda: counters.bytes_out),
        _total("shoal_bulk_bytes_in", "Received.", lambda: counters.bytes_in),
        _total("shoal_bulk_fallbacks", "Transfers without a lane.", lambda: counters.fallbacks),
        Figure("shoal_bulk_lanes", "Bulk connections now.", lambda: counters.lanes),
        _total("shoal_bulk_lanes_made", "Bulk connections made.", lambda: counters.lanes_made),
        _total("shoal_bulk_lane_faults", "Ended by false bytes.", lambda: counters.lane_faults),
        _total("shoal_bulk_hellos_refused", "Strangers' hellos.", lambda: counters.hellos_refused),
    ]


def blob_figures(blobs: BlobService) -> list[Figure]:
    """Return the figures of the blobs."""
    counters, store = blobs.counters, blobs.store
    index = store.index
    return [
        Figure("shoal_blobs", "Blobs here, files of folders too.", lambda: index.glance()[0]),
        Figure("shoal_blobs_held_bytes", "What they take of the quota.", lambda: index.glance()[1]),
        Figure("shoal_blobs_quota_bytes", "The quota.", lambda: store.space.quota_bytes),
        _total("shoal_blobs_bytes_in", "Fetched and kept.", lambda: counters.bytes_in),
        _total("shoal_blobs_bytes_out", "Given to peers.", lambda: counters.bytes_out),
        _total("shoal_blobs_bytes_wasted", "Came twice.", lambda: counters.bytes_wasted),
        _total("shoal_blobs_corrupt", "Chunks with a wrong hash.", lambda: counters.corrupt_chunks),
        _total("shoal_blobs_decayed", "Chunks here gone bad.", lambda: store.decayed),
        _total(
            "shoal_blobs_providers_dropped",
            "Providers given up for lies or silence.",
            lambda: counters.providers_dropped,
        ),
        _total("shoal_blobs_fetches", "Fetches begun.", lambda: counters.fetches),
        _total("shoal_blobs_fetches_failed", "Fetches failed.", lambda: counters.fetches_failed),
    ]


def app_figures(apps: AppRpc) -> list[Figure]:
    """Return the figures of the calls between users' programs."""
    counters = apps.counters
    return [
        Figure("shoal_app_methods", "Served by programs.", lambda: len(apps.places.offered())),
        _total("shoal_app_calls_out", "Programs' calls to peers.", lambda: counters.calls_out),
        _total("shoal_app_calls_in", "Peers' calls to programs.", lambda: counters.calls_in),
        _total("shoal_app_errors_out", "Calls out that failed.", lambda: counters.errors_out),
        _total("shoal_app_errors_in", "Calls in that failed.", lambda: counters.errors_in),
        _total("shoal_app_refused", "Calls in answered busy.", lambda: counters.refused),
    ]


@dataclass(frozen=True)
class RunFigures:
    """What one run of this node shows: where it is, and totals since the daemon started."""

    name: str
    is_active: bool
    round: int
    step: int
    members: int
    loss: float = math.nan
    val_loss: float = math.nan
    committed: int = 0
    attempts: int = 0
    left_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    banned: int = 0


def training_figures(runs: Callable[[], Sequence[RunFigures]]) -> list[Figure]:
    """Return the figures of training runs, one value for each run of this node."""

    def each(name: str, text: str, of: Callable[[RunFigures], float]) -> Figure:
        def read() -> Mapping[str, float]:
            values = {run.name: of(run) for run in runs()}
            return {name: value for name, value in values.items() if math.isfinite(value)}

        is_total = name.endswith("_total")
        return Figure(f"shoal_run_{name.removesuffix('_total')}", text, read, is_total, "run")

    return [
        each("active", "1 while it trains here.", lambda run: run.is_active),
        each("round", "Rounds that its state has behind it.", lambda run: run.round),
        each("step", "Local steps, as the run counts them.", lambda run: run.step),
        each("members", "Members by lease.", lambda run: run.members),
        each("loss", "Training loss at the last report.", lambda run: run.loss),
        each("val_loss", "Held-out loss at the last report.", lambda run: run.val_loss),
        each("committed_total", "Rounds committed with this node.", lambda run: run.committed),
        each("attempts_total", "Attempts that these took.", lambda run: run.attempts),
        each("left_out_total", "Members that attempts went on without.", lambda run: run.left_out),
        each("bytes_in_total", "Tensor bytes from members.", lambda run: run.bytes_in),
        each("bytes_out_total", "Tensor bytes to members.", lambda run: run.bytes_out),
        each("seconds_total", "From contribution to commit.", lambda run: run.seconds),
        each("banned", "Members found guilty.", lambda run: run.banned),
    ]


def store_figures(stats: Callable[[], StoreStats]) -> list[Figure]:
    """Return the figures of the replicated store."""

    def total(name: str, text: str) -> Figure:
        return _total(f"shoal_store_{name}", text, lambda: getattr(stats(), name))

    return [
        Figure("shoal_store_entries", "Entries held.", lambda: stats().entries),
        Figure("shoal_store_namespaces", "Replicated here.", lambda: stats().namespaces),
        Figure("shoal_store_deferred", "Wait for their time or grant.", lambda: stats().deferred),
        Figure("shoal_store_faults", "Chains proven to be forked.", lambda: stats().faults),
        Figure("shoal_store_writable", "0 while the disk is full.", lambda: stats().is_writable),
        Figure(
            "shoal_store_clock_skew_ms",
            "This clock against the median of peers'; 0 if fewer than 3.",
            lambda: stats().clock_skew_ms,
        ),
        total("syncs", "Syncs with peers."),
        total("syncs_failed", "Syncs that failed."),
        total("entries_in", "Entries from peers."),
        total("entries_out", "Entries given to peers."),
        total("malformed_values", "Values that are none, left out."),
        total("news_dropped", "News that wait for the next sync."),
        total("damaged", "Rows of the file that were no entries any more."),
        Figure(
            "shoal_store_refused",
            "Entries of peers not taken, by reason.",
            lambda: stats().refused,
            is_total=True,
            label="reason",
        ),
    ]


def channel_figures(channels: ChannelService) -> list[Figure]:
    """Return the figures of the channels, over all topics."""

    def total(name: str, text: str) -> Figure:
        return _total(f"shoal_channels_{name}", text, lambda: getattr(channels.stats, name))

    return [
        Figure("shoal_channels_topics", "Topics listened to.", lambda: len(channels.views())),
        Figure(
            "shoal_channels_mesh_peers",
            "Mesh peers, over all topics.",
            lambda: sum(len(view.mesh) for view in channels.views()),
        ),
        total("published", "Messages of ours."),
        total("delivered", "New, valid messages of peers."),
        total("copies", "Messages that came again."),
        total("limited", "Messages over a peer's rate, not read."),
        total("forwarded", "Copies sent to peers."),
        total("invalid", "Messages that broke a rule."),
        total("ignored", "Stale, no news, or over a limit."),
        total("failed", "Blobs and histories not had."),
        total("dropped", "Lost by slow readers here."),
        total("unsent", "Lost because a peer was slow."),
        total("given", "Messages of the past given to peers."),
    ]


def _total(name: str, text: str, read: Callable[[], float]) -> Figure:
    return Figure(name, text, read, is_total=True)
