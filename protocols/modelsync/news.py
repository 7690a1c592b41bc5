"""What the data of an attempt ends in: faults of members, or the complete result."""

from collections.abc import Callable
from dataclasses import dataclass

from protocols.modelsync.codecs import Vector
from protocols.modelsync.wire import Prepare
from wire.ids import PeerId

OPEN_S = 4.0  # seconds to open a stream
PIECE_WAIT_S = 4.0  # seconds for the next chunk of a contribution: 256 KiB/s
MEAN_WAIT_S = 7.0  # seconds for the next chunk of a mean; its owner blames first
SEAL_RATE = 20_000_000  # elements/s that any member seals at least
ADOPT_RATE = 250_000  # elements/s at which who lacks a result gets it at least: 1 MB/s of float32


@dataclass(frozen=True)
class Fault:
    """What we saw go wrong with another member.

    reason: "silent" (too slow counts), "broken" (its stream or connection), "bad" (bytes that are
    no contribution or mean, or not what it committed to), "aborted" (it has left the attempt).
    """

    accused: PeerId
    reason: str


@dataclass(frozen=True)
class Complete:
    """The result lies here. `shards` are the hashes that DONE tells, in member order."""

    shards: list[bytes]


@dataclass(frozen=True)
class Held:
    """A result that we have signed and do not know the end of: what those without it must adopt.

    `data` has the encoded bytes of each shard's mean, in member order, chunk by chunk. In a mix,
    whose results differ, it is empty: `mixed` is ours.
    """

    prepare: Prepare
    shards: list[bytes]
    data: list[list[memoryview]]
    mixed: Vector | None = None


News = Callable[[Fault | Complete], None]


def extra_s(prepare: Prepare) -> float:
    """Seconds that members may take besides the usual, to encode all of it or to get it all."""
    if prepare.adopt is not None:
        return prepare.elements / ADOPT_RATE
    return prepare.elements / SEAL_RATE if prepare.is_sealed else 0.0
