"""What the stages of a session say they did, against each other and what the entry saw. No I/O.

A stage's word is its signature under a `Work`, whatever the network says of who sent it. What is
checked here is checked for every session; whether the work was done is for audits (audit.py).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from protocols.sharding.commitments import (
    SKETCH_VALUES,
    Commitment,
    Distance,
    commit,
    distance,
    read,
    same,
)
from protocols.sharding.rows import ID_BYTES, ids_to_rows
from protocols.sharding.wire import ROWS_MAX, SESSION_TOKENS_MAX, Receipt, Sampling, Work
from wire.codec import decode, encode
from wire.errors import BadMessage
from wire.ids import PeerId, Signer, verify

MAX = SESSION_TOKENS_MAX  # rows: all that there are
RECEIPT_TAG = "shoal-sharding-receipt"  # the domain of a stage's signature

_work_decoder = msgspec.msgpack.Decoder(Work)


@dataclass(frozen=True)
class Tolerance:
    """How far honest work may be from its recomputation: `slack + mean * values` steps in all.

    A step is one value of bfloat16; `mean` the share that each compared value adds, `slack` what a
    short session may have by chance.
    """

    mean: float
    slack: int


# By what the model is computed in. Measured with SmolLM2 (`make bench-answer`): decode steps, alone
# and batched, and other chunks, against one prefill. float32: 0.000 steps, the mildest cheat (int8
# weights over 2 layers) 0.18. bfloat16: up to 0.93 over 15 layers, int8 weights 1.6, int4 9: so
# int8 weights pass in a bfloat16 model, and everything coarser does not.
TOLERANCES = {
    "float32": Tolerance(0.02, 2),
    "float16": Tolerance(0.3, 8),
    "bfloat16": Tolerance(2.0, 40),
}


@dataclass(frozen=True)
class Leg:
    """One stage of a session that has ended; `receipt` is None where none came."""

    peer: PeerId
    start: int
    end: int
    takes: str
    gives: str
    receipt: Receipt | None


@dataclass(frozen=True)
class Ended:
    """A session that has ended, as its entry knows it.

    picks: the tokens that the entry took, after those of the prompt. has_replaced: a stage was lost
    on the way and computed again, so that rows are close to those from before, not the same.
    """

    entry: PeerId
    session: bytes
    name: str
    model: str
    dtype: str
    hidden_size: int
    legs: Sequence[Leg]
    sampling: Sampling
    prompt: list[int]
    picks: list[int]
    has_replaced: bool = False

    @property
    def tokens(self) -> list[int]:
        """All token ids, by position."""
        return [*self.prompt, *self.picks]

    @property
    def settled(self) -> int:
        """How many rows every stage has for good. Where the last token belongs there may be a
        rejected guess still, at some stages or at all, and guesses behind it.
        """
        return len(self.tokens) - 1 if self.picks else len(self.prompt)


@dataclass(frozen=True)
class Claim:
    """What one stage signed, read and in itself consistent."""

    leg: Leg
    work: Work
    inputs: Commitment
    outputs: Commitment


@dataclass(frozen=True)
class Fault:
    """Something that cannot be of an honest route: by `peer`; or, where two say different things of
    the rows between them, by it or the one before it (`is_link`). `index`: of the stage.
    """

    index: int
    peer: PeerId
    why: str
    is_link: bool = False


@dataclass(frozen=True)
class Checked:
    """What came of a session's receipts. `claims` has None where there is none, or a bad one."""

    claims: list[Claim | None]
    faults: list[Fault]


def sign(signer: Signer, work: Work) -> Receipt:
    """Return the receipt of a stage's work."""
    body = encode(work)
    return Receipt(body, signer.sign(RECEIPT_TAG, body))


def check(ended: Ended) -> Checked:
    """Check all receipts of a session."""
    claims: list[Claim | None] = []
    faults: list[Fault] = []
    for index, leg in enumerate(ended.legs):
        claim = None
        if leg.receipt is not None:
            try:
                claim = read_claim(ended, leg, leg.receipt)
            except BadMessage as error:
                faults.append(Fault(index, leg.peer, str(error)))
        claims.append(claim)
    for index, (before, after) in enumerate(itertools.pairwise(claims), 1):
        if before is not None and after is not None and not _linked(ended, before, after):
            why = f"rows into block {after.work.start} are claimed to differ at the two ends"
            faults.append(Fault(index, after.leg.peer, why, is_link=True))
    faults += _own_ends(ended, claims)
    return Checked(claims, faults)


