"""The core routes: the daemon itself, its peers and members, its log and events."""

import math
import os
from collections.abc import AsyncGenerator
from typing import Annotated

import msgspec
import trio
from msgspec import Meta

from node.control import openapi
from node.control.api import Api, Event, Events, Raw, Request
from node.host.views import PeerView, Pong
from node.logs import level_number
from node.membership import SHORT_ID_MIN
from node.metrics import CONTENT_TYPE, Metrics
from node.parts import Node, now_ms
from node.tickets import BOOTSTRAP_MAX, Ticket
from shoal import api as shapes
from wire.errors import DeadlineExceeded, NotFound, ShoalError, UsageError
from wire.ids import PeerId

WAIT_MAX_S = 3600.0  # for /v1/wait: a script that waits longer asks again


class Unhealthy(ShoalError):
    """The daemon starts or drains."""

    code = "unhealthy"


class _PingBody(msgspec.Struct):
    """`shoal.api.PingRequest` with its bounds."""

    peer: Annotated[str, Meta(min_length=1, max_length=128)]
    count: Annotated[int, Meta(ge=1, le=100_000)] = 4
    interval_s: Annotated[float, Meta(ge=0.01, le=3600)] = 1.0
    timeout_s: Annotated[float, Meta(ge=0.01, le=60)] = 5.0
    until_direct: bool = False


class Core:
    """The handlers; each is one route."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def status(self, _: Request) -> shapes.Status:
        """Say how the daemon is."""
        node = self._node
        return shapes.Status(
            state=node.life.state,
            peer=node.host.peer,
            name=node.name,
            swarm=node.swarm.swarm_name,
            version=node.version,
            pid=os.getpid(),
            uptime_s=round(node.life.uptime_s, 3),
            home=str(node.home.path),
            addresses=node.addresses(),
            peers=len(node.host.connected()),
            members=sum(member.alive for member in node.membership.members()),
            runs=node.run_names(),
            models=node.model_names(),
            clock_skew_ms=node.clock_skew_ms(),
        )

    async def id(self, _: Request) -> shapes.Identity:
        """Say who we are."""
        node = self._node
        return shapes.Identity(node.host.peer, node.name, node.addresses())

    async def peers(self, _: Request) -> list[shapes.Peer]:
        """List connected peers, nearest first."""
        names = self._names()
        views = self._node.host.peers()
        views.sort(key=lambda view: (math.inf if view.rtt_ms is None else view.rtt_ms, view.peer))
        return [
            shapes.Peer(
                peer=view.peer,
                name=names.get(view.peer, ""),
                address=view.address,
                direction=view.direction,
                path=_path(view),
                rtt_ms=view.rtt_ms,
                bytes_in=view.bytes_in,
                bytes_out=view.bytes_out,
                since_s=max(0.0, round(now_ms() / 1000 - view.since, 3)),
                relay=_relay(view, names),
                in_s=round(view.bytes_in_s, 1),
                out_s=round(view.bytes_out_s, 1),
            )
            for view in views
        ]

    async def members(self, _: Request) -> list[shapes.Member]:
        """List the swarm's members."""
        me = self._node.host.peer
        return [
            shapes.Member(
                peer=member.peer,
                name=member.name,
                addresses=member.addrs,
                version=member.version,
                started_ms=member.started_ms,
                alive=member.alive,
                connected=member.connected,
                me=member.peer == me,
            )
            for member in self._node.membership.members()
        ]

    async def ping(self, request: Request) -> Events:
        """Ping a peer; the name is looked up before the stream begins."""
        body = request.read(_PingBody)
        return Events(self._pings(self.resolve(body.peer), body))

    async def _pings(self, peer: PeerId, body: _PingBody) -> AsyncGenerator[Event]:
        for sequence in range(1, body.count + 1):
            if sequence > 1:
                await trio.sleep(body.interval_s)
            try:
                pong = await self._node.host.probe(peer, timeout_s=body.timeout_s)
            except ShoalError as error:
                yield Event(shapes.Pong(peer, sequence, None, "", str(error)))
                continue
            rtt_ms, relay = round(pong.rtt_s * 1000, 3), _relay(pong, self._names())
            yield Event(
                shapes.Pong(peer, sequence, rtt_ms, _path(pong), relay=relay, address=pong.address)
            )
            if body.until_direct and pong.path == "direct":
                return

    def _names(self) -> dict[PeerId, str]:
        return {member.peer: member.name for member in self._node.membership.members()}

    def resolve(self, name: str) -> PeerId:
        """Find a peer by name, peer ID or a unique part of it.

        A peer that is connected counts too while we have not heard its name yet.
        """
        try:
            return self._node.membership.resolve(name)
        except NotFound:
            fits = [
                p for p in self._node.host.connected() if p.startswith(name) or p.endswith(name)
            ]
            if len(fits) == 1 and len(name) >= SHORT_ID_MIN:
                return fits[0]
            raise

    async def ticket(self, _: Request) -> shapes.Ticket:
        """Make a ticket with our own addresses in it."""
        swarm = self._node.swarm
        addresses = sorted(self._node.addresses(), key=_is_local)[:BOOTSTRAP_MAX]
        return shapes.Ticket(Ticket(swarm.swarm_name, swarm.key, tuple(addresses)).text())

    async def wait(self, request: Request) -> shapes.Waited:
        """Answer once enough peers are connected. Raises DeadlineExceeded."""
        peers = int(request.number("peers", 1, most=10_000))
        timeout_s = request.number("timeout", 30.0, most=WAIT_MAX_S)
        started = trio.current_time()
        with trio.move_on_after(timeout_s):
            async with self._node.life.events.read() as events:
                while len(self._node.host.connected()) < peers:
                    if await anext(events, None) is None:
                        break  # the daemon stops
        found = len(self._node.host.connected())
        if found < peers:
            raise DeadlineExceeded(
                f"{found} of {peers} peers after {timeout_s:g} s",
                hint="`shoal members` lists who should be there",
            )
        return shapes.Waited(found, round(trio.current_time() - started, 3))

    async def health(self, _: Request) -> shapes.Health:
        """Say that we do our work; if we do not, it is an error (503), for probes."""
        state = self._node.life.state
        if state != "ready":
            raise Unhealthy(f"the daemon is {state}")
        return shapes.Health(state, round(self._node.loop_lag_ms(), 1))

    async def logs(self, request: Request) -> Events:
        """Stream the last log lines and, with follow=1, what comes."""
        level = request.query.get("level", "debug")
        if level not in ("debug", "info", "warning", "error"):
            raise UsageError(f"level {level[:16]!r} is not debug, info, warning or error")
        follow = request.query.get("follow", "0") not in ("", "0", "false")
        return Events(self._log_lines(level_number(level), follow=follow))

    async def _log_lines(self, least: int, *, follow: bool) -> AsyncGenerator[Event]:
        book = self._node.logs
        async with book.fresh.read() as fresh:
            last = 0
            for line in list(book.lines):
                last = line.number
                if level_number(line.level) >= least:
                    yield Event(line)
            if not follow:
                return
            async for line in fresh:
                if line.number > last and level_number(line.level) >= least:
                    yield Event(line)

    async def events(self, _: Request) -> Events:
        """Stream what happens, beginning with the state we are in."""
        return Events(self._happenings())

    async def _happenings(self) -> AsyncGenerator[Event]:
        life = self._node.life
        async with life.events.read() as events:
            yield Event(shapes.StateChange(life.state, now_ms()), name="state")
            async for event in events:
                yield event

    async def config(self, _: Request) -> list[shapes.Setting]:
        """List every option with its origin."""
        return list(self._node.loaded.settings)

    async def down(self, _: Request) -> None:
        """Begin to drain; this reply still goes out."""
        self._node.life.stop()


