"""Plays a scenario in which members come and go: records are stored and got all the time.

A get counts if the owner of its record is alive, and whoever asks stays until it has ended.
"""

from tests.sim.heap import Churn
from tests.sim.kad import Member, State
from tests.sim.kad_play import Play, Record

GETS_FROM = 0.1  # of the time; before, there is little to get
PUTS_UNTIL = 0.9


class ChurnPlay(Play):
    """One trial with churn."""

    def work(self) -> None:
        """Store and look at an even pace, for the whole time."""
        world, options = self.world, self.scenario.churn
        assert options is not None
        heap, work, end_s = world.heap, self.scenario.work, self.scenario.hours * 3600
        for member in world.members:
            if member.stranger is None:
                world.node_of(member)
        churn = Churn(heap, options, self._left, self._came)
        churn.begin(range(len(world.members)))
        for number in range(work.records):
            heap.at(end_s * PUTS_UNTIL * number / work.records, self.store_one, number)
        for number in range(work.looks):
            at = GETS_FROM + (1 - GETS_FROM) * number / work.looks
            heap.at(end_s * at, self._get_some)
        heap.run(end_s)
        self.outcome.note(
            requests_per_node_hour=world.asked / len(world.ring) / self.scenario.hours
        )

    def _get_some(self) -> None:
        alive = [one for one in self.records if one.is_stored and _is_there(one)]
        if alive:
            self.get(self.world.rng.choice(alive))

    def _left(self, index: int, is_graceful: bool) -> None:
        member = self.world.members[index]
        self.busy -= len(member.running)
        member.running.clear()
        if is_graceful and member.node is not None:
            self.world.begin(
                member, lambda node, now: node.leave(now), lambda _: self._gone(member)
            )
        else:
            self._gone(member)

    def _gone(self, member: Member) -> None:
        """Its machine refuses connections, or is silent: as often."""
        world = self.world
        member.state = State.HANGS if world.rng.random() < 0.5 else State.REFUSES
        member.node = member.alarm = None
        member.connected.clear()
        world.ring.remove(member)

    def _came(self) -> int:
        member = self.world.enter()
        self.join(member)
        return member.index


def _is_there(record: Record) -> bool:
    return record.owner.state is State.ALIVE
