"""Audits: one stage's work of a session that has ended, done again by another node, and judged.

The input comes from the hop before (its history), which had committed to it; so a false one is
seen at once. Who recomputes is not told what was claimed: it can neither agree without computing
nor know what to contradict. If it contradicts the stage, a third node decides between the two.
"""

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import trio

from protocols.sharding.calls import Calls
from protocols.sharding.commitments import Commitment, read, same_digests
from protocols.sharding.receipts import Claim, Ended, commit_rows, differs
from protocols.sharding.recompute import COUNT_MAX, OPEN_S, TOTAL_S, ask_again
from protocols.sharding.rows import ids_to_rows, row_bytes
from protocols.sharding.wire import HISTORY, History, Recompute
from wire.errors import BadMessage, DeadlineExceeded, ShoalError
from wire.ids import PeerId

OPINIONS_MAX = 3  # of one audit: the third decides, one more if one of them made no sense
ASKED_MAX = 5  # nodes that are asked for them: busy ones are passed over

FALSE_INPUT = "claims another input than it was given"
FALSE_HISTORY = "gave other rows than it had committed to"
FALSE_AUDIT = "contradicted honest work when it recomputed it"


@dataclass(frozen=True)
class Opinion:
    """What a node says came out when it did a stage's work again."""

    peer: PeerId
    outputs: Commitment
    wrong_picks: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """`why` is empty if the peer's work was found right."""

    peer: PeerId
    why: str = ""


@dataclass(frozen=True)
class Audit:
    """What came of one. `state`: passed, failed, disputed (nobody can be blamed) or unaudited.

    The verdicts may be on others than the stage. `at_odds`: two neighbours, one of whom lies.
    """

    peer: PeerId
    start: int
    end: int
    state: str
    note: str = ""
    verdicts: tuple[Verdict, ...] = ()
    auditors: tuple[PeerId, ...] = ()
    at_odds: tuple[PeerId, PeerId] | None = None


def decide(
    claim: Claim, opinions: Sequence[Opinion], dtype: str, me: PeerId
) -> list[Verdict] | None:
    """Return what the opinions say of a stage and of each other; None if they do not suffice.

    One that agrees with the stage clears it, and ends the audit: two that differ by chance cannot
    agree. Our own decides. Of others it takes two that agree with each other against the stage.
    """
    suspect = claim.leg.peer
    for opinion in opinions:
        if _against(claim, opinion, dtype) is None:
            wrong = [Verdict(other.peer, FALSE_AUDIT) for other in opinions if other is not opinion]
            return [Verdict(suspect), *wrong]
    for index, opinion in enumerate(opinions):
        why = _against(claim, opinion, dtype) or ""
        if opinion.peer == me or any(
            _alike(opinion, other, dtype) for other in opinions[index + 1 :]
        ):
            return [Verdict(suspect, why)]
    return None


def _against(claim: Claim, opinion: Opinion, dtype: str) -> str | None:
    """Return how the work differs from an opinion of it; None if it does not."""
    if opinion.wrong_picks:
        return f"its pick at {opinion.wrong_picks[0]} is not what the logits allow"
    return differs(opinion.outputs, claim.outputs, dtype)


def _alike(one: Opinion, other: Opinion, dtype: str) -> bool:
    alike = differs(one.outputs, other.outputs, dtype) is None
    return alike and one.wrong_picks == other.wrong_picks


class _Unaudited(Exception):
    """There is nothing to recompute, perhaps because somebody is seen to lie already."""

    def __init__(self, note: str, *verdicts: Verdict) -> None:
        super().__init__(note)
        self.note, self.verdicts = note, verdicts


