"""Verification as one node does it: keeps what it brought, finds out, votes and bans.

The rules are in `verify.py`. The trainer makes contributions anew (`duties`, `verdict`); the rest
happens here: fetching what somebody had committed to, comparing, writing findings to the store.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np
import trio

from protocols.modelsync import verify
from protocols.modelsync.part import Attachment
from protocols.modelsync.registry import NAMESPACE
from protocols.modelsync.sealed import (
    Chunks,
    commitment_to,
    decode_chunks,
    encode_chunks,
    relative_error,
)
from protocols.modelsync.sealing import all_parts
from protocols.modelsync.vectors import CONTRIBUTION_MAX, Vector, is_within
from protocols.modelsync.verify import KEPT_ROUNDS, Ask, Convict, Court, Deny, Duty, Look, Step
from protocols.modelsync.verify_wire import (
    CONTRIBUTION,
    Ban,
    Case,
    Charge,
    Finding,
    Sample,
    Verdict,
    Wanted,
    ban_key,
    case_key,
    case_of,
)
from protocols.modelsync.wire import Certificate
from protocols.modelsync.work import Work
from wire.errors import BadMessage, Busy, NotFound, ShoalError, UsageError
from wire.ids import PeerId
from wire.ports import Call, Rpc, Store

TOLERANCE = 1e-2  # relative error that different hardware may make: float32 sums differ by 1e-4
LOOK_S = 1.0  # seconds between two looks at the store
FINDING_KEPT_S = 24 * 3600.0  # seconds: a case is closed within a few rounds
BAN_KEPT_S = 30 * 24 * 3600.0  # seconds: longer than a run lasts
OPEN_S = 4.0  # seconds for a holder to answer
CHUNK_WAIT_S = 4.0  # seconds for the next chunk, as in a round: then it counts as withheld
SERVED_MAX = 4  # contributions given at a time, one to each peer: the training goes first
BUSY_WAIT_S = 60.0  # seconds for a holder that has no room: all members ask at once
BUSY_REST_S = 0.5  # seconds until it is asked again
SERVE_S = 120.0  # seconds for one of them
HELD_MAX = 2 * KEPT_ROUNDS  # contributions held a run and lane: our own, and those in question

_log = logging.getLogger(__name__)


@dataclass
class _Run:
    """What this node has of one verified run."""

    court: Court
    shards: dict[tuple[int, int], list[int]] = field(
        default_factory=dict[tuple[int, int], list[int]]
    )
    held: dict[tuple[int, bytes], Chunks] = field(default_factory=dict[tuple[int, bytes], Chunks])
    duties: dict[Case, Duty] = field(default_factory=dict[Case, Duty])
    made: dict[Case, Vector] = field(default_factory=dict[Case, Vector])  # anew, and unlike
    busy: set[Case] = field(default_factory=set[Case])
    nursery: trio.Nursery | None = None

    def hold(self, lane: int, commitment: bytes, data: Chunks) -> None:
        """Keep an encoded contribution; the lane's oldest goes."""
        self.held[lane, commitment] = data
        here = [key for key in self.held if key[0] == lane]
        for key in here[:-HELD_MAX]:
            del self.held[key]


