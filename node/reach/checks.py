"""What `shoal netcheck` says: the view of our reachability in words for people, and what to do.

Pure: facts in, checks out. Where a router or a provider must be asked, the fix says what for.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from node.host.addresses import Address, is_loopback
from node.host.interfaces import is_global
from node.host.views import PeerView
from node.reach.views import Held, Punch, ReachView
from shoal.reach import Check, Level
from wire.ids import PeerId

SKEW_WARN_MS = 1_000  # less says nothing, as links differ
SKEW_FAIL_MS = 30_000  # from here on others do not take what we write (crdt/clock.py)
SETTLING_S = 20.0  # after a start the probes are at work, and nothing is wrong yet
RELAYS_WANTED = 2  # held at a time, so that one may go
NAMED_MAX = 5  # peers in one line
GUIDE = "docs/networking.md"

_FEW = (
    "direct connections only to peers whose routers let any port in (open, full-cone, "
    "restricted-cone)"
)
NAT_WORDS = {
    "none": "no router translates this machine's address",
    "endpoint-independent": "your router keeps one port for all peers (cone): they can punch "
    "through it",
    "address-dependent": f"your router chooses a new port for every peer's address: {_FEW}",
    "sequential": "your router chooses a new port for every peer, counting up (symmetric, but "
    "predictable): direct connections to all peers but those behind random ports",
    "random": f"your router chooses a new port for every peer (symmetric): {_FEW}",
}


@dataclass(frozen=True)
class Facts:
    """What the checks are about. `uptime_s`: since the daemon's start."""

    view: ReachView
    listening: Sequence[Address]  # of the interfaces, with the real ports
    peers: Sequence[PeerView] = ()
    names: Mapping[PeerId, str] = field(default_factory=dict[PeerId, str])
    clock_skew_ms: int = 0
    uptime_s: float = 3600.0
    mdns: bool = True
    port_mapping: bool = True

    def name(self, peer: PeerId) -> str:
        """What people call a peer."""
        return self.names.get(peer) or f"…{peer[-8:]}"

    @property
    def is_reached(self) -> bool:
        """Whether anybody can dial us over IPv4, or over IPv6 where that is all we have."""
        main = self.view.ip4 if any(_is_ip4(one) for one in self.listening) else self.view.ip6
        return main in ("public", "mapped")

    @property
    def is_hidden(self) -> bool:
        """Whether those outside need a relay to begin with."""
        return not self.is_reached and self.view.verdict in ("punchable", "relayed")

    @property
    def is_settling(self) -> bool:
        """Whether it is too early to call anything missing."""
        return self.uptime_s < SETTLING_S

    @property
    def forward(self) -> str:
        """What lets others in, for a person to do."""
        ports = list(dict.fromkeys(one.port for one in self.listening if _is_ip4(one)))
        port = f"TCP port {ports[0]}" if ports else "the listening port"
        return f"turn on UPnP or NAT-PMP in the router, or forward {port} to this machine"


def checks(facts: Facts) -> list[Check]:
    """Judge everything, in the order of `shoal netcheck`."""
    judges: tuple[Callable[[Facts], Check], ...] = (
        _interfaces,
        _listening,
        _reachability,
        _router,
        _port_mapping,
        _ipv6,
        _relays,
        _relay_service,
        _peers,
        _punching,
        _clock,
        _mdns,
    )
    return [judge(facts) for judge in judges]


def _interfaces(facts: Facts) -> Check:
    hosts = list(dict.fromkeys(one.host for one in facts.listening))
    outer = [host for host in hosts if not is_loopback(host)]
    if not outer:
        return _warn(
            "interfaces",
            "only this machine itself can be reached: it listens on loopback",
            'connect it to a network, and listen on "/ip4/0.0.0.0/tcp/0" (net.listen)',
        )
    return _ok(
        "interfaces", ", ".join(f"{_family(host)} {host} ({_scope(host)})" for host in hosts)
    )


def _listening(facts: Facts) -> Check:
    ports = dict[int, set[str]]()
    for one in facts.listening:
        ports.setdefault(one.port, set()).add("IPv4" if _is_ip4(one) else "IPv6")
    if not ports:
        return _fail("listening", "on no port", "`shoal config check` looks at net.listen")
    words = [f"TCP {port} on {' and '.join(sorted(nets))}" for port, nets in ports.items()]
    return _ok("listening", ", ".join(words))


