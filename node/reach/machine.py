"""Reachability: what others can do to reach us, and how we know. Pure; docs/protocols/reach.md.

It is told what was seen, and says what to look at next (`due`, until `deadline`). IPv4 and IPv6
have a `Family` each; the node's verdict is that of the better one. Time is trio's clock, in s.
"""

from collections.abc import Callable, Sequence

from node.host.addresses import Address
from node.host.interfaces import is_global
from node.reach.behaviour import Behaviour
from node.reach.candidates import Candidate, Outcome, Vantage
from node.reach.evidence import Evidence, about
from node.reach.family import RANKS, Effect, Family, State
from wire.ids import PeerId

NETWORKS = ("ip4", "ip6")


class Reachability:
    """is_outside: which IP addresses may be asked about; tests on loopback allow more."""

    def __init__(self, is_outside: Callable[[str], bool] = is_global) -> None:
        self.families = {network: Family(network, is_outside) for network in NETWORKS}

    # what was seen

    def interfaces(self, addresses: Sequence[Address], now: float) -> bool:
        """Take where we listen, on each interface; True if that changed, which voids the rest."""
        changed = [
            family.set_own([one for one in addresses if one.network == family.network])
            for family in self.families.values()
        ]
        self._judge(now)
        return any(changed)

    def restart(self, now: float) -> None:
        """Begin anew: the network may be another, though the addresses are the same."""
        for family in self.families.values():
            family.restart()
        self._judge(now)

    def outside(self, vantages: Sequence[Vantage], now: float) -> None:
        """Take which peers outside are connected, those to prefer first."""
        for family in self.families.values():
            family.set_vantages(list(vantages), now)
        self._judge(now)

    def mapped(self, mapped: dict[Address, str], now: float) -> None:
        """Take the addresses that routers gave us on request, and by which protocol."""
        for family in self.families.values():
            own = {one: via for one, via in mapped.items() if one.network == family.network}
            family.set_mapped(own)
        self._judge(now)

    def observed(self, address: Address, now: float) -> None:
        """Take what an anchor's server sees us at."""
        self.families[address.network].set_observed(address)
        self._judge(now)

    def identified(self, peer: PeerId, address: Address | None, now: float) -> None:
        """Take at which address a peer says that it dialled us; None if it does not."""
        if address is not None:
            self.families[address.network].set_identified(peer, address)
            self._judge(now)

    def released(self, network: str, peer: PeerId, now: float) -> None:
        """Note that an anchor is gone, or could not be made."""
        self.families[network].release(peer, now)

    def probed(self, network: str, behaviour: Behaviour | None, now: float) -> None:
        """Take what a ProbeMapping found; None if nobody answered."""
        self.families[network].probed(behaviour, now)
        self._judge(now)

    def dialled_back(self, peer: PeerId, address: Address, outcome: Outcome, now: float) -> None:
        """Take what an AskDialBack found."""
        self.families[address.network].dialled_back(peer, address, outcome, now)
        self._judge(now)

    # what to look at

    def due(self, now: float) -> list[Effect]:
        """Return what to begin now; each counts as begun until its outcome is told."""
        effects = [effect for family in self.families.values() for effect in family.due(now)]
        self._judge(now)
        return effects

    def deadline(self, now: float) -> float:
        """When `due` may have more to say though nothing was told; infinity if never."""
        return min(family.deadline(now) for family in self.families.values())

    # what we believe

    @property
    def verdict(self) -> State:
        """The node's reachability."""
        if not self._listens and any(family.vantages for family in self.families.values()):
            return "relayed"
        return max((family.state for family in self.families.values()), key=RANKS.__getitem__)

    @property
    def needs_relays(self) -> bool:
        """True if some peers cannot dial us: where we have IPv4, IPv6 alone does not do."""
        ip4, ip6 = (self.families[network] for network in NETWORKS)
        main = ip4 if ip4.own else ip6
        return (main.state if self._listens else self.verdict) in ("relayed", "punchable")

    @property
    def behaviour(self) -> Behaviour | None:
        """The mapping behaviour, of IPv4 if that is known."""
        found = [family.behaviour for family in self.families.values()]
        return next((one for one in found if one is not None), None)

    @property
    def evidence(self) -> list[Evidence]:
        """How we know, in words, IPv4 first."""
        if not self._listens:
            words = "We listen at no address: others reach us through relays only."
            return [Evidence("address", False, words)]
        return [one for family in self.families.values() for one in about(family)]

    def addresses(self) -> list[Address]:
        """Those to announce: the interfaces' own, and what others reached besides."""
        found = [one for one in self._candidates() if one.source == "interface" or one.reached]
        return [one.address for one in found]

    def candidates(self) -> list[Address]:
        """Those that a peer may try while we do the same: interfaces', mapped, observed.

        Observed ones also where a router takes a new port for each destination: a peer's router
        that lets in whom it has sent something, from any port, must have sent something there.
        """
        order = ("interface", "mapped", "observed")
        found = sorted(self._candidates(), key=lambda one: order.index(one.source))
        return [one.address for one in found]

    @property
    def _listens(self) -> bool:
        return any(family.own for family in self.families.values())

    def _candidates(self) -> list[Candidate]:
        return [one for family in self.families.values() for one in family.candidates.values()]

    def _judge(self, now: float) -> None:
        for family in self.families.values():
            family.judge(now)
