"""Which pairs of router types can be direct over TCP: measured with plain sockets.

42 of 55: 37 without prediction, 5 more by predicting the next ports of a sequential router. The
other 13 need a relay, whatever a program does, unless it guesses random ports (which needs UDP).
"""

from itertools import combinations_with_replacement

from tests.net.lab.rules import KINDS, Kind

Pair = tuple[Kind, Kind]
RANDOM: tuple[Kind, ...] = ("symmetric", "cgnat-sym")  # each destination has its own, random port
UNFILTERED: tuple[Kind, ...] = ("open", "fullcone", "restricted")  # let in whom they sent to
PAIRS: tuple[Pair, ...] = tuple(combinations_with_replacement(KINDS, 2))


def can_be_direct(one: Kind, other: Kind) -> bool:
    """Whether plain sockets reached it: a random port is met only where the port doesn't matter."""
    if one in RANDOM:
        return other in UNFILTERED
    return other not in RANDOM or one in UNFILTERED


DIRECT: frozenset[Pair] = frozenset(pair for pair in PAIRS if can_be_direct(*pair))