def _reachability(facts: Facts) -> Check:
    view, name = facts.view, "reachability"
    words = {
        "public": "public: anybody can dial this machine, and it may relay for others",
        "mapped": "mapped: anybody can dial this machine through a port of the router",
        "punchable": "punchable: peers meet this machine through a relay, and directly within "
        "seconds",
    }
    if facts.is_reached:
        return _ok(name, words["mapped" if view.verdict == "mapped" else "public"])
    if view.verdict in ("public", "mapped"):
        rest = "punchable" if view.ip4 == "punchable" else "relayed"
        return _ok(name, f"{view.verdict} over IPv6; over IPv4 {rest}")
    if view.verdict == "punchable":
        return _ok(name, words["punchable"])
    if view.verdict == "relayed":
        text = "relayed: many peers reach this machine through a relay only, which is slower"
        return _warn(name, text, facts.forward)
    if facts.is_settling:
        return _ok(name, "not known yet: the daemon has just started")
    if not view.outside:
        return _ok(
            name,
            "not known: no connected peer is outside of this network, so that nobody can say how "
            "it looks from there (on one LAN nothing else is needed)",
        )
    return _warn(
        name,
        f"not known: {_count(view.outside, 'peer')} outside could be asked, and none has answered",
        "look again in a minute; `shoal logs` says more at level debug",
    )


def _router(facts: Facts) -> Check:
    kind, name = facts.view.behaviour, "router"
    text = NAT_WORDS.get(kind)
    if text is None:
        return _ok(name, "how it chooses ports is not known: no public peer could be asked")
    if kind == "none" and facts.is_hidden:
        return _warn(
            name,
            f"{text}, but a firewall keeps peers from dialling it; they can punch through",
            f"allow TCP port {_port(facts)} in the firewall",
        )
    if facts.is_reached and kind in ("address-dependent", "sequential", "random"):
        return _ok(name, f"{text}; it can be dialled, so that this does not matter")
    if kind in ("none", "endpoint-independent"):
        return _ok(name, text)
    return _warn(name, text, facts.forward)


def _port_mapping(facts: Facts) -> Check:
    view, name = facts.view, "port mapping"
    said = "; ".join(f"{way}: {words}" for way, words in view.port_maps_tried.items())
    if view.port_maps:
        got = view.port_maps[0]
        text = f"{got.address} by {got.via} of {got.gateway}, {got.left_s / 60:.0f} min left"
        if facts.is_reached or view.verdict == "unknown" or facts.is_settling:
            return _ok(name, text)
        return _warn(
            name,
            f"{text}, but nobody outside gets in there: another router stands before this one "
            "(the provider's, for many homes)",
            "ask the provider for a public IPv4 address, or for IPv6",
        )
    if not facts.port_mapping:
        fix = "" if facts.is_reached else "set net.port_mapping = true, or forward a port by hand"
        level: Level = "warn" if fix and view.verdict == "relayed" else "ok"
        return Check(name, level, "off (net.port_mapping = false)", fix if level == "warn" else "")
    if view.verdict == "relayed":
        return _warn(name, f"none ({said or 'no router was asked'})", facts.forward)
    text = "none" + (" needed" if facts.is_reached else "")
    return _ok(name, f"{text} ({said})" if said else text)


def _ipv6(facts: Facts) -> Check:
    view, name = facts.view, "IPv6"
    hosts = [one.host for one in facts.listening if not _is_ip4(one)]
    if not any(is_global(host) for host in hosts):
        return _ok(name, "no global address here")
    if view.ip6 == "public":
        return _ok(name, "open: anybody with IPv6 can dial this machine")
    if view.ip6 == "punchable":
        return _warn(
            name,
            "firewalled: this machine has a global address that peers cannot dial, only punch to",
            f"allow TCP port {_port(facts, ip4=False)} to this machine in the router's IPv6 "
            "firewall",
        )
    return _ok(
        name, "a global address; how it looks from outside is not known: no peer outside has IPv6"
    )


def _relays(facts: Facts) -> Check:
    held, name = facts.view.held, "relays"
    if held:
        text = ", ".join(_relay(facts, one) for one in held)
        if len(held) >= RELAYS_WANTED or facts.is_settling:
            return _ok(name, text)
        return _warn(
            name,
            f"{text}; only one, so that peers lose this machine for seconds if it goes",
            f"a second node with a public address, in another network ({GUIDE})",
        )
    if not facts.is_hidden:
        return _ok(name, "none needed" if facts.is_reached else "none held")
    if facts.is_settling:
        return _warn(name, "none held yet", "look again in half a minute")
    return _fail(
        name,
        "none held: peers that this machine does not dial itself cannot reach it",
        "one member must run where others can dial it: a rented machine, or a forwarded port "
        f"({GUIDE})",
    )


def _relay(facts: Facts, one: Held) -> str:
    rtt = "delay not known" if one.rtt_ms is None else f"{one.rtt_ms:.0f} ms"
    return f"{facts.name(one.relay)} at {one.host} ({rtt})"


