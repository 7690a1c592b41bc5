"""What a node does by itself: refreshes, publishes again, hands over. Pure.

It never runs anything: it returns chores that are due, operations for the node to run. What
refreshing costs is told in `dht.refresh`. Publishing again costs what providing costs, every 12
hours; handing over one message (of up to 500 provider records, or one value) for each newcomer and
each one that left among the close sets of what we hold.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from dht.handover import Handover, Parcel
from dht.messages import Contact, Moment, Provision
from dht.refresh import Refresh
from dht.regions import ProvideMany
from dht.sending import Sending
from dht.serving import Serving
from dht.state import Chore, State, new_holding

HALF_LIFE_S = 12 * 3600.0  # provider records are published again
RETRY_S = 60.0  # until records that nobody took are offered again; doubles each time
RETRY_MAX_S = 3600.0
TOGETHER_S = 600.0  # records due within this go with those that are due: one lookup for many
SETTLE_S = 5.0  # between a change of the table and handing over: a newcomer learns its region first
HOURLY_S = 3600.0
EXPIRE_S = 600.0  # between two clearings of what has expired; it is not served meanwhile
LEAVE_S = 1.0  # for handing over when we go


class KeptBy(Protocol):
    """What came of a store."""

    @property
    def kept(self) -> int:
        """How many servers keep it."""
        ...


class Upkeep:
    """Timed work: `due` at `wake_at`, and `look_at_changes` after every event."""

    def __init__(self, state: State, serving: Serving) -> None:
        """The first `due` begins it all."""
        self._state, self._serving = state, serving
        self.refresh = Refresh(state)
        self._published: dict[bytes, float] = {}  # names that we provide: when to do it again
        self._publish_at = math.inf
        self._retry_s = RETRY_S
        self._handover = Handover(state.holding, state.table, state.key)
        self._hand_over_at = math.inf
        self._ready = self.refresh.ready  # what follows from chores that are done
        self._hourly_at = self._expire_at = 0.0

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
            self._expire_at,
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
        if moment.s >= self._expire_at:
            self._expire_at = moment.s + EXPIRE_S
            self._state.holding.expire(moment.wall_ms)
        return chores

    def _begin(self, moment: Moment) -> None:
        self.refresh.begin(moment)
        self._hourly_at = moment.s + self._state.rng.uniform(0.5, 1.0) * HOURLY_S
        self._expire_at = moment.s + EXPIRE_S

    # --- what we provide -------------------------------------------------------------------------

    def provides(self, names: Sequence[bytes], moment: Moment) -> Callable[[KeptBy, Moment], None]:
        """These are being published now, and will be again at half-life.

        Returns what to do when it is known how many were kept: if none were, again soon.
        """
        for name in names:
            self._published[name] = moment.s + HALF_LIFE_S
        self._publish_by(moment.s + HALF_LIFE_S)

        def done(result: KeptBy, at: Moment) -> None:
            if result.kept:
                self._retry_s = RETRY_S
            else:
                self._again(names, at)

        return done

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
        then = self.provides(names, moment)

        def done(result: KeptBy, at: Moment) -> None:
            then(result, at)
            if result.kept:
                self._again(operation.left, at)

        return Chore(operation, done)

    def signed(self, name: bytes, wall_ms: int) -> Provision:
        """Return our provider record, which we hold ourselves too if it belongs here."""
        provision = self._state.author.provision(name, wall_ms)
        self._serving.hold_own(provision, Moment(0.0, wall_ms))
        return provision

    def withdraw(self, name: bytes) -> None:
        """Do not publish it again."""
        self._published.pop(name, None)

    def _again(self, names: Iterable[bytes], moment: Moment) -> None:
        """Try again soon, unless they were withdrawn; less and less often."""
        again = [name for name in names if name in self._published]
        for name in again:
            self._published[name] = moment.s + self._retry_s
        if again:
            self._publish_by(moment.s + self._retry_s)
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _publish(self, moment: Moment) -> list[Chore]:
        due = [name for name, at in self._published.items() if at <= moment.s + TOGETHER_S]
        for name in due:
            self._published[name] = math.inf
        self._publish_at = min(self._published.values(), default=math.inf)
        return [self.provide_many(due, moment)] if due else []

    def _publish_by(self, at_s: float) -> None:
        self._publish_at = min(self._publish_at, at_s)

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
        return Sending(parcels, moment, deadline_s=LEAVE_S)

    def _hand_over(self, moment: Moment) -> list[Chore]:
        self._hand_over_at = math.inf
        return self._sent(self._handover.after_changes(self._state.size.region(), moment), moment)

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
        return [Chore(Sending(parcels, moment), _ignore)] if parcels else []


def _ignore(result: object, moment: Moment) -> None:
    """Who did not take it now is offered it at the hourly look."""
