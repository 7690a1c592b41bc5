"""What a node does by itself: refreshes, publishes again, hands over. Pure.

It never runs anything: it returns chores that are due, operations for the node to run. What
refreshing costs is told in `dht.refresh`. Publishing again costs what providing costs, every 12
hours; handing over one message (of up to 500 provider records, or one value) for each newcomer and
each one that left among the close sets of what we hold.
"""

import math
from collections.abc import Callable, Iterable, KeysView, Sequence
from typing import Protocol

from dht.handover import Handover, Parcel
from dht.messages import Contact, Moment, Ping, Provision
from dht.refresh import Refresh
from dht.regions import ProvideMany
from dht.sending import Sending, addressed
from dht.serving import Serving
from dht.state import Chore, State, new_holding
from wire.ids import PeerId

HALF_LIFE_S = 12 * 3600.0  # provider records are published again
RETRY_S = 60.0  # until records that too few took are offered again; doubles each time
RETRY_MAX_S = 3600.0
DOUBLED_MAX = 10  # tries that are counted
GIVEN_UP_S = 3600.0  # until records are published again whose publishing was given up
TOGETHER_S = 600.0  # records due within this go with those that are due: one lookup for many
SETTLE_S = 5.0  # between a change of the table and handing over: a newcomer learns its region first
HOURLY_S = 3600.0
TIDY_S = 600.0  # between two looks for what has expired, and for holders that are dead
DOUBT_S = 60.0  # between two such looks while one of these does not answer
DOUBTED_RANKS = 2  # holders nearer to a record than we are: if they are dead, it is our duty
DOUBTED_MAX = 1000  # names looked at each time: 10 ms
LEAVE_S = 1.0  # for handing over when we go


class KeptBy(Protocol):
    """What came of a store."""

    def too_few(self, names: Sequence[bytes]) -> Sequence[bytes]:
        """Those of the names that too few servers keep."""
        ...


