"""Whether a key is crowded: more servers beside it than chance would have put there. Pure.

Identities next to a key are ground at 45,000/s a core. Hundreds of them, from many networks, are
all that honest neighbours find room for in their answers, and liars show nobody else: what should
be stored in the whole region would never come to the honest ones in it. These are found by asking
two kinds of peers who cannot all be the attacker's: some from all over our table; and those of the
region, evenly over its width, for their own neighbours instead of the key's.
"""

import random
from bisect import bisect_left
from collections.abc import Sequence

from dht.candidates import Candidate
from dht.table import K

CROWD = 5  # so many times the density that is expected: 20 where 5 should be, once in a million
MANY = 5 * K // 2  # in a region in which 25 are expected: once in 100,000
FAR = 8  # asked from all over the table: 20 % liars are all of them once in 400,000
AROUND_MAX = 100  # asked for their own neighbours: of 200 Sybils and 25 others, most of the others
AROUND_AT_ONCE = 24  # as many as may fly in a lookup with failures


def is_crowded(distances: Sequence[int], region: int) -> bool:
    """Whether too many live at these distances from a key: sorted, all within its region."""
    is_dense = len(distances) >= K and distances[K - 1] * CROWD < region
    return is_dense or len(distances) > MANY


def evenly(candidates: Sequence[Candidate], region: int, rng: random.Random) -> list[Candidate]:
    """Return candidates (given nearest first) in the order in which random points meet them.

    Who is alone in a part of the region comes early, and who is one of a crowd late: nearness is
    no merit here, for it is what is ground.
    """
    left = list(candidates)
    distances = [one.distance for one in left]
    order = list[Candidate]()
    while left:
        point = rng.randrange(region + 1)
        at = bisect_left(distances, point)
        is_before = at == len(left) or (
            at > 0 and point - distances[at - 1] < distances[at] - point
        )
        at -= is_before
        order.append(left.pop(at))
        del distances[at]
    return order
