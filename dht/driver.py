"""Drives `dht.node.Node` on trio: requests fly as tasks, operations are waited for, one timer.

There is no lock: everything that touches the machine is synchronous, on the event loop.
"""

import math
from collections.abc import Callable
from typing import Any

import trio

from dht.messages import Ask, Done, Moment
from dht.node import Node
from dht.ports import Transport
from dht.running import OURS
from wire.errors import Busy, DeadlineExceeded, PeerUnreachable, ShoalError
from wire.ports import Clock

OPERATIONS_MAX = 64  # of callers at once, up to 24 requests each; others wait
WAITING_MAX = 1024  # callers that wait for a place; one more is told that we are busy
FLYING_MAX = 2048  # requests in flight: operations of callers, refreshes and checks; more fail
NAP_LEAST_S = 0.01  # between two ticks, whatever the machine says


class Driver:
    """One per node. After a call of the machine that takes a moment, call `pump`."""

    def __init__(self, node: Node, transport: Transport, clock: Clock) -> None:
        self._node, self._transport, self._clock = node, transport, clock
        self._nursery: trio.Nursery | None = None
        self._nap, self._nap_until = trio.CancelScope(), math.inf
        self._flying = 0
        self._waiting: dict[int, trio.Event] = {}  # operations that somebody waits for
        self._places = trio.Semaphore(OPERATIONS_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry requests and wake the machine until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._tick)
            task_status.started()

    def moment(self) -> Moment:
        """Now, as the machine wants to know it."""
        return Moment(self._clock.now(), self._clock.wall_ms())

    async def do(self, start: Callable[[Moment], int]) -> Any:
        """Start an operation when there is a place for it, and return its result.

        Whoever is cancelled gives it up. Raises Busy.
        """
        if self._places.statistics().tasks_waiting >= WAITING_MAX:
            raise Busy(f"{WAITING_MAX} others wait for the DHT")
        async with self._places:
            number, ended = start(self.moment()), trio.Event()
            self._waiting[number] = ended
            try:
                self.pump()
                await ended.wait()
            finally:
                del self._waiting[number]
                operation = self._node.end(number)
        assert operation is not None
        return operation.result

    def pump(self) -> None:
        """Do what the machine wants done, and wake up when it next wants something."""
        while effects := self._node.effects():
            for effect in effects:
                match effect:
                    case Ask():
                        self._ask(effect)
                    case Done(number):
                        if number in self._waiting:
                            self._waiting[number].set()
        if self._node.wake_at < self._nap_until:
            self._nap_until = self._node.wake_at
            self._nap.deadline = self._deadline(self._nap_until)

    def _ask(self, ask: Ask) -> None:
        if self._nursery is None or self._flying >= FLYING_MAX:
            self._node.failed(ask.number, OURS, self.moment())
            return
        self._flying += 1
        self._nursery.start_soon(self._fly, ask)

    async def _fly(self, ask: Ask) -> None:
        """Carry one request to one peer, and tell the machine what came of it."""
        node = self._node
        try:
            with trio.fail_after(ask.timeout_s):
                reply = await self._transport.ask(
                    ask.contact,
                    ask.request,
                    node.sender(self.moment()),
                    timeout_s=ask.timeout_s,
                    is_check=ask.is_check,
                )
        except (trio.TooSlowError, DeadlineExceeded):
            node.failed(ask.number, "timeout", self.moment())
        except PeerUnreachable:
            node.failed(ask.number, "unreachable", self.moment())
        except Busy:  # of ours: too many wait for that peer
            node.failed(ask.number, OURS, self.moment())
        except ShoalError as error:
            node.failed(ask.number, f"refused: {error}", self.moment())
        else:
            node.answered(ask.number, reply.answer, reply.sender, reply.address, self.moment())
        finally:
            self._flying -= 1
        self.pump()

    def _deadline(self, wake_at: float) -> float:
        """In trio's time; the clock's may begin elsewhere."""
        return trio.current_time() + max(NAP_LEAST_S, wake_at - self._clock.now())

    async def _tick(self) -> None:
        try:
            while True:
                self._nap_until = self._node.wake_at
                with trio.CancelScope(deadline=self._deadline(self._nap_until)) as self._nap:
                    await trio.sleep_forever()
                self._node.tick(self.moment())
                self._nap_until = math.inf
                self.pump()
        finally:  # as long as this task is there, the nursery takes new ones
            self._nursery = None
