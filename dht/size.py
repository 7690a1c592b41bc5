"""How large the network is, and so how far the k nearest to a key are: the region to store to.

From the density of contacts at targets that an attacker cannot choose: near ourselves, and near
the random targets of refreshes; never near the key at hand. Of n uniform keys the m-th nearest to a
point is expected within m/n of the key space, and (m - 1) / (its share of the space) is an unbiased
estimate of n (deviation 1/sqrt(m - 2): 24 % at 20). The median of many such looks is nearer, and an
attacker who sits beside a few of the targets hardly moves it. Pure.
"""

from collections.abc import Sequence
from statistics import median_low

from dht.key import KEY_BITS, Key
from dht.messages import Contact
from dht.table import K

LOOKS_MAX = 31  # newest looks that count: half an hour of refreshes; the median deviates by 5 %
REGION_SLACK = 1.25  # so that an estimate that is 20 % too high still has all k within the region
SPACE = 1 << KEY_BITS


class NetworkSize:
    """A robust estimate of how many servers there are."""

    def __init__(self, *, k: int = K) -> None:
        self._k = k
        self._looks: dict[Key, float] = {}  # by target, oldest first

    def saw(self, target: Key, nearest: Sequence[Contact]) -> None:
        """A lookup of a random target, or of our own key, found these live ones nearest to it.

        nearest: nearest first; fewer than k mean that there are no more; none, that nobody could be
        reached, which tells nothing. One target counts once, however often it is looked at (our own
        is, all the time).
        """
        if not nearest:
            return
        self._looks.pop(target, None)
        if len(self._looks) >= LOOKS_MAX:
            del self._looks[next(iter(self._looks))]
        self._looks[target] = self._estimate(target, nearest)

    @property
    def looks(self) -> int:
        """How many looks the estimate rests on."""
        return len(self._looks)

    def size(self) -> float:
        """Return the number of servers besides us; 0 before the first look.

        Of an even number of looks the lower of the two in the middle: a network that is thought too
        small costs messages, one thought too large costs records.
        """
        return median_low(self._looks.values()) if self._looks else 0.0

    def region(self, count: int = K) -> int:
        """Return the XOR distance within which `count` servers are expected, with slack.

        The whole space if so few are known (or none yet).
        """
        size = self.size()
        share = count * REGION_SLACK / size if size else 1.0
        return SPACE - 1 if share >= 1.0 else int(share * SPACE)

    def _estimate(self, target: Key, nearest: Sequence[Contact]) -> float:
        if len(nearest) < self._k:
            return float(len(nearest))
        distance = max(one.key ^ target for one in nearest[: self._k])
        return max(float(self._k), (self._k - 1) * (SPACE / distance))
