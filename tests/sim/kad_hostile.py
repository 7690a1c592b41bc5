"""Hostile members of a simulated swarm: they know each other, and what others said before."""

from collections.abc import Mapping

import base58

from dht.key import Key, key_of
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    FindNode,
    GetProviders,
    GetValue,
    Nodes,
    Ping,
    Pong,
    Providers,
    PutValue,
    Request,
    Stored,
    Value,
    Values,
)
from tests.sim.kad import SEALED, WALL_MS, K, Member, State, Stranger, World, address_in
from tests.sim.kad_ring import Ring
from tests.sim.scenario import Behaviour, SybilOptions
from wire.ids import PeerId

GHOST_BITS = 16  # a ghost is nearer to the key than anybody who is there
KNOCKS = 40  # more than go into one bucket, and to its spares
KNOCK_S = 30.0  # until all checks are over
VICTIMS = 25  # around a key, whose networks are claimed: those of a region
SYBIL_OCTET = 150  # addresses of Sybils begin with it, so they share no /24 with others


class Conspiracy:
    """What all hostile members of a world know."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ring: Ring[Member] = Ring()  # themselves
        self.old: dict[bytes, Values] = {}  # name -> what was valid once, and is signed

    def win(self, member: Member, behaviour: Behaviour) -> None:
        """Turn a member hostile."""
        member.stranger = Hostile(self, behaviour)
        self.ring.add(member)

    def spoil(self, value: Value) -> None:
        """Remember a value that a newer one will take the place of."""
        known = self.old.get(value.name, Values((), ()))
        self.old[value.name] = Values((*known.values, value), ())

    def grind(self, key: Key, options: SybilOptions) -> list[Member]:
        """Bring in Sybils who share that many more bits with a key than the nearest server does.

        Keys are drawn, not searched for (20 bits are a million identities, 20 s of a core). They
        may claim addresses in the networks of the honest ones around the key, beside their own.
        """
        world, rng = self.world, self.world.rng
        nearest = world.ring.nearest(key, VICTIMS)
        free = max(8, (nearest[0].key ^ key).bit_length() - options.bits)
        made: list[Member] = []
        for number in range(options.count):
            where = Key(key ^ rng.getrandbits(free))
            address = address_in(number % options.groups, 1 + number // options.groups, SYBIL_OCTET)
            if not (world.scenario.defences.diversity and world.scenario.swarm.per_group):
                address = f"/ip4/10.255.{number >> 8}.{number & 255}/tcp/4001"
            member = world.enter(key=where, address=address, is_hidden=False)
            victims = rng.sample(nearest, min(options.claims, len(nearest)))
            member.claim(*(victim.address for victim in victims))
            self.win(member, "lie")
            made.append(member)
        for member in made:
            world.ring.add(member)
        return made

    def knock(self, sybils: list[Member]) -> None:
        """Make themselves known to every node that runs, as often as there are buckets to fill."""
        world = self.world
        for other in world.members:
            if other.node is not None and other.state is State.ALIVE:
                for sybil in world.rng.sample(sybils, min(KNOCKS, len(sybils))):
                    world.knock(sybil, other)
        world.heap.run(world.heap.now_s + KNOCK_S)


class Hostile(Stranger):
    """One of them."""

    def __init__(self, conspiracy: Conspiracy, behaviour: Behaviour) -> None:
        self._all, self._behaviour = conspiracy, behaviour

    def received(self, member: Member, peer: PeerId, request: Request) -> Answer | None:
        """Answer as its behaviour is; pings always, so that it comes into tables."""
        match request:
            case Ping():
                return Pong()
            case _ if self._behaviour == "drop":
                return None
            case PutValue():
                return Stored(1)
            case AddProviders(provisions):
                return Stored(len(provisions))
            case FindNode(name):
                return Nodes(self._closer(member, key_of(name)))
            case GetProviders(name):
                return Providers((), self._closer(member, key_of(name)))
            case GetValue(name):
                return Values(self._values(name), self._closer(member, key_of(name)))

    def _values(self, name: bytes) -> tuple[Value, ...]:
        old: Mapping[bytes, Values] = self._all.old
        return old[name].values if self._behaviour in ("stale", "lie") and name in old else ()

    def _closer(self, member: Member, key: Key) -> tuple[Contact, ...]:
        world = self._all.world
        if self._behaviour == "ghosts":
            return tuple(self._ghost(key) for _ in range(K))
        ring = self._all.ring if self._behaviour == "lie" else world.ring
        return tuple(one.contact for one in ring.nearest(key, K + 1) if one is not member)[:K]

    def _ghost(self, key: Key) -> Contact:
        """Invent a contact: signing for it costs a key pair, and it need never answer."""
        world = self._all.world
        peer = PeerId(base58.b58encode(world.rng.randbytes(12)).decode())
        nearest = world.ring.nearest(key, 1)[0].key ^ key
        where = Key(key ^ world.rng.getrandbits(max(8, nearest.bit_length() - GHOST_BITS)))
        address = address_in(world.rng.randrange(1 << 22), world.rng.randrange(1, 255))
        return Contact(peer, where, (address,), WALL_MS, WALL_MS, SEALED)