def _relay_service(facts: Facts) -> Check:
    relay, name = facts.view.relay, "relay service"
    if not relay.is_on:
        why = "" if facts.is_reached else ": others cannot dial this machine"
        return _ok(name, f"off{why}")
    text = (
        f"on: {_count(relay.reservations, 'reservation')}, {_count(relay.circuits, 'circuit')}, "
        f"{relay.bytes / 1e6:.1f} MB relayed"
    )
    if not facts.is_reached and facts.view.verdict != "unknown":
        return _warn(
            name,
            f"{text}; but others cannot dial this machine",
            'set net.relay = "auto", which serves only where it can be used',
        )
    return _ok(name, text + (f", {relay.refused} refused" if relay.refused else ""))


def _peers(facts: Facts) -> Check:
    name = "peers"
    if not facts.peers:
        if facts.is_settling:
            return _ok(name, "none connected yet")
        return _warn(
            name,
            "none connected",
            "`shoal ticket` prints what another machine needs; `shoal members` lists who was here",
        )
    paths = Counter(path_of(one) for one in facts.peers)
    text = f"{len(facts.peers)} connected: " + ", ".join(
        f"{paths[path]} {path}" for path in ("direct", "punched", "relayed") if paths[path]
    )
    relayed = [one for one in facts.peers if one.path == "relayed"]
    shown = [
        f"{facts.name(one.peer)} via {facts.name(one.relay)}" if one.relay else facts.name(one.peer)
        for one in relayed[:NAMED_MAX]
    ]
    if shown:
        more = len(relayed) - len(shown)
        text += f" ({', '.join(shown)}{f' and {more} more' if more else ''})"
    return _ok(name, text)


def _punching(facts: Facts) -> Check:
    name = "hole punching"
    punches = facts.view.punches
    if not punches:
        return _ok(name, "none was needed")
    shown = [_punch(facts, one) for one in punches[:NAMED_MAX]]
    more = len(punches) - len(shown)
    text = "; ".join(shown) + (f"; and {more} more" if more else "")
    relayed = {one.peer for one in facts.peers if one.path == "relayed"}
    stuck = [one for one in punches if one.peer in relayed and one.outcome == "failed"]
    if not stuck or facts.is_reached:
        return _ok(name, text)
    return _warn(
        name,
        f"{text}; {_count(len(stuck), 'peer')} only through a relay",
        f"{facts.forward}, here or at the other end",
    )


def _punch(facts: Facts, one: Punch) -> str:
    said = {
        "direct": f"direct after {one.took_s:.1f} s",
        "failed": f"no way through in {_count(one.tries, 'try', 'tries')}, {one.age_s:.0f} s ago",
        "trying": "being tried",
    }
    return f"{facts.name(one.peer)} {said[one.outcome]}"


def _clock(facts: Facts) -> Check:
    skew_ms, name = facts.clock_skew_ms, "clock"
    if abs(skew_ms) < SKEW_WARN_MS:
        return _ok(name, "agrees with the peers'" if facts.peers else "nobody to compare it with")
    side = "ahead of" if skew_ms > 0 else "behind"
    text = f"{abs(skew_ms) / 1000:.1f} s {side} the peers'"
    fix = "set it: `timedatectl set-ntp true`"
    if abs(skew_ms) < SKEW_FAIL_MS:
        return _warn(name, text, fix)
    return _fail(name, f"{text}: what this node writes is not taken by others", fix)


def _mdns(facts: Facts) -> Check:
    if facts.mdns:
        return _ok("mDNS", "on: members on this LAN find each other")
    return _ok("mDNS", "off (net.mdns = false): members on this LAN need a ticket")


def path_of(peer: PeerView) -> str:
    """Name a peer's path: direct, punched or relayed."""
    return "punched" if peer.is_punched and peer.path == "direct" else peer.path


def _is_ip4(address: Address) -> bool:
    return address.network == "ip4"


def _port(facts: Facts, *, ip4: bool = True) -> int:
    return next((one.port for one in facts.listening if _is_ip4(one) == ip4), 0)


def _family(host: str) -> str:
    return "IPv6" if ":" in host else "IPv4"


def _scope(host: str) -> str:
    if is_loopback(host):
        return "this machine"
    return "global" if is_global(host) else "private"


def _count(number: int, noun: str, nouns: str = "") -> str:
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def _ok(name: str, text: str) -> Check:
    return Check(name, "ok", text)


def _warn(name: str, text: str, fix: str) -> Check:
    return Check(name, "warn", text, fix)


def _fail(name: str, text: str, fix: str) -> Check:
    return Check(name, "fail", text, fix)
