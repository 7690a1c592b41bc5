"""When to dial again, and in what order to try a peer's addresses: pure."""

from collections.abc import Iterable
from dataclasses import dataclass

FIRST_DELAY_S = 0.25  # a restarting daemon is back in about a second
DELAY_MAX_S = 30.0  # a machine that slept is found again within half a minute
ADDRESSES_MAX = 16  # per peer: more are a mistake or an attack on third parties
STAGGER_S = 0.05  # between starting to dial one address and the next; all run at once


@dataclass
class Backoff:
    """Exponential, with jitter so that a swarm does not come back in step."""

    delay_s: float = FIRST_DELAY_S

    def after_failure(self, share: float) -> float:
        """Return how long to wait now; `share` is random in [0, 1). The next wait is doubled."""
        assert 0.0 <= share < 1.0
        wait_s = self.delay_s * (0.5 + share / 2)
        self.delay_s = min(2 * self.delay_s, DELAY_MAX_S)
        return wait_s

    def reset(self) -> None:
        """The peer was there: begin anew."""
        self.delay_s = FIRST_DELAY_S


class AddressBook:
    """A peer's addresses, the one that worked last first; at most ADDRESSES_MAX."""

    def __init__(self) -> None:
        self._addresses: list[str] = []

    def learn(self, addresses: Iterable[str]) -> None:
        """Put what was told just now before what was known; the oldest fall out."""
        told = list(dict.fromkeys(addresses))[:ADDRESSES_MAX]
        known = [address for address in self._addresses if address not in told]
        self._addresses = (told + known)[:ADDRESSES_MAX]

    def hear(self, addresses: Iterable[str]) -> None:
        """Put what others told behind what is known: they must not push anything out."""
        self._addresses = list(dict.fromkeys([*self._addresses, *addresses]))[:ADDRESSES_MAX]

    def worked(self, address: str) -> None:
        """This one answered: try it first next time."""
        self.learn([address])

    def plan(self) -> list[str]:
        """Return the addresses in the order to try them."""
        return list(self._addresses)