class Upkeep:
    """Timed work: `due` at `wake_at`, and `look_at_changes` after every event."""

    def __init__(self, state: State, serving: Serving) -> None:
        """The first `due` begins it all."""
        self._state, self._serving = state, serving
        self.refresh = Refresh(state)
        self._published: dict[bytes, float] = {}  # names that we provide: when to do it again
        self._publish_at = math.inf
        self._tries: dict[bytes, int] = {}  # of names that too few keep
        self._is_publishing = False
        self._handover = Handover(state.holding, state.table, state.key)
        self._hand_over_at = math.inf
        self._ready = self.refresh.ready  # what follows from chores that are done
        self._hourly_at = self._tidy_at = 0.0

    @property
    def wake_at(self) -> float:
        """When something is due next (Moment.s)."""
        if self._ready:
            return 0.0
        return min(
            self.refresh.wake_at,
            self._publish_at,
            self._hand_over_at,
            self._hourly_at,
            self._tidy_at,
        )

    def due(self, moment: Moment) -> list[Chore]:
        """Return what has to be done now."""
        if not self._hourly_at:
            self._begin(moment)
        chores = [*self._ready, *self.refresh.due(moment)]
        self._ready.clear()
        if moment.s >= self._publish_at:
            chores += self._publish(moment)
        if moment.s >= self._hand_over_at:
            chores += self._hand_over(moment)
        if moment.s >= self._hourly_at:
            self._hourly_at = moment.s + HOURLY_S
            chores += self._look_hourly(moment)
        if moment.s >= self._tidy_at:
            self._tidy_at = moment.s + TIDY_S
            self._state.holding.expire(moment.wall_ms)
            chores += self._doubt(moment)
        return chores

    def _begin(self, moment: Moment) -> None:
        self.refresh.begin(moment)
        self._hourly_at = moment.s + self._state.rng.uniform(0.5, 1.0) * HOURLY_S
        self._tidy_at = moment.s + self._state.rng.uniform(0.5, 1.0) * TIDY_S

    # --- what we provide -------------------------------------------------------------------------

    @property
    def provided(self) -> KeysView[bytes]:
        """The names that we provide, and publish again and again."""
        return self._published.keys()

    def promise(self, names: Iterable[bytes], moment: Moment) -> None:
        """Publish these within the hour, if nobody does it before."""
        self._published.update(dict.fromkeys(names, moment.s + GIVEN_UP_S))
        self._publish_at = min(self._publish_at, moment.s + GIVEN_UP_S)

    def provides(self, names: Sequence[bytes], moment: Moment) -> Callable[[KeptBy, Moment], None]:
        """These are being published now; whoever gives that up has it done within the hour.

        Returns what to do when it has been done: again at half-life; what too few keep, soon.
        """
        self.promise(names, moment)

        def done(result: KeptBy, at: Moment) -> None:
            weak = set(result.too_few(names))
            for name in names:
                if name in self._published:  # it is not withdrawn
                    self._published[name] = at.s + self._pause_s(name, is_weak=name in weak)
            self._publish_at = min(self._published.values(), default=math.inf)

        return done

    def _pause_s(self, name: bytes, *, is_weak: bool) -> float:
        """Return when to publish it again."""
        if not is_weak:
            self._tries.pop(name, None)
            return HALF_LIFE_S
        self._tries[name] = tries = min(self._tries.get(name, 0) + 1, DOUBLED_MAX)
        return min(RETRY_S * 2.0 ** (tries - 1), RETRY_MAX_S)

    def provide_many(self, names: Sequence[bytes], moment: Moment) -> Chore:
        """Return what publishes these, and publishes again soon what was not done."""
        state = self._state
        operation = ProvideMany(
            names,
            self.signed,
            state.author.peer,
            state.table.closest,
            moment,
            region=state.size.region(),
        )
        return Chore(operation, self.provides(names, moment))

    def signed(self, name: bytes, wall_ms: int) -> Provision:
        """Return our provider record, which we hold ourselves too if it belongs here."""
        provision = self._state.author.provision(name, wall_ms)
        self._serving.hold_own(provision, Moment(0.0, wall_ms))
        return provision

    def withdraw(self, name: bytes) -> None:
        """Do not publish it again."""
        self._published.pop(name, None)
        self._tries.pop(name, None)

    def _publish(self, moment: Moment) -> list[Chore]:
        """Publish what is due; if that is still being done, when it has been."""
        if self._is_publishing:
            self._publish_at = math.inf
            return []
        due = [name for name, at in self._published.items() if at <= moment.s + TOGETHER_S]
        if not due:
            self._publish_at = min(self._published.values(), default=math.inf)
            return []
        self._publish_at = math.inf
        self._is_publishing = True
        operation, then = self.provide_many(due, moment)

        def done(result: KeptBy, at: Moment) -> None:
            self._is_publishing = False
            then(result, at)

        return [Chore(operation, done)]

    # --- handing over ----------------------------------------------------------------------------

    def look_at_changes(self, moment: Moment) -> None:
        """Who came or left may mean that what we hold belongs elsewhere too: soon."""
        changes = self._state.table.changes()
        if changes and self._handover.saw(changes, moment):
            self._hand_over_at = min(self._hand_over_at, moment.s + SETTLE_S)

    def leaving(self, moment: Moment) -> Sending:
        """Return the operation that hands over all that we hold; then we hold nothing."""
        parcels = self._handover.on_leaving(self._state.size.region(), moment)
        self._state.holding = new_holding(self._state.rng)
        self._handover = Handover(self._state.holding, self._state.table, self._state.key)
        return Sending(addressed(parcels), moment, deadline_s=LEAVE_S)

    def _hand_over(self, moment: Moment) -> list[Chore]:
        self._hand_over_at = math.inf
        return self._sent(self._handover.after_changes(self._state.size.region(), moment), moment)

    def _doubt(self, moment: Moment) -> list[Chore]:
        """Ask those whose duty to hand over would be ours next, if nothing was heard of them."""
        table, own = self._state.table, self._state.key
        names = self._state.holding.names()
        if len(names) > DOUBTED_MAX:
            names = self._state.rng.sample(names, DOUBTED_MAX)
        doubted = dict[PeerId, Contact]()
        for key, _ in names:
            nearest = table.closest(key, DOUBTED_RANKS + 1)
            nearer = [one for one in nearest if one.key ^ key < own ^ key]
            if len(nearer) <= DOUBTED_RANKS:
                doubted.update((one.peer, one) for one in nearer)
        silent = [
            entry.contact
            for peer in doubted
            if (entry := table.entry(peer)) and entry.seen_s <= moment.s - TIDY_S
        ]

        def done(_: int, at: Moment) -> None:
            entries = [table.entry(one.peer) for one in silent]
            if any(entry and entry.failures for entry in entries):
                self._tidy_at = min(self._tidy_at, at.s + DOUBT_S)

        pings = [(one, Ping()) for one in silent]
        return [Chore(Sending(pings, moment), done)] if pings else []

    def _look_hourly(self, moment: Moment) -> list[Chore]:
        """Look who is near us; then send those who came what they should have by now."""
        if not len(self._state.holding):
            return []
        look = self.refresh.ourselves(moment)

        def looked(nearest: list[Contact], at: Moment) -> None:
            look.then(nearest, at)
            parcels = self._handover.hourly(self._state.size.region(), at)
            self._ready += self._sent(parcels, at)

        return [Chore(look.operation, looked)]

    def _sent(self, parcels: Sequence[Parcel], moment: Moment) -> list[Chore]:
        return [Chore(Sending(addressed(parcels), moment), _ignore)] if parcels else []


def _ignore(result: object, moment: Moment) -> None:
    """Who did not take it now is offered it at the hourly look."""
