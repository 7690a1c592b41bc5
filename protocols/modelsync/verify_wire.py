"""What verification writes into the store, and how a contribution is asked for by its hash.

Keys of the namespace `runs`, each written by the author that it ends in, and nobody else:

    NAME/trust/case/LANE/ROUND/TARGET/@AUTHOR   Finding: an accusation, or a vote on one
    NAME/trust/ban/PEER/@AUTHOR                 Ban: what the author concluded
"""

from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from protocols.modelsync.wire import Data, Hash, LaneNumber, Round, RunName
from wire.codec import CHUNK_FRAME_MAX, Message
from wire.ids import PeerId
from wire.ports import Method

CHUNKS_MAX = 1 << 16  # of one contribution: 2^31 elements in chunks of 2^18, and one for each shard

Charge = Literal["differs", "withheld"]
Verdict = Literal["fine", "differs", "withheld"]


class Case(NamedTuple):
    """The contribution of `target` to a round of a lane."""

    lane: int
    round: int
    target: PeerId


class Finding(msgspec.Struct, array_like=True, frozen=True):
    """What its author found of a contribution.

    certificate: SHA-256 of the certificate's body. charge: what it answers, or, of an accuser,
    what it accuses of. verdict "fine" on the charge "withheld" means: here it is, by its hash.
    """

    certificate: Hash
    verdict: Verdict
    charge: Charge


class Ban(msgspec.Struct, array_like=True, frozen=True):
    """The author takes this peer for banned from the run, because of that case."""

    lane: LaneNumber
    round: Round
    reason: Literal["differs", "withheld", "accused"]


class Wanted(Message, frozen=True):
    """Give me the contribution with this commitment, chunk by chunk."""

    run: RunName
    lane: LaneNumber
    commitment: Hash


class Sample(Message, frozen=True):
    """One encoded chunk of a contribution; shard by shard, in member order."""

    index: Annotated[int, Meta(ge=0, le=CHUNKS_MAX)]
    data: Data


CONTRIBUTION = Method("modelsync.contribution", Wanted, Sample, CHUNK_FRAME_MAX)


def case_key(run: str, case: Case, author: PeerId) -> str:
    """Where an author's finding lies."""
    return f"{run}/trust/case/{case.lane:03d}/{case.round:08d}/{case.target}/@{author}"


def case_of(key: str, author: PeerId) -> Case | None:
    """Return the case that an author's key is about; None if it is none of its own."""
    parts = key.split("/")
    if len(parts) != 7 or parts[6] != f"@{author}":
        return None
    lane, round_, target = parts[3:6]
    if not (lane.isdecimal() and round_.isdecimal() and lane.isascii() and round_.isascii()):
        return None
    return Case(int(lane), int(round_), PeerId(target))


def ban_key(run: str, peer: PeerId, author: PeerId) -> str:
    """Where an author's ban of a peer lies."""
    return f"{run}/trust/ban/{peer}/@{author}"
