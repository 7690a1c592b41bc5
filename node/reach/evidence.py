"""Why we believe what we do about our reachability, in words for people (`shoal netcheck`)."""

import math
from dataclasses import dataclass
from typing import Literal

from node.host.addresses import Address
from node.host.interfaces import is_global
from node.reach.candidates import Candidate
from node.reach.family import Family
from wire.ids import PeerId

Kind = Literal["address", "outside", "router", "mapping", "dial-back"]

NAMES = {"ip4": "IPv4", "ip6": "IPv6"}


@dataclass(frozen=True)
class Evidence:
    """One finding. is_good: it helps others to reach us, it does not, or it says nothing (None).

    at: when it was found, on trio's clock; None if it holds now.
    """

    kind: Kind
    is_good: bool | None
    words: str
    at: float | None = None

    def told(self, now: float) -> str:
        """Return the words, with how long ago it was."""
        if self.at is None:
            return self.words
        return f"{self.words.removesuffix('.')}, {_ago(now - self.at)}."


def about(family: Family) -> list[Evidence]:
    """Say what is known of one address family, from the addresses to the verdict's own ground."""
    if not family.own:
        return []
    found = [_addresses(family), *_outside(family)]
    if family.observed is not None:
        found.append(_observed(family.own, family.observed))
    if family.behaviour is not None:
        kind = family.behaviour
        found.append(Evidence("mapping", kind.is_punchable, _sentence(kind.words)))
    found += [_dial_back(one) for one in family.candidates.values() if one.answers]
    return found


def _addresses(family: Family) -> Evidence:
    shown = ", ".join(f"{one.host} ({_scope(one.host)})" for one in family.own)
    is_good = any(is_global(one.host) for one in family.own) or None
    return Evidence("address", is_good, f"{NAMES[family.network]}: {shown}, port {_ports(family)}.")


def _ports(family: Family) -> str:
    return " and ".join(str(port) for port in dict.fromkeys(one.port for one in family.own))


def _outside(family: Family) -> list[Evidence]:
    if family.vantages:
        return []
    return [Evidence("outside", None, "No peer outside is connected that could be asked.")]


def _observed(own: list[Address], observed: Address) -> Evidence:
    if observed in own:
        return Evidence("router", True, f"Outside we are seen at {_place(observed)}: our own.")
    ours = {one.host: one.port for one in own}
    if observed.host in ours:
        words = f"Outside we are seen at {_place(observed)}: a router changes our port."
    else:
        words = f"Outside we are seen at {_place(observed)}: a router translates our address."
    return Evidence("router", None, words)


def _dial_back(one: Candidate) -> Evidence:
    """Report a round: who got in, who did not, and who proves nothing."""
    place = _place(one.address)
    if one.via:
        place += f" (given by the router, {one.via})"
    yes = [each.peer for each in one.answers if each.reached and each.is_proof]
    no = [each.peer for each in one.answers if not each.reached]
    let_in = [each.peer for each in one.answers if each.reached and not each.is_proof]
    parts = list[str]()
    if yes:
        parts.append(f"{_peers(yes)} dialled us at {place}")
    if no:
        parts.append(f"{_peers(no)} could not dial {place}")
    if let_in:
        parts.append(
            f"{_peers(let_in)} got in at {place}, but only after we had opened the way ourselves"
        )
    if len(yes) + len(no) == 1:
        parts.append("nobody else could be asked")
    at = one.closed_at if math.isfinite(one.closed_at) else None
    return Evidence("dial-back", one.reached, _sentence("; ".join(parts)), at)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def _place(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def _peers(peers: list[PeerId]) -> str:
    return " and ".join(f"…{peer[-8:]}" for peer in peers)


def _ago(age_s: float) -> str:
    return f"{age_s:.0f} s ago" if age_s < 90 else f"{age_s / 60:.0f} min ago"


def _scope(host: str) -> str:
    return "global" if is_global(host) else "private"