def routes(api: Api, node: Node, metrics: Metrics) -> Core:
    """Declare the core routes; returns their handlers, whose `resolve` other areas use."""
    core = Core(node)

    async def metrics_page(_: Request) -> Raw:
        return Raw(metrics.text(), CONTENT_TYPE)

    async def document(_: Request) -> Raw:
        return Raw(openapi.document(api), "application/json")

    add = api.add
    add("GET", "/v1/status", core.status, summary="The daemon at a glance", reply=shapes.Status)
    add("GET", "/v1/id", core.id, summary="Peer ID and addresses", reply=shapes.Identity)
    add("GET", "/v1/peers", core.peers, summary="Connected peers", reply=list[shapes.Peer])
    add("GET", "/v1/members", core.members, summary="The swarm", reply=list[shapes.Member])
    add(
        "POST",
        "/v1/ping",
        core.ping,
        summary="Ping a peer",
        body=_PingBody,
        reply=shapes.Pong,
        events=True,
    )
    add("GET", "/v1/ticket", core.ticket, summary="A ticket to join with", reply=shapes.Ticket)
    add("GET", "/v1/wait", core.wait, summary="Wait for peers", reply=shapes.Waited)
    add("GET", "/v1/health", core.health, summary="Health probe", reply=shapes.Health)
    add("GET", "/v1/logs", core.logs, summary="The log", reply=shapes.LogLine, events=True)
    add("GET", "/v1/events", core.events, summary="What happens", events=True)
    add("GET", "/v1/config", core.config, summary="All options", reply=list[shapes.Setting])
    add("POST", "/v1/down", core.down, summary="Drain and stop")
    add("GET", "/metrics", metrics_page, summary="Figures for Prometheus", reply=Raw)
    add("GET", "/v1/openapi.json", document, summary="This document", reply=Raw)
    return core


def _path(way: PeerView | Pong) -> str:
    return "punched" if way.is_punched else way.path


def _relay(way: PeerView | Pong, names: dict[PeerId, str]) -> str:
    return "" if way.relay is None else names.get(way.relay) or way.relay


def _is_local(address: str) -> bool:
    return address.startswith(("/ip4/127.", "/ip6/::1/"))
