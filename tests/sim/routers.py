"""Routers of each type of facts/nat.md as pure models, and a world that does what the reachability
machine asks for, in any order. The rules are those of RFC 4787: how external ports are chosen
(mapping), and who is let in (filtering).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from node.host.addresses import Address
from node.reach.behaviour import Observation, classify
from node.reach.candidates import Outcome, Vantage
from node.reach.family import AskDialBack, AskIdentify, Effect, HoldAnchor, ProbeMapping
from node.reach.machine import Reachability
from wire.ids import PeerId

PORT = 4001
LISTENS = Address("ip4", "192.168.1.2", PORT)
LISTENS_6 = Address("ip6", "2a01:4f8::2", PORT)
WAN = "11.5.0.2"


@dataclass(frozen=True)
class Kind:
    """mapping: none, eim, adm, seq or random. filtering: eif, adf or apdf."""

    mapping: str
    filtering: str
    keeps_ports: bool = True


KINDS = {
    "open": Kind("none", "eif"),
    "fw": Kind("none", "apdf"),
    "fullcone": Kind("eim", "eif"),
    "restricted": Kind("eim", "adf"),
    "portrestricted": Kind("eim", "apdf"),
    "cgnat": Kind("eim", "apdf", keeps_ports=False),
    "udpblock": Kind("eim", "apdf"),  # TCP passes as in portrestricted
    "symseq": Kind("seq", "apdf"),
    "symmetric": Kind("random", "apdf"),
    "cgnat-sym": Kind("random", "apdf"),
}
VERDICTS = {
    "open": "public",
    "fw": "punchable",
    "fullcone": "public",
    "restricted": "punchable",
    "portrestricted": "punchable",
    "cgnat": "punchable",
    "udpblock": "punchable",
    "symseq": "punchable",
    "symmetric": "relayed",
    "cgnat-sym": "relayed",
}


@dataclass
class Router:
    """Everything between one host and the Internet, for one address family."""

    kind: Kind
    wan: str
    rng: random.Random
    next_port: int = 18000
    _ports: dict[tuple[object, ...], int] = field(default_factory=dict[tuple[object, ...], int])
    _behind: dict[int, Address] = field(default_factory=dict[int, Address])  # by external port
    _sent: set[tuple[int, Address]] = field(default_factory=set[tuple[int, Address]])

    def send(self, local: Address, remote: Address) -> Address:
        """Let a connection out; return as what the remote end sees it."""
        port = self._map(local, remote)
        self._behind[port] = local
        self._sent.add((port, remote))
        return local if self.kind.mapping == "none" else replace(local, host=self.wan, port=port)

    def forward(self, port: int, to: Address) -> None:
        """Forward a port for good, as a cloud does for each of its machines."""
        self._behind[port] = to

    def lets_in(self, remote: Address, to: Address, listens: Address) -> bool:
        """Tell whether a connection from `remote` reaches our listener."""
        if self.kind.mapping == "none":
            port, behind = to.port, listens if to == listens else None
        else:
            port, behind = to.port, self._behind.get(to.port) if to.host == self.wan else None
        if behind != listens:
            return False
        if self.kind.filtering == "eif":
            return True
        if self.kind.filtering == "adf":
            return any(at == port and one.host == remote.host for at, one in self._sent)
        return (port, remote) in self._sent

    def _map(self, local: Address, remote: Address) -> int:
        mapping = self.kind.mapping
        if mapping == "none":
            return local.port
        key: tuple[object, ...] = (local,)
        if mapping == "adm":
            key = (local, remote.host)
        elif mapping in ("seq", "random"):
            key = (local, remote)
        if key not in self._ports:
            self._ports[key] = self._new_port(local)
        return self._ports[key]

    def _new_port(self, local: Address) -> int:
        if self.kind.mapping == "seq":
            self.next_port += 1
            return self.next_port
        if self.kind.mapping == "eim" and self.kind.keeps_ports:
            return local.port
        return self.rng.randrange(20000, 60000)


@dataclass
class Outside:
    """A public node: answers STUN at two ports, and dials back; `lies` changes what it says."""

    peer: PeerId
    host: str
    ip6: str | None = None
    lies: Callable[[Outcome], Outcome] = lambda outcome: outcome
    dialled: Address | None = None  # it is behind a router itself, and has dialled us there

    @property
    def vantage(self) -> Vantage:
        if self.dialled is not None:
            return Vantage(self.peer, self.host, dialled_us=True)
        places = [Address("ip4", self.host, PORT)]
        if self.ip6:
            places.append(Address("ip6", self.ip6, PORT))
        return Vantage(self.peer, self.host, tuple(places))


def outside(count: int, *, ip6: bool = True) -> list[Outside]:
    """Make so many, each in a network of its own."""
    return [
        Outside(PeerId(f"pub{at}"), f"11.{20 + at}.0.9", f"2a0{at}:10::9" if ip6 else None)
        for at in range(1, count + 1)
    ]


class World:
    """One host, its router for each family, and the machine; time is passed by `run`."""

    def __init__(
        self, kind: str | None, outside: list[Outside], *, ip6: str | None = None, seed: int = 0
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.outside = outside
        self.machine = Reachability()
        self.routers: dict[str, Router] = {}
        self.listens = dict[str, Address]()
        if kind is not None:
            own = replace(LISTENS, host="11.4.0.9") if kind in ("open", "fw") else LISTENS
            self.listens["ip4"] = own
            self.routers["ip4"] = Router(KINDS[kind], WAN, self.rng)
        if ip6 is not None:
            self.listens["ip6"] = LISTENS_6
            self.routers["ip6"] = Router(KINDS[ip6], "unused", self.rng)
        self._waiting = list[Effect]()
        self.done = list[Effect]()
        self.states = list[str]()

    def start(self) -> None:
        """The host comes up, and meets everybody."""
        self.machine.interfaces(list(self.listens.values()), self.now)
        self.meet()

    def meet(self) -> None:
        """Tell the machine who is connected now."""
        self.machine.outside([one.vantage for one in self.outside], self.now)

    def run(self, seconds: float) -> None:
        """Do what is due until the time is over, one thing at a time, in an order of chance."""
        end = self.now + seconds
        while True:
            self._waiting += self.machine.due(self.now)
            if self._waiting:
                effect = self._waiting.pop(self.rng.randrange(len(self._waiting)))
                self.now += 0.02
                self.perform(effect)
                continue
            at = self.machine.deadline(self.now)
            assert at > self.now
            if at > end:
                break
            self.now = at
        self.now = max(self.now, end)

    def perform(self, effect: Effect) -> None:
        """Do one thing and tell the machine what came of it."""
        self.done.append(effect)
        match effect:
            case HoldAnchor(_, address):
                router = self.routers[address.network]
                self.machine.observed(router.send(self.listens[address.network], address), self.now)
            case ProbeMapping(network, servers):
                self.machine.probed(network, classify(self.look(network, servers)), self.now)
            case AskIdentify(peer):
                place = next(one.dialled for one in self.outside if one.peer == peer)
                self.machine.identified(peer, place, self.now)
            case AskDialBack(peer, address):
                outcome = self.dial_back(peer, address)
                self.machine.dialled_back(peer, address, outcome, self.now)
        self.states.append(self.machine.verdict)

    def look(self, network: str, servers: tuple[Address, ...]) -> list[Observation]:
        """Three rounds, each from a fresh port to both ports of each server."""
        places = [place for one in servers for place in (one, replace(one, port=5555))]
        seen = list[Observation]()
        for _ in range(3):
            local = replace(self.listens[network], port=self.rng.randrange(33000, 60000))
            for place in places:
                mapped = self.routers[network].send(local, place)
                seen.append(Observation(local, place, mapped))
        return seen

    def dial_back(self, peer: PeerId, address: Address) -> Outcome:
        """Let a peer try one of our addresses, from a fresh port."""
        asked = next((one for one in self.outside if one.peer == peer), None)
        host = None if asked is None else asked.host if address.network == "ip4" else asked.ip6
        if asked is None or host is None:
            return "no answer"
        source = Address(address.network, host, self.rng.randrange(33000, 60000))
        router = self.routers[address.network]
        is_in = router.lets_in(source, address, self.listens[address.network])
        return asked.lies("reached" if is_in else "failed")