class Auditor:
    """Has work done again. `replicas` names who has blocks [start, end) of a session's model."""

    def __init__(
        self,
        calls: Calls,
        replicas: Callable[[str, int, int], Sequence[PeerId]],
        *,
        rng: random.Random,
    ) -> None:
        self._calls, self._replicas, self._rng = calls, replicas, rng

    async def audit(self, ended: Ended, claims: Sequence[Claim | None], index: int) -> Audit:
        """Audit the stage with that index, which has given a receipt."""
        claim = claims[index]
        assert claim is not None
        try:
            rows, size = await self._input(ended, claims, index)
        except _Unaudited as error:
            return _audit(claim, "unaudited", error.note, error.verdicts)
        opinions: list[Opinion] = []
        verdicts: list[Verdict] = []
        decided = None
        async with aclosing(self._ask(ended, claim, rows, size)) as found:
            async for one in found:
                if isinstance(one, Verdict):
                    verdicts.append(one)
                    continue
                opinions.append(one)
                decided = decide(claim, opinions, ended.dtype, self._calls.peer)
                if decided is not None:
                    break
        auditors = tuple(opinion.peer for opinion in opinions)
        if decided is not None:
            why = decided[0].why
            state = "failed" if why else "passed"
            return _audit(claim, state, why, (*verdicts, *decided), auditors)
        if not opinions:
            return _audit(claim, "unaudited", "nobody else could recompute it", verdicts)
        note = "those who recomputed it do not agree, or there is no third"
        return _audit(claim, "disputed", note, verdicts, auditors)

    async def settle(self, ended: Ended, claims: Sequence[Claim | None], index: int) -> Audit:
        """Find out who lies: the stage with that index, or the one before it, whose output is
        claimed to be another than what came in.
        """
        claim, before = claims[index], claims[index - 1]
        assert claim is not None
        assert before is not None
        found = await self.audit(ended, claims, index)
        if found.state == "unaudited":
            return found
        others = tuple(one for one in found.verdicts if one.peer != claim.leg.peer)
        false = _audit(
            claim, "failed", FALSE_INPUT, (Verdict(claim.leg.peer, FALSE_INPUT), *others)
        )
        agree = same_digests(before.outputs, claim.inputs, ended.settled)
        if found.state == "passed" and not agree:
            return false  # it computed from the true rows, and says that they were others
        earlier = await self.audit(ended, claims, index - 1)
        if earlier.state == "failed":
            return earlier
        # (with the same bytes, one of them made up its sketches; and the other's are right)
        if (
            earlier.state == "passed"
            and agree
            and differs(before.outputs, claim.inputs, ended.dtype)
        ):
            return false
        note = "its input is another than what the stage before it says it gave"
        undecided = _audit(claim, "disputed", note, others, found.auditors)
        return replace(undecided, at_odds=(before.leg.peer, claim.leg.peer))

    async def _input(
        self, ended: Ended, claims: Sequence[Claim | None], index: int
    ) -> tuple[bytes, int]:
        """Return the rows that a stage was given, and the size of one."""
        claim = claims[index]
        assert claim is not None
        size = row_bytes(claim.leg.takes, ended.hidden_size)
        if index == 0:
            rows = ids_to_rows(ended.tokens)
        else:
            before = ended.legs[index - 1]
            try:
                rows = await fetch_history(
                    self._calls, before.peer, History(ended.session, before.start), size
                )
            except ShoalError as error:
                raise _Unaudited(f"its input is not to be had: {error}") from error
            _check_history(ended, claims[index - 1], rows, size)
        count = min(claim.work.position, len(rows) // size, ended.settled)
        if not 0 < count <= COUNT_MAX:
            raise _Unaudited(f"{count} rows are none, or more than are audited")
        return rows[: count * size], size

    async def _ask(
        self, ended: Ended, claim: Claim, rows: bytes, size: int
    ) -> AsyncGenerator[Opinion | Verdict]:
        """Yield opinions, our own first; on who recomputed something else, a verdict."""
        work, count = claim.work, len(rows) // size
        # Those that the entry has taken: what became of a draft's last ones, it does not know.
        known = min(count + 1, len(ended.tokens))
        request = Recompute(
            model=work.model,
            start=work.start,
            end=work.end,
            count=count,
            row_bytes=size,
            sampling=ended.sampling,
            takes=work.takes,
            gives=work.gives,
            picks=[(at, token) for at, token in work.picks if at < known],
        )
        claimed = dict(request.picks)
        yielded = 0
        for peer in self._asked(ended, claim)[:ASKED_MAX]:
            try:
                again = await ask_again(self._calls, peer, request, rows)
                inputs = read(0, count, again.inputs, ids=work.takes == "ids")
                outputs = read(0, count, again.outputs, ids=False)
            except BadMessage as error:
                yield Verdict(peer, f"recomputed nonsense: {error}")
                continue
            except ShoalError:
                continue  # busy, gone, or without the blocks by now
            if not same_digests(commit_rows(rows, size, 0, count), inputs, count):
                yield Verdict(peer, "recomputed other rows than it was sent")
                continue
            wrong = tuple(at for at in again.wrong_picks if at in claimed)
            yield Opinion(peer, outputs, wrong)
            yielded += 1
            if yielded == OPINIONS_MAX:
                return

    def _asked(self, ended: Ended, claim: Claim) -> list[PeerId]:
        """Return whom to ask: ourselves first, then who was not on the route, in random order."""
        work, me = claim.work, self._calls.peer
        on_route = {leg.peer for leg in ended.legs}
        peers = [p for p in self._replicas(ended.name, work.start, work.end) if p != claim.leg.peer]
        self._rng.shuffle(peers)
        return sorted(peers, key=lambda peer: (peer != me, peer in on_route))


async def fetch_history(calls: Calls, peer: PeerId, asked: History, size: int) -> bytes:
    """Return the rows that a stage fed to its next one, `COUNT_MAX` at most. Raises ShoalError."""
    rows = bytearray()
    with trio.move_on_after(TOTAL_S):
        async with calls.stream(peer, HISTORY, timeout_s=OPEN_S) as call:
            await call.send(asked)
            async for part in call:
                rows += part.rows
                if len(rows) > COUNT_MAX * size:
                    break
        return bytes(rows)
    raise DeadlineExceeded(f"no history in {TOTAL_S:g} s")


def _check_history(ended: Ended, before: Claim | None, rows: bytes, size: int) -> None:
    """Compare what a stage gives now with what it had committed to, if it gave a receipt."""
    if before is None:
        return
    work = before.work
    if len(rows) < work.position * size:
        raise _Unaudited("its input is not to be had: the stage before it has not all of it")
    given = commit_rows(rows, size, work.base, work.position)
    if not same_digests(given, before.outputs, ended.settled):
        raise _Unaudited(FALSE_HISTORY, Verdict(before.leg.peer, FALSE_HISTORY))
    if not same_digests(given, before.outputs, work.position):
        raise _Unaudited("its input changed while the session ended: guesses that were dropped")


def _audit(
    claim: Claim,
    state: str,
    note: str,
    verdicts: Sequence[Verdict],
    auditors: tuple[PeerId, ...] = (),
) -> Audit:
    work = claim.work
    return Audit(claim.leg.peer, work.start, work.end, state, note, tuple(verdicts), auditors)