class Trust:
    """The verified runs of this node. `run` one task for each; `close` forgets it."""

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        work: Work,
        *,
        on_ban: Callable[[str, PeerId], None] = lambda run, peer: None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self._on_ban = on_ban
        self._rpc, self._store, self._work = rpc, store, work
        self._tolerance = tolerance
        self._runs: dict[str, _Run] = {}
        self._served: set[PeerId] = set()
        rpc.serve_stream(CONTRIBUTION, self._on_wanted)

    async def run(
        self, run: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch over a run until cancelled."""
        here = self._runs[run] = _Run(Court(self._rpc.peer))
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                here.nursery = nursery
                while True:
                    self._look(run, here)
                    await trio.sleep(LOOK_S)
        finally:
            del self._runs[run]

    # -- what rounds tell and ask --------------------------------------------------------------

    def brought(self, run: str, lane: int, commitment: bytes, data: Chunks) -> None:
        """We have committed to this contribution, and signed a result that it is in."""
        here = self._runs.get(run)
        if here is not None:
            here.hold(lane, commitment, data)

    def committed(
        self, certificate: Certificate, shards: list[int], *, suspect: PeerId | None = None
    ) -> None:
        """A round of a verified run is over.

        shards: of the contributions in it, in elements. suspect: whose looked out of proportion in
        our shard: checked instead of our target.
        """
        here = self._runs.get(certificate.run)
        if here is None:
            return
        court, key = here.court, (certificate.lane, certificate.round)
        duty = court.note(certificate)
        here.shards[key] = shards
        for old in [one for one in here.shards if not court.keeps(*one)]:
            del here.shards[old]
        for case in [one for one in here.duties if court.certificate(one) is None]:
            del here.duties[case]
            here.made.pop(case, None)
        if duty is not None:
            case = Case(*key, suspect) if suspect is not None else duty.case
            if court.commitment(case) is None or case.target == self._rpc.peer:
                case = duty.case
            here.duties[case] = Duty(case)

    def is_banned(self, run: str, peer: PeerId) -> bool:
        """True if the run goes on without this peer."""
        here = self._runs.get(run)
        return here is not None and here.court.is_banned(peer)

    def bans(self, run: str) -> dict[PeerId, Ban]:
        """Whom this node takes for banned from a run, and why."""
        here = self._runs.get(run)
        return dict(here.court.bans) if here is not None else {}

    # -- for the trainer -----------------------------------------------------------------------

    def duties(self, run: str, lane: int) -> list[Duty]:
        """Contributions to a lane that our trainer is to make anew, oldest first."""
        here = self._runs.get(run)
        if here is None:
            return []
        self._look(run, here)  # rounds may be quicker than LOOK_S
        due = [duty for case, duty in here.duties.items() if case.lane == lane]
        return sorted(due, key=lambda duty: duty.case.round)

    async def verdict(self, run: str, case: Case, vector: Vector) -> bool:
        """Our trainer has made a contribution anew: `vector`, which is read until this returns.

        Returns True if its bits are what was committed to. Else it is compared in the
        background. Raises NotFound if that is no duty of ours.
        """
        here = self._runs.get(run)
        duty = here.duties.pop(case, None) if here is not None else None
        certificate = here.court.certificate(case) if here is not None else None
        if here is None or duty is None or certificate is None:
            raise NotFound(f"no duty to check {case.target} in round {case.round} of run {run}")
        shards, codec = here.shards[case.lane, case.round], certificate.codec
        here.busy.add(case)
        try:
            if not await self._work(partial(is_within, vector, CONTRIBUTION_MAX)):
                vector = np.zeros_like(vector)  # what nobody could have brought differs from this
            ours = await self._work(partial(encode_chunks, vector, shards, codec))
            if await self._work(partial(commitment_to, ours, shards)) == here.court.commitment(
                case
            ):
                if duty.charge is not None:
                    await self._write(run, here, case, "fine", duty.charge)
                return True
            # What both become by the codec is compared, so that its loss does not count.
            here.made[case] = await self._work(partial(decode_chunks, ours, shards, codec))
        finally:
            here.busy.discard(case)
        self._begin(run, here, duty)
        return False

    # -- finding out ---------------------------------------------------------------------------

    def _look(self, run: str, here: _Run) -> None:
        """Read the store, and begin what is to be done about it."""
        told: list[tuple[Case, PeerId, Finding]] = []
        for item in self._store.scan(NAMESPACE, f"{run}/trust/case/"):
            case = case_of(item.key, item.author) if here.court.knows(item.author) else None
            if case is None or here.court.certificate(case) is None:
                continue
            try:
                told.append((case, item.author, msgspec.convert(item.value, Finding)))
            except msgspec.ValidationError:
                continue  # another member's nonsense
        steps = here.court.judge(verify.by_case(told))
        steps += here.court.hear(self._bans_said(run))
        for step in steps:
            if isinstance(step, Duty) and step.case not in here.busy | here.made.keys():
                here.duties[step.case] = step
            self._begin(run, here, step)

    def _bans_said(self, run: str) -> dict[PeerId, dict[PeerId, Ban]]:
        found: dict[PeerId, dict[PeerId, Ban]] = {}
        for item in self._store.scan(NAMESPACE, f"{run}/trust/ban/"):
            peer = PeerId(item.key.split("/")[3])
            if item.key != ban_key(run, peer, item.author):
                continue
            try:
                found.setdefault(peer, {})[item.author] = msgspec.convert(item.value, Ban)
            except msgspec.ValidationError:
                continue  # another member's nonsense
        return found

    def _begin(self, run: str, here: _Run, step: Step) -> None:
        """Do it in the background: one thing at a time about each case."""
        assert here.nursery is not None
        if isinstance(step, Convict):
            _log.warning("run.banned run=%s peer=%s why=%s", run, step.peer, step.ban.reason)
            self._on_ban(run, step.peer)
            key = ban_key(run, step.peer, self._rpc.peer)
            here.nursery.start_soon(self._put, key, step.ban, BAN_KEPT_S)
        elif step.case not in here.busy:
            here.busy.add(step.case)
            here.nursery.start_soon(self._do, run, here, step)

    async def _do(self, run: str, here: _Run, step: Duty | Deny | Look | Ask) -> None:
        try:
            match step:
                case Deny(case, charge):
                    await self._write(run, here, case, "fine", charge)
                case Look(case, accuser):
                    data = await self._obtain(run, here, case, [case.target, accuser])
                    verdict: Verdict = "fine" if data is not None else "withheld"
                    await self._write(run, here, case, verdict, "withheld")
                case Ask(case, holders) if case in here.made:
                    await self._compare(run, here, case, None, list(holders))
                case Duty(case, charge) if case in here.made:
                    await self._compare(run, here, case, charge, [])
                case _:
                    return  # it is for the trainer to make the contribution anew
        except ShoalError as error:  # of the store: we look again
            _log.warning("run.check_failed run=%s case=%s error=%s", run, step.case, error)
        finally:
            here.busy.discard(step.case)

    async def _compare(
        self, run: str, here: _Run, case: Case, charge: Charge | None, holders: list[PeerId]
    ) -> None:
        """Compare what was made anew with what was committed to; say what we found.

        charge None: we are the validator, and accuse, or say nothing.
        """
        certificate = here.court.certificate(case)
        if certificate is None:
            return
        told = [item.author for item in self._store.scan(NAMESPACE, _about(run, case))]
        data = await self._obtain(run, here, case, [case.target, *holders, *told])
        verdict: Verdict = "withheld"
        if data is not None:
            shards = here.shards[case.lane, case.round]
            read = partial(decode_chunks, data, shards, certificate.codec)
            theirs = await self._work(read)
            error = await self._work(partial(relative_error, theirs, here.made[case]))
            verdict = "fine" if error <= self._tolerance else "differs"
            _log.info("run.checked run=%s case=%s error=%.2e", run, case, error)
        if verdict != "withheld":
            here.made.pop(case, None)
        if charge is not None:
            await self._write(run, here, case, verdict, charge)
        elif verdict != "fine":
            await self._write(run, here, case, verdict, verdict)
        elif self._has_accused(run, case):
            await self._store.delete(NAMESPACE, case_key(run, case, self._rpc.peer))

    def _has_accused(self, run: str, case: Case) -> bool:
        return self._store.get(NAMESPACE, case_key(run, case, self._rpc.peer)) is not None

    async def _write(
        self, run: str, here: _Run, case: Case, verdict: Verdict, charge: Charge
    ) -> None:
        certificate = here.court.certificate(case)
        if certificate is None:
            return  # it took too long: the others have decided without us
        finding = Finding(verify.certificate_hash(certificate), verdict, charge)
        await self._put(case_key(run, case, self._rpc.peer), finding, FINDING_KEPT_S)

    async def _put(self, key: str, value: Finding | Ban, ttl_s: float) -> None:
        try:
            await self._store.put(NAMESPACE, key, msgspec.to_builtins(value), ttl_s=ttl_s)
        except ShoalError as error:
            _log.warning("run.finding_failed key=%s error=%s", key, error)

    # -- contributions by their hash -----------------------------------------------------------

    async def _obtain(
        self, run: str, here: _Run, case: Case, sources: list[PeerId]
    ) -> Chunks | None:
        """Get what the target had committed to, from anybody who has it; then hold it."""
        commitment, shards = here.court.commitment(case), here.shards.get((case.lane, case.round))
        if commitment is None or shards is None:
            return None
        if (case.lane, commitment) in here.held:
            return here.held[case.lane, commitment]
        certificate = here.court.certificate(case)
        assert certificate is not None
        for source in dict.fromkeys(sources):
            if source == self._rpc.peer or source not in certificate.members:
                continue
            try:
                data = await self._asked(source, Wanted(run, case.lane, commitment), shards)
                await self._work(partial(decode_chunks, data, shards, certificate.codec))
            except (ShoalError, trio.TooSlowError, trio.EndOfChannel) as error:
                _log.info("run.withheld run=%s peer=%s error=%r", run, source, error)
                continue
            here.hold(case.lane, commitment, data)
            return data
        return None

    async def _asked(self, source: PeerId, wanted: Wanted, shards: list[int]) -> Chunks:
        """Load it once there is room: who is asked by all at once does not withhold anything."""
        until = trio.current_time() + BUSY_WAIT_S
        while True:
            try:
                return await self._fetch(source, wanted, shards)
            except Busy:
                if trio.current_time() >= until:
                    raise
            await trio.sleep(BUSY_REST_S)

    async def _fetch(self, source: PeerId, wanted: Wanted, shards: list[int]) -> Chunks:
        """Load one contribution from one peer. Raises BadMessage if it is another."""
        data: list[bytes] = []
        async with self._rpc.stream(source, CONTRIBUTION, timeout_s=OPEN_S) as call:
            await call.send(wanted)
            for index in range(len(all_parts(shards))):
                with trio.fail_after(CHUNK_WAIT_S):
                    sample = await call.receive()
                if sample.index != index:
                    raise BadMessage(f"chunk {sample.index} where {index} was due")
                data.append(sample.data)
        if await self._work(partial(commitment_to, data, shards)) != wanted.commitment:
            raise BadMessage("not the contribution that was committed to")
        return data

    async def _on_wanted(self, call: Call[Sample, Wanted]) -> None:
        with trio.fail_after(OPEN_S):
            wanted = await call.receive()
        here = self._runs.get(wanted.run)
        data = here.held.get((wanted.lane, wanted.commitment)) if here is not None else None
        if here is None or data is None or not here.court.knows(call.peer):
            raise NotFound("no such contribution here")
        if len(self._served) >= SERVED_MAX or call.peer in self._served:
            raise Busy("contributions are being given already")
        self._served.add(call.peer)
        try:
            with trio.move_on_after(SERVE_S):
                for index, chunk in enumerate(data):
                    await call.send(Sample(index, chunk))
        finally:
            self._served.discard(call.peer)


def _about(run: str, case: Case) -> str:
    return f"{run}/trust/case/{case.lane:03d}/{case.round:08d}/{case.target}/"


def check_verifiable(attachment: Attachment) -> None:
    """Refuse what cannot be verified: contributions must follow from the common state alone."""
    odd = attachment.sample or attachment.replicas_differ or attachment.sent is not None
    if attachment.is_verified and odd:
        raise UsageError(
            "a verified run has neither samples, nor mixes, nor error feedback",
            hint="use fedavg, localsgd or diloco on the wire float32, bfloat16 or int8",
        )
