"""Who mixes with whom: doubly stochastic weights of gossip averaging.

Members are numbers in member order. Columns sum to 1 like rows, so what all hold together is kept,
and every topology, repeated, drives members to the mean. Its twin is in shoal/learn/exact.py; a
test holds them equal.
"""

import hashlib
import math

from protocols.modelsync.wire import Prepare
from wire.errors import BadMessage


def sources(prepare: Prepare, member: int) -> dict[int, float]:
    """Return whose vectors a member takes, itself included, and with which weights.

    ring: both neighbours and ourselves alike (Lian et al. 2017). complete: all alike. exponential:
    ourselves and who is 2^(round mod log2 n) places before us: exact after log2 n rounds of 2^k
    members (Assran et al. 2019). pairs: a matching drawn by run, lane and round; of an odd number
    one is left over. Keys ascend. Raises BadMessage for a topology that is no mix.
    """
    count = len(prepare.members)
    match prepare.topology:
        case "complete":
            taken = set(range(count))
        case "ring":
            taken = {(member - 1) % count, member, (member + 1) % count}
        case "exponential":
            steps = max(1, math.ceil(math.log2(count)))
            taken = {member, (member - (1 << prepare.round % steps)) % count}
        case "pairs":
            taken = {member, _partner(prepare, member)}
        case _:
            raise BadMessage(f"no mix: {prepare.topology}")
    return {other: 1 / len(taken) for other in sorted(taken)}


def targets(prepare: Prepare, member: int) -> list[int]:
    """Return who takes a member's vector, other than itself."""
    others = (other for other in range(len(prepare.members)) if other != member)
    return [other for other in others if member in sources(prepare, other)]


def _partner(prepare: Prepare, member: int) -> int:
    """Line members up by SHA-256 of seed and peer, and pair neighbours."""
    seed = f"{prepare.run}\0{prepare.lane}\0{prepare.round}"

    def rank(other: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{prepare.members[other]}".encode()).digest()

    line = sorted(range(len(prepare.members)), key=rank)
    place = line.index(member) ^ 1
    return line[place] if place < len(line) else member
