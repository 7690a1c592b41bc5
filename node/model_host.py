"""Hosting: this node looks at what the swarm lacks, and computes the spans that fall to it.

What it should do comes from `protocols.sharding.placer`, one per model; here its effects happen.
"""

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog
import trio

from node.config import ServeOptions
from node.model_lease import Lease
from node.model_library import Library
from node.model_members import Living, MemberView
from node.model_offer import Offering
from node.model_span import HostedSpan, Services
from node.model_wishes import Wishes
from protocols.sharding.manifest import BLOCK, EMBED, HEAD, SHARED, Manifest
from protocols.sharding.placement import CLAIMED, COVERING, DRAINING, Host
from protocols.sharding.placer import LOOK_S, Begin, Claim, Effect, Leave, Placer, Sight, Withdraw
from protocols.sharding.records import (
    NAMESPACE,
    ModelRecord,
    StageRecord,
    read_stage,
)
from protocols.sharding.service import StageService
from protocols.sharding.sharing import Shape
from wire.ids import PeerId
from wire.ports import Clock, OffLoop, Store

SPANS_MAX = 16  # worker processes of a node: each takes 300 MB besides its weights
QUIET_S = 0.3  # seconds after a look in which changes are gathered for the next one
CACHE_OF_REST = 0.75  # of the cache that is left for a new span: a second one finds some, too

_log = structlog.get_logger("models")


