"""Audits on this node: of sessions that it was the entry of, and of work that others ask again.

Every session's receipts are checked. Of a share of the sessions one stage's work is done again
elsewhere, one audit at a time; so audits lag behind rather than pile up, and what finds the queue
full goes unaudited. What is found is kept in the store, under our name, for all.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager

import structlog
import trio

from protocols.sharding.audit import Audit, Auditor, Verdict
from protocols.sharding.generate import Finished
from protocols.sharding.receipts import Checked, Ended, Leg, check
from protocols.sharding.recompute import Recomputing
from protocols.sharding.records import (
    NAMESPACE,
    NOTE_MAX,
    AuditRecord,
    audit_key,
    read_audit,
    to_value,
)
from protocols.sharding.reputation import DISPUTED_COST, Disputes, banned_until_ms, penalty
from protocols.sharding.route import Candidate
from protocols.sharding.service import StageService
from shoal import audits as shapes
from wire.errors import Busy, DeadlineExceeded, ShoalError
from wire.ids import PeerId
from wire.ports import Clock, Store

QUEUE_MAX = 32  # sessions that wait to be checked; of those behind them nothing is
AUDITS_PER_MINUTE = 6  # whatever the share says: each costs another node a prompt's work
TOLD_S = 2.0  # seconds for which what the store says is read once: routes ask for each peer
FLUSH_S = 5.0  # seconds between two writes of what changed
SILENT_MAX = 3  # sessions in a row without a receipt, or without its rows, that count as a failure
NOW_S = 120.0  # seconds for the answer of an audit that somebody waits for
AT_ODDS = "is at odds with several neighbours over what it gave or took"
SILENT = "keeps its receipts, or its rows, to itself"

Told = defaultdict[tuple[str, PeerId], dict[PeerId, AuditRecord]]

_log = structlog.get_logger("audits")


class Audits:
    """What this node finds of others."""

    def __init__(
        self,
        *,
        stages: StageService,
        store: Store,
        clock: Clock,
        candidates: Callable[[str], Sequence[Candidate]],
        share: float,
        ask: Callable[[str], Awaitable[None]],
        rng: random.Random | None = None,
    ) -> None:
        """candidates: the ready spans of a model. ask: have it answer something short, here."""
        self.peer, self.share = stages.calls.peer, share
        self._store, self._clock, self._candidates, self._ask = store, clock, candidates, ask
        self._rng = rng or random.Random()
        self._auditor = Auditor(stages.calls, self._replicas, rng=self._rng)
        self._recomputing = Recomputing(stages)
        self._ended = trio.open_memory_channel[Ended](QUEUE_MAX)
        self._waiting: dict[str, trio.MemorySendChannel[Ended]] = {}  # for `now`, by model
        self._records: dict[tuple[str, PeerId], AuditRecord] = {}
        self._changed: set[tuple[str, PeerId]] = set()
        self._unaudited = Counter[str]()
        self._silent = Counter[PeerId]()
        self._disputes = Disputes()
        self._begun_at: list[float] = []
        self._cached: Told = defaultdict(dict)
        self._names: defaultdict[PeerId, set[str]] = defaultdict(set)  # of models, by suspect
        self._told_until = -math.inf

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check, audit and write down until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_often)
            task_status.started()
            async for ended in self._ended[1]:
                await self._look_at(ended)

    def finished(self, finished: Finished) -> None:
        """Take a session that has ended here."""
        ended = _ended(finished, self.peer)
        waiting = self._waiting.pop(ended.name, None)
        try:
            (waiting or self._ended[0]).send_nowait(ended)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self._unaudited[ended.name] += 1

    def penalty(self, peer: PeerId) -> float:
        """Return what routing adds to the factor of a peer's times; infinite: we ban it."""
        self._told()
        names, now_ms = self._names.get(peer, set[str]()), self._clock.wall_ms()
        costs = [penalty(*self._known(name, peer), now_ms) for name in names]
        return max(costs, default=0.0) + DISPUTED_COST * self._disputes.involves(peer)

    def view(self, name: str) -> shapes.Audits:
        """Return what is known of a model's nodes."""
        spans: dict[PeerId, list[tuple[int, int]]] = {}
        for one in self._candidates(name):
            spans.setdefault(one.peer, []).append((one.start, one.end))
        suspects = {suspect for of, suspect in self._told() if of == name}
        rows = [self._row(name, peer, spans.get(peer, [])) for peer in sorted(suspects)]
        return shapes.Audits(name, self.share, rows, self._unaudited[name])

    async def now(self, name: str) -> list[shapes.Audit]:
        """Have a model answer, and audit each of its stages but our own. Raises ShoalError."""
        ended: Ended | None = None
        with self._expecting(name) as channel, trio.move_on_after(NOW_S):
            await self._ask(name)
            ended = await channel.receive()
        if ended is None:
            raise DeadlineExceeded(f"no answer in {NOW_S:g} s")
        checked = check(ended)
        found = await self._blame(ended, checked)
        for index in self._auditable(checked):
            found.append(await self._audit(ended, checked, index))
        return [_shape(one) for one in found]

    @contextmanager
    def _expecting(self, name: str) -> Generator[trio.MemoryReceiveChannel[Ended]]:
        """Get the next session of a model that ends here."""
        if name in self._waiting:
            raise Busy(f"{name} is being audited")
        send, receive = trio.open_memory_channel[Ended](1)
        self._waiting[name] = send
        try:
            with send, receive:
                yield receive
        finally:
            if self._waiting.get(name) is send:
                del self._waiting[name]

    # --- looking -------------------------------------------------------------------------------

    async def _look_at(self, ended: Ended) -> None:
        """Check a session's receipts, and perhaps audit it."""
        checked = check(ended)
        for leg, claim in zip(ended.legs, checked.claims, strict=True):
            if claim is not None:
                self._silent[leg.peer] = 0
            elif leg.receipt is None and not ended.has_replaced:
                self._keeps_silent(ended.name, leg.peer)
        if await self._blame(ended, checked) or self._rng.random() >= self.share:
            return
        usable = self._auditable(checked)
        if not usable or not self._may_begin():
            self._unaudited[ended.name] += 1
            return
        await self._audit(ended, checked, self._rng.choice(usable))

    def _auditable(self, checked: Checked) -> list[int]:
        claims = enumerate(checked.claims)
        return [at for at, claim in claims if claim is not None and claim.leg.peer != self.peer]

    async def _blame(self, ended: Ended, checked: Checked) -> list[Audit]:
        """Do what the receipts' faults ask for; return what came of it."""
        found: list[Audit] = []
        for fault in checked.faults:
            leg = ended.legs[fault.index]
            if not fault.is_link:
                verdicts = (Verdict(fault.peer, fault.why),)
                one = Audit(fault.peer, leg.start, leg.end, "failed", fault.why, verdicts)
            elif self._may_begin():
                one = await self._auditor.settle(ended, checked.claims, fault.index)
            else:
                self._unaudited[ended.name] += 1
                continue
            self._note(ended.name, one)
            found.append(one)
        return found

    async def _audit(self, ended: Ended, checked: Checked, index: int) -> Audit:
        found = await self._auditor.audit(ended, checked.claims, index)
        self._note(ended.name, found)
        return found

    def _may_begin(self) -> bool:
        now = self._clock.now()
        self._begun_at = [at for at in self._begun_at if at > now - 60.0]
        if len(self._begun_at) >= AUDITS_PER_MINUTE:
            return False
        self._begun_at.append(now)
        return True

    def _replicas(self, name: str, start: int, end: int) -> list[PeerId]:
        spans = [one for one in self._candidates(name) if one.start <= start and end <= one.end]
        peers = dict.fromkeys(one.peer for one in spans)
        return [peer for peer in peers if not self._bans(name, peer)]

    # --- writing down --------------------------------------------------------------------------

    def _note(self, name: str, audit: Audit) -> None:
        if audit.state == "unaudited" and not audit.verdicts:
            self._unaudited[name] += 1
        for verdict in audit.verdicts:
            self._count(name, verdict)
        if audit.at_odds is not None:
            guilty = self._disputes.add(*audit.at_odds)
            if guilty is not None:
                self._count(name, Verdict(guilty, AT_ODDS))
        _log.debug("audit.done", model=name, peer=audit.peer, state=audit.state, note=audit.note)

    def _keeps_silent(self, name: str, peer: PeerId) -> None:
        self._silent[peer] += 1
        if self._silent[peer] >= SILENT_MAX:
            self._silent[peer] = 0
            self._count(name, Verdict(peer, SILENT))

    def _count(self, name: str, verdict: Verdict) -> None:
        if verdict.peer == self.peer:
            return
        before = self._mine(name, verdict.peer) or AuditRecord(0, 0)
        if verdict.why:
            why = "".join(c if c.isprintable() else "?" for c in verdict.why)[:NOTE_MAX]
            after = AuditRecord(before.passed, before.failed + 1, self._clock.wall_ms(), why)
            _log.info("audit.failed", model=name, peer=verdict.peer, why=why)
        else:
            after = AuditRecord(before.passed + 1, before.failed, before.failed_ms, before.why)
        self._records[name, verdict.peer] = after
        self._changed.add((name, verdict.peer))
        self._keep(name, verdict.peer, self.peer, after)

    async def _write_often(self) -> None:
        while True:
            await trio.sleep(FLUSH_S)
            changed, self._changed = self._changed, set()
            for name, peer in changed:
                value = to_value(self._records[name, peer])
                try:
                    await self._store.put(NAMESPACE, audit_key(name, self.peer, peer), value)
                except ShoalError as error:  # no room, or no right to write: ours still counts
                    _log.debug("audit.unwritten", model=name, peer=peer, error=str(error))

    # --- reading -------------------------------------------------------------------------------

    def _told(self) -> Told:
        """Return what is said of each peer, by model and auditor; our own word is of now."""
        now = self._clock.now()
        if now >= self._told_until:
            self._told_until = now + TOLD_S
            self._cached, self._names = defaultdict(dict), defaultdict(set)
            for item in self._store.scan(NAMESPACE):
                name, is_audit, _ = item.key.partition("/audit/")
                found = read_audit(name, item) if is_audit else None
                if found is not None:
                    auditor, suspect, record = found
                    self._keep(name, suspect, auditor, record)
            for (name, suspect), record in self._records.items():
                self._keep(name, suspect, self.peer, record)
        return self._cached

    def _keep(self, name: str, suspect: PeerId, auditor: PeerId, record: AuditRecord) -> None:
        self._cached[name, suspect][auditor] = record
        self._names[suspect].add(name)

    def _mine(self, name: str, peer: PeerId) -> AuditRecord | None:
        """Our record: of this run, or from before it."""
        return self._told().get((name, peer), {}).get(self.peer)

    def _known(
        self, name: str, peer: PeerId
    ) -> tuple[AuditRecord | None, dict[PeerId, AuditRecord]]:
        """Return our record of a peer, and those of auditors that we have not banned."""
        others = {
            auditor: record
            for auditor, record in self._told().get((name, peer), {}).items()
            if auditor not in (self.peer, peer) and not self._bans(name, auditor)
        }
        return self._mine(name, peer), others

    def _bans(self, name: str, peer: PeerId) -> bool:
        return self._clock.wall_ms() < banned_until_ms(self._mine(name, peer))

    def _row(self, name: str, peer: PeerId, layers: list[tuple[int, int]]) -> shapes.Audited:
        mine, others = self._known(name, peer)
        own = mine or AuditRecord(0, 0)
        failed = {auditor: one for auditor, one in others.items() if one.failed}
        last = own if own.failed else max(failed.values(), key=lambda o: o.failed_ms, default=own)
        cost = self.penalty(peer)
        return shapes.Audited(
            peer,
            layers,
            own.passed,
            own.failed,
            last.failed_ms,
            last.why,
            sorted(auditor for auditor, one in others.items() if not one.failed),
            sorted(failed),
            banned_until_ms(mine),
            None if math.isinf(cost) else cost,
        )


def _ended(finished: Finished, entry: PeerId) -> Ended:
    takes = ["ids", *(hop.codec for hop in finished.hops)]
    return Ended(
        entry=entry,
        session=finished.session,
        name=finished.shape.name,
        model=finished.shape.model,
        dtype=finished.shape.dtype,
        hidden_size=finished.shape.hidden_size,
        legs=[
            Leg(hop.peer, hop.start, hop.end, codec, hop.codec, receipt)
            for hop, codec, receipt in zip(finished.hops, takes, finished.receipts, strict=False)
        ],
        sampling=finished.sampling,
        prompt=finished.prompt,
        picks=finished.picks,
        has_replaced=finished.replaced > 0,
    )


def _shape(audit: Audit) -> shapes.Audit:
    blamed = dict.fromkeys(verdict.peer for verdict in audit.verdicts if verdict.why)
    return shapes.Audit(
        audit.peer,
        audit.start,
        audit.end,
        audit.state,
        audit.note,
        list(audit.auditors),
        list(blamed),
    )