def read_claim(ended: Ended, leg: Leg, receipt: Receipt) -> Claim:
    """Read what a stage signed. Raises BadMessage: a forgery, or not the work it was asked for."""
    if not verify(leg.peer, RECEIPT_TAG, receipt.work, receipt.signature):
        raise BadMessage("the receipt is not signed by the stage")
    work = decode(receipt.work, _work_decoder, ROWS_MAX)
    said = (work.session, work.model, work.entry, work.dtype)
    if said != (ended.session, ended.model, ended.entry, ended.dtype):
        raise BadMessage("the receipt is of another session")
    if (work.start, work.end, work.takes, work.gives) != (leg.start, leg.end, leg.takes, leg.gives):
        raise BadMessage(f"blocks {work.start}-{work.end} were not what it was asked for")
    needed = ended.settled if ended.picks else 0  # who hangs up early gets less
    if not max(work.base, needed) <= work.position:
        raise BadMessage(f"the receipt is for {work.position} rows, the answer took more")
    inputs = read(work.base, work.position, work.inputs, ids=work.takes == "ids")
    outputs = read(work.base, work.position, work.outputs, ids=False)
    return Claim(leg, work, inputs, outputs)


def differs(ours: Commitment, theirs: Commitment, dtype: str, until: int = MAX) -> str | None:
    """Return why two commitments cannot both be of honest work on the same rows, those before
    `until`; None if they can.

    dtype: what the model is computed in. An unknown one gets the tolerance of bfloat16.
    """
    found = distance(ours, theirs, until)
    tolerance = TOLERANCES.get(dtype, TOLERANCES["bfloat16"])
    return None if is_close(found, tolerance) else f"{_text(found)} from recomputation"


def is_close(found: Distance, tolerance: Tolerance) -> bool:
    """Whether honest work can be so far from its recomputation."""
    return found.total <= tolerance.slack + tolerance.mean * found.values


def commit_rows(rows: bytes, size: int, base: int, position: int) -> Commitment:
    """Return the commitment to encoded rows [base, position) that we hold, without sketches."""
    digests = commit(rows[base * size : position * size], size, base) if base < position else []
    empty = np.zeros((0, SKETCH_VALUES, 3), np.uint8)
    return Commitment(base, max(base, position), tuple(digests), empty)


def _text(found: Distance) -> str:
    return f"{found.values} values, {found.mean:.2f} steps of bfloat16 in the mean"


def _linked(ended: Ended, before: Claim, after: Claim) -> bool:
    """Whether what one stage gave is what the next one took."""
    gave, took, until = before.outputs, after.inputs, ended.settled
    if same(gave, took, until):
        return True
    return ended.has_replaced and differs(gave, took, ended.dtype, until) is None


def _own_ends(ended: Ended, claims: list[Claim | None]) -> list[Fault]:
    """Check the first stage's ids and the last one's picks: the entry knows both itself."""
    faults: list[Fault] = []
    first, last = claims[0], claims[-1]
    if first is not None:
        position = min(first.work.position, ended.settled)
        sent = commit_rows(ids_to_rows(ended.tokens), ID_BYTES, first.work.base, position)
        if not same(sent, first.inputs, position):
            why = "it claims other token ids than it was sent"
            faults.append(Fault(0, first.leg.peer, why))
    if last is not None:
        picked, start = dict(last.work.picks), len(ended.prompt)
        got = dict(enumerate(ended.picks, start))
        wrong = [at for at, token in picked.items() if got.get(at, token) != token]
        lacks = not ended.has_replaced and any(at not in picked for at in got)
        if wrong or lacks:
            why = "it claims other picks than it gave"
            faults.append(Fault(len(claims) - 1, last.leg.peer, why))
    return faults