class Hosting:
    """Runs a task for every span that this node hosts."""

    def __init__(
        self,
        *,
        store: Store,
        stages: StageService,
        library: Library,
        offering: Offering,
        wishes: Wishes,
        members: Callable[[], list[MemberView]],
        clock: Clock,
        options: ServeOptions,
        rtt_s: Callable[[PeerId], float | None],
        off_loop: OffLoop,
    ) -> None:
        self._store, self._library, self._clock, self._rtt_s = store, library, clock, rtt_s
        self._offering, self._wishes = offering, wishes
        self._living, self._off_loop = Living(members), off_loop
        self._me = stages.peer
        self._services = Services(stages, library, options, self._cache_for)
        self._placers: dict[str, Placer] = {}
        self._claims: dict[str, Lease] = {}
        self._claimed: dict[str, int] = {}  # bytes that our claims will take
        self._spans: dict[tuple[str, int], HostedSpan] = {}
        self._sights: dict[str, Sight] = {}  # as of the last look
        self._news = trio.Event()
        self._is_leaving = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the store until cancelled."""
        async with trio.open_nursery() as nursery, self._store.watch(NAMESPACE) as changes:
            await self._resume(nursery)
            nursery.start_soon(self._look_often, nursery)
            task_status.started()
            async for _ in changes:
                self._news.set()

    async def leave(self) -> None:
        """Take back all leases: this node stops."""
        self._is_leaving = True
        async with trio.open_nursery() as nursery:
            for lease in [*self._claims.values(), *(span.lease for span in self._spans.values())]:
                nursery.start_soon(lease.withdraw)

    def names(self) -> list[str]:
        """Return the models of which spans are hosted here, or are about to be."""
        return sorted({name for name, _ in self._spans})

    def leases(self, name: str, model: str) -> list[tuple[PeerId, StageRecord]]:
        """Return what living nodes say of their spans: a lease may outlive its node."""
        living = self._living.hosts(self._clock.now())
        told = self._library.catalogue.leases(name, model)
        return [(peer, lease) for peer, lease in told if peer == self._me or peer in living]

    def look_soon(self) -> None:
        """Something changed that the store does not tell: a wish."""
        self._news.set()

    # --- looking -------------------------------------------------------------------------------

    async def _look_often(self, nursery: trio.Nursery) -> None:
        while True:
            self._news = trio.Event()
            if not self._is_leaving:
                await self._look(nursery)
            await trio.sleep(QUIET_S)
            claims = [placer.deadline for placer in self._placers.values()]
            with trio.move_on_at(min([*claims, trio.current_time() + LOOK_S])):
                await self._news.wait()

    async def _look(self, nursery: trio.Nursery) -> None:
        records = self._library.catalogue.records()
        for name in [name for name in self._placers if name not in records]:
            del self._placers[name]
            await self._withdraw(name)
        for span in self._spans.values():
            record = records.get(span.name)
            if record is None or record.model != span.record.model:
                span.stop()
        now = self._clock.now()
        living, taken = self._living.hosts(now), self._taken(records)
        for name, record in records.items():
            if not self._wanted(name, record):
                await self._let_go(name)
                continue
            manifest = self._library.manifest_here(record)
            if manifest is None:
                continue  # the library fetches it
            left = self._left(name, record, living, taken)
            sight = self._sight(name, record, manifest, left)
            self._sights[name] = sight
            placer = self._placers.setdefault(name, Placer(self._me, random.Random()))
            effects = await self._off_loop(functools.partial(placer.look, sight, now))
            for effect in effects:
                await self._apply(effect, name, record, manifest, nursery)
            self._drop_failed(name, placer, sight, now)

    def _wanted(self, name: str, record: ModelRecord) -> bool:
        """Whether this node may host a model: the swarm or a person asks for it."""
        wish = self._wishes.get(name, record.model)
        if wish is not None:
            return not wish.never
        return record.hosted and self._offering.is_on

    async def _let_go(self, name: str) -> None:
        self._placers.pop(name, None)
        await self._withdraw(name)
        for span in self._spans.values():
            if span.name == name:
                span.leave()

    def _drop_failed(self, name: str, placer: Placer, sight: Sight, now: float) -> None:
        """Give up spans that fail here and that others have taken over."""
        for span in self._spans.values():
            has_failed = span.name == name and span.lease.state == "failed"
            if has_failed and placer.can_leave(sight, span.span[0], now):
                span.leave()

    def _sight(
        self, name: str, record: ModelRecord, manifest: Manifest, living: Mapping[PeerId, Host]
    ) -> Sight:
        """Return what we see of a model; `living`: who lives, with the room left for it."""
        shape = shape_of(record.model, manifest)
        told = self._library.catalogue.leases(name, record.model)
        leases = [(peer, lease) for peer, lease in told if peer != self._me and peer in living]
        leases += [
            (self._me, span.lease.record())
            for span in self._spans.values()
            if span.name == name and span.lease.state
        ]
        hosting = {peer for peer, _ in leases}
        hosts = [
            host
            for peer, host in living.items()
            if peer != self._me and (record.hosted or peer in hosting)
        ]
        if len(self._spans) < SPANS_MAX:
            hosts.append(living[self._me])
        return Sight(
            shape,
            hosts,
            [(peer, lease) for peer, lease in leases if lease.end <= shape.blocks],
            replicas=record.replicas,
            nodes=record.nodes,
            wish=self._wishes.get(name, record.model),
            steady_s=self._clock.now() - self._living.changed_s,
        )

    def _left(
        self,
        name: str,
        record: ModelRecord,
        living: Mapping[PeerId, Host],
        taken: Mapping[str, Mapping[PeerId, int]],
    ) -> dict[PeerId, Host]:
        """Return the members with the room that spans of other models leave on them."""
        wish, room_bytes = self._wishes.get(name, record.model), self._offering.room_bytes
        if wish is not None and wish.memory_bytes:
            room_bytes = self._offering.without_cache(wish.memory_bytes)
        all_of_us = Host(self._me, room_bytes, self._offering.speed)
        left = {**living, self._me: all_of_us}
        for other, by_peer in taken.items():
            for peer, size_bytes in by_peer.items() if other != name else ():
                if peer in left and peer != self._me:
                    left[peer] = replace(left[peer], room_bytes=left[peer].room_bytes - size_bytes)
        ours = [span.size_bytes for span in self._spans.values() if span.name != name]
        ours += [size_bytes for other, size_bytes in self._claimed.items() if other != name]
        left[self._me] = replace(all_of_us, room_bytes=room_bytes - sum(ours))
        return left

    def _taken(self, records: Mapping[str, ModelRecord]) -> dict[str, dict[PeerId, int]]:
        """Return the bytes that spans take, by model and node."""
        taken: dict[str, dict[PeerId, int]] = {}
        shapes: dict[str, Shape] = {}
        for name, record in records.items():
            manifest = self._library.manifest_here(record)
            if manifest is not None:
                shapes[name] = shape_of(record.model, manifest)
        for item in self._store.scan(NAMESPACE):
            name, _, kind = item.key.partition("/")
            is_stage = kind.startswith("stage/") and name in shapes
            found = read_stage(name, item) if is_stage else None
            if found is not None and found[1].model == shapes[name].model:
                peer, lease = found
                if lease.state in (*COVERING, DRAINING, CLAIMED):
                    size_bytes = shapes[name].bytes_of(lease.start, lease.end)
                    of_model = taken.setdefault(name, {})
                    of_model[peer] = of_model.get(peer, 0) + size_bytes
        return taken

    # --- doing ---------------------------------------------------------------------------------

    async def _apply(
        self,
        effect: Effect,
        name: str,
        record: ModelRecord,
        manifest: Manifest,
        nursery: trio.Nursery,
    ) -> None:
        match effect:
            case Claim(blocks):
                await self._withdraw(name)
                self._claims[name] = lease = self._lease(name, record, blocks)
                self._claimed[name] = shape_of(record.model, manifest).bytes_of(*blocks)
                await lease.say("claimed")
            case Withdraw():
                await self._withdraw(name)
            case Begin(blocks, instead_of):
                claim = self._claims.pop(name, None)
                self._claimed.pop(name, None)
                if claim is not None and claim.record().start != blocks[0]:
                    await claim.withdraw()
                self._begin(name, record, manifest, blocks, nursery, instead_of=instead_of)
            case Leave(start):
                span = self._spans.get((name, start))
                if span is not None:
                    span.leave()

    def _begin(
        self,
        name: str,
        record: ModelRecord,
        manifest: Manifest,
        blocks: tuple[int, int],
        nursery: trio.Nursery,
        *,
        instead_of: int | None = None,
    ) -> None:
        if (name, blocks[0]) in self._spans:
            return  # one that is about to go has this lease; the next look comes soon
        lease = self._lease(name, record, blocks)
        lease.state = "fetching"
        span = HostedSpan(self._services, name, record, manifest, blocks, lease)
        other = None if instead_of is None else self._spans.get((name, instead_of))
        self._spans[name, blocks[0]] = span
        _log.info("stage.begun", model=name, start=blocks[0], end=blocks[1])
        nursery.start_soon(self._host, span, other)

    async def _host(self, span: HostedSpan, instead_of: HostedSpan | None) -> None:
        def may_go() -> bool:
            placer, sight = self._placers.get(span.name), self._sights.get(span.name)
            if placer is None or sight is None or instead_of is None:
                return False
            return placer.can_leave(sight, instead_of.span[0], self._clock.now())

        try:
            with self._library.using(span.record, *span.span):
                await span.run(instead_of=instead_of, may_go=may_go)
        finally:
            del self._spans[span.name, span.span[0]]
            self._news.set()

    async def _withdraw(self, name: str) -> None:
        claim = self._claims.pop(name, None)
        self._claimed.pop(name, None)
        if claim is not None:
            await claim.withdraw()

    def _lease(self, name: str, record: ModelRecord, blocks: tuple[int, int]) -> Lease:
        lease = Lease(self._store, self._clock, self._me, name, record.model, blocks)
        lease.delays = lambda: self._delays(name, record.model)
        return lease

    def _delays(self, name: str, model: str) -> list[tuple[PeerId, float]]:
        """Return our round trips to the other hosts of a model, nearest first."""
        peers = {peer for peer, _ in self._library.catalogue.leases(name, model)} - {self._me}
        known = [(peer, delay) for peer in peers if (delay := self._rtt_s(peer)) is not None]
        return sorted(known, key=lambda each: each[1])

    async def _resume(self, nursery: trio.Nursery) -> None:
        """Take up what this node had before it died, if that was just now; forget the rest."""
        records = self._library.catalogue.records()
        for item in self._store.scan(NAMESPACE):
            name = item.key.partition("/")[0]
            found = read_stage(name, item)
            if found is None or found[0] != self._me:
                continue
            lease, record = found[1], records.get(name)
            manifest = self._library.manifest_here(record) if record is not None else None
            if (
                record is not None
                and manifest is not None
                and lease.model == record.model
                and lease.end <= manifest.n_layers
                and lease.state in COVERING
                and self._wanted(name, record)
                and len(self._spans) < SPANS_MAX
            ):
                self._begin(name, record, manifest, (lease.start, lease.end), nursery)
            else:
                blocks = (lease.start, lease.end)
                await Lease(
                    self._store, self._clock, self._me, name, lease.model, blocks
                ).withdraw()

    def _cache_for(self, span: HostedSpan) -> int:
        """Return how much a span may have for sessions: of the offer, or of what a person said."""
        wish = self._wishes.get(span.name, span.record.model)
        is_told = wish is not None and wish.memory_bytes > 0
        span.cache_of = span.name if is_told else ""
        memory_bytes = wish.memory_bytes if wish and is_told else self._offering.memory_bytes
        rest = memory_bytes - self._offering.without_cache(memory_bytes)
        for other in self._spans.values():
            if other is not span and other.cache_of == span.cache_of:
                rest -= other.cache_bytes
        return int(max(0, rest) * CACHE_OF_REST)


def shape_of(model: str, manifest: Manifest) -> Shape:
    """Return what a model takes in memory, part by part."""
    blocks = [0] * manifest.n_layers
    outer = dict.fromkeys((EMBED, HEAD, SHARED), 0)
    for part in manifest.parts:
        if part.role == BLOCK:
            blocks[part.block] = part.size_bytes
        elif part.role in outer:
            outer[part.role] = part.size_bytes
    return Shape(model, tuple(blocks), outer[EMBED], outer[HEAD], outer[SHARED])
