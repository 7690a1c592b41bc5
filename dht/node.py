"""The DHT's machine: serves requests, runs operations, admits newcomers, keeps itself fresh.

Sans-IO: no clock, no chance but the `rng` that is passed in. After every call that takes a moment
the driver drains `effects()`, and it calls `tick` at `wake_at`. What is begun returns the number of
an operation: when `Done` comes with it, `end` returns that operation with its result.
"""

from collections.abc import Iterable, KeysView

from dht.crowd import FAR
from dht.finding import FindClosest, FindPeer, FindProviders, FindValue, Start
from dht.holding import Holding
from dht.key import key_of, name_of_peer
from dht.lookup import SEEDS
from dht.messages import Contact, Moment, Trace, Value
from dht.running import Runner
from dht.size import NetworkSize
from dht.storing import Provide, StoreValue
from wire.ids import PeerId


class Node(Runner):
    """One member of the DHT."""

    # --- looking ---------------------------------------------------------------------------------

    def find_closest(
        self, name: bytes, moment: Moment, *, paths: int = 1, trace: Trace | None = None
    ) -> int:
        """Look for the servers nearest to a name: `list[Contact]`, nearest first."""
        operation = FindClosest(name, self._start_near(name, moment), paths=paths)
        return self.start(operation, moment, trace=trace)

    def find_peer(self, peer: PeerId, moment: Moment, *, trace: Trace | None = None) -> int:
        """Look for where a peer is: `Contact | None`."""
        operation = FindPeer(peer, self._start_near(name_of_peer(peer), moment))
        return self.start(operation, moment, trace=trace)

    def providers(
        self, name: bytes, moment: Moment, *, paths: int = 1, trace: Trace | None = None
    ) -> int:
        """Look for who has what this names: `tuple[Provision, ...]`."""
        held = self.holding.provisions(name, moment.wall_ms)
        operation = FindProviders(name, self._start_all_over(name, moment), paths=paths, held=held)
        return self.start(operation, moment, trace=trace)

    def get(
        self, name: bytes, moment: Moment, *, paths: int = 1, trace: Trace | None = None
    ) -> int:
        """Look for the newest value, or that of each author: `tuple[Value, ...]`."""
        held = self.holding.values(name, moment.wall_ms)
        operation = FindValue(name, self._start_all_over(name, moment), paths=paths, held=held)
        return self.start(operation, moment, trace=trace)

    # --- storing ---------------------------------------------------------------------------------

    def put(self, value: Value, moment: Moment, *, trace: Trace | None = None) -> int:
        """Store a value once, with us too if it belongs here: `Kept`."""
        self.serving.hold_own(value, moment)
        operation = StoreValue(value, self._start_all_over(value.name, moment))
        return self.start(operation, moment, trace=trace)

    def provide(self, name: bytes, moment: Moment, *, trace: Trace | None = None) -> int:
        """Say that we have it, now and at half-life until `withdraw`: `Kept`."""
        record = self.upkeep.signed(name, moment.wall_ms)
        operation = Provide(record, self._start_all_over(name, moment))
        then = self.upkeep.provides([name], moment)
        return self.start(operation, moment, then=then, trace=trace)

    def provide_many(self, names: Iterable[bytes], moment: Moment) -> int:
        """Say that we have all these, by regions of keys: `Provided`."""
        operation, then = self.upkeep.provide_many(list(dict.fromkeys(names)), moment)
        return self.start(operation, moment, then=then)

    def promise(self, names: Iterable[bytes], moment: Moment) -> None:
        """Say that we have these within the hour, whatever becomes of who is about to say it."""
        self.upkeep.promise(names, moment)

    def withdraw(self, name: bytes) -> None:
        """Say it no longer; what others hold dies within a day."""
        self.upkeep.withdraw(name)

    # --- joining and leaving ---------------------------------------------------------------------

    def bootstrap(self, seeds: Iterable[Contact], moment: Moment) -> int:
        """Look for ourselves, from these and our table: `list[Contact]`, our nearest.

        Afterwards far buckets that lack entries are looked into, which nobody has to wait for.
        """
        look = self.upkeep.refresh.joining(seeds, moment)
        return self.start(look.operation, moment, then=look.then)

    def leave(self, moment: Moment) -> int:
        """Hand over what we hold, within 1 s: how many records others kept. We answer no more."""
        operation = self.upkeep.leaving(moment)
        self.state.is_server = False
        return self.start(operation, moment)

    def set_mode(self, *, is_server: bool, moment: Moment) -> None:
        """Become a server, or a client, which hands over what it holds and holds nothing.

        A new server looks for itself: so those near it learn that it is one.
        """
        if is_server == self.is_server:
            return
        self.state.is_server = is_server
        if is_server:
            look = self.upkeep.refresh.joining((), moment)
            self.start(look.operation, moment, then=look.then, is_ours=True)
        else:
            self.start(self.upkeep.leaving(moment), moment, is_ours=True)

    # --- what it is ------------------------------------------------------------------------------

    @property
    def is_server(self) -> bool:
        """Whether we answer others, and are in their tables."""
        return self.state.is_server

    @property
    def provided(self) -> KeysView[bytes]:
        """The names that we say to have."""
        return self.upkeep.provided

    @property
    def holding(self) -> Holding:
        """What we hold for others."""
        return self.state.holding

    @property
    def size(self) -> NetworkSize:
        """How large the network is."""
        return self.state.size

    def sender(self, moment: Moment) -> Contact | None:
        """What goes along with every message: our own record, as a server; None as a client."""
        return self.state.author.contact(moment.wall_ms) if self.is_server else None

    def snapshot(self) -> tuple[Contact, ...]:
        """The contacts of the table, nearest first: `bootstrap` with them after a restart."""
        return tuple(self.table.closest(self.state.key, len(self.table)))

    def _start_near(self, name: bytes, moment: Moment) -> Start:
        salt = self.state.rng.getrandbits(256)
        return Start(self.state.author.peer, self._seeds(name), moment, salt=salt)

    def _start_all_over(self, name: bytes, moment: Moment) -> Start:
        """With the nearest, and some whom nobody chose by the name: against a crowd beside it."""
        entries = self.table.entries()
        some = self.state.rng.sample(entries, min(FAR, len(entries)))
        seeds = [*self._seeds(name), *(entry.contact for entry in some)]
        salt = self.state.rng.getrandbits(256)
        return Start(self.state.author.peer, seeds, moment, self.size.region(), salt)

    def _seeds(self, name: bytes) -> list[Contact]:
        return self.table.closest(key_of(name), SEEDS)
