"""Two streams joined at a relay: what one brings, the other takes, in turns and at a rate.

No task of its own: bytes move on the turn of the connection that brought them, or when the other
one has room again. Each way holds at most a Yamux window (256 KiB); beyond, the faster end waits.
"""

import trio

from node.host.stream import HostStream
from node.host.yamux_stream import FIRST_WINDOW_BYTES
from node.reach.hop import Bucket
from node.reach.messages import Answer, Limits, Opening, Status, pack_hop, read_stop
from wire.errors import BadMessage, PeerUnreachable
from wire.ports import PUSH_MAX

TURN_BYTES = 16 * 1024  # of one circuit while others wait: 128 ways at 8 MiB/s wait for 0.25 s
LINGER_S = 5.0  # for one way to end after the other


class Way:
    """One direction of a circuit: bytes of `source` wait here until `target` takes them."""

    def __init__(self, source: HostStream, target: HostStream, most_bytes: int) -> None:
        self._source, self._target = source, target
        self._left_bytes = most_bytes
        self._waiting = bytearray()
        self._is_closing = False
        self.moved_bytes = 0
        self.ended = trio.Event()  # its last byte has gone

    def put(self, data: bytes | memoryview) -> None:
        """Take what came. Raises BadMessage beyond the circuit's limit, or the window."""
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise BadMessage("the circuit has carried all that it may")
        self._waiting += data
        assert len(self._waiting) <= FIRST_WINDOW_BYTES

    def close(self) -> None:
        """Nothing more comes."""
        self._is_closing = True
        self._end_if_done()

    @property
    def is_waiting(self) -> bool:
        """True if there are bytes to move."""
        return bool(self._waiting)

    def move(self, most_bytes: int) -> int:
        """Move some bytes on; return how many: 0 if the other end takes none now."""
        if not self._waiting or not self._target.has_room:
            return 0
        part = bytes(memoryview(self._waiting)[:most_bytes])
        del self._waiting[: len(part)]
        self._target.push(part, now=True)
        self._source.took(len(part))
        self.moved_bytes += len(part)
        self._end_if_done()
        return len(part)

    def _end_if_done(self) -> None:
        if self._is_closing and not self._waiting:
            self._target.finish_now()
            self.ended.set()


class Pump:
    """Moves the bytes of all circuits of a relay: those that wait take turns."""

    def __init__(self, rate_bytes_s: float) -> None:
        self._bucket = Bucket(rate_bytes_s, trio.current_time())
        self._ring: dict[Way, None] = {}
        self._is_short = trio.lowlevel.ParkingLot()  # `run` waits here

    async def run(self) -> None:
        """Go on whenever the rate allows it, until cancelled."""
        while True:
            if self._ring:
                await trio.sleep_until(self._bucket.ready_at)
                self._turn()
            else:
                await self._is_short.park()

    def wake(self, way: Way) -> None:
        """A way has bytes, or room for them."""
        if way.is_waiting:
            self._ring[way] = None
            self._turn()

    def leave(self, way: Way) -> None:
        """A way is over."""
        self._ring.pop(way, None)

    def _turn(self) -> None:
        now = trio.current_time()
        while self._ring and not self._bucket.is_empty(now):
            way = next(iter(self._ring))
            del self._ring[way]
            size = way.move(TURN_BYTES if self._ring else PUSH_MAX)
            self._bucket.take(size)
            if size and way.is_waiting:
                self._ring[way] = None
        if self._ring:
            self._is_short.unpark_all()


class _End:
    """A sink at one stream: its data go one way, its room is for the other."""

    def __init__(self, joint: "Joint", out: Way, back: Way) -> None:
        self._joint, self._out, self._back = joint, out, back

    def on_data(self, data: bytes | memoryview) -> None:
        """Pass it on."""
        self._out.put(data)
        self._joint.pump.wake(self._out)

    def on_room(self) -> None:
        """Let the other way go on."""
        self._joint.pump.wake(self._back)

    def on_end(self, error: PeerUnreachable | None) -> None:
        """End this way, or all."""
        if error is None:
            self._out.close()
        else:
            self._joint.end()


class _Answering(_End):
    """The end of whom a circuit is brought to, until it has answered the relay."""

    def __init__(self, joint: "Joint", out: Way, back: Way) -> None:
        super().__init__(joint, out, back)
        self._opening: Opening | None = Opening()

    def on_data(self, data: bytes | memoryview) -> None:
        """Read the answer, then pass things on."""
        if self._opening is None:
            super().on_data(data)
        elif found := self._opening.feed(data):
            self._opening = None
            answer = read_stop(found[0])
            if not isinstance(answer, Answer):
                raise BadMessage("a request where an answer was due")
            self._joint.answered(answer.status)
            if found[1] and answer.status is Status.OK:
                super().on_data(found[1])

    def on_end(self, error: PeerUnreachable | None) -> None:
        """End this way, or all: there is no circuit without a good answer."""
        if self._joint.status is Status.OK:
            super().on_end(error)
        else:
            self._joint.end()


class Joint:
    """One circuit at the relay: `caller` asked for it, `called` is told of it on its own stream."""

    def __init__(self, caller: HostStream, called: HostStream, pump: Pump, limits: Limits) -> None:
        self.pump = pump
        self._caller, self._called, self._limits = caller, called, limits
        self._there = Way(caller, called, limits.bytes_each_way)
        self._back = Way(called, caller, limits.bytes_each_way)
        self._scope = trio.CancelScope()
        self._has_answer = trio.Event()
        self.status: Status | None = None  # the answer of whom is called

    @property
    def moved_bytes(self) -> int:
        """What has crossed, both ways."""
        return self._there.moved_bytes + self._back.moved_bytes

    async def run(self, *, answer_s: float) -> None:
        """Carry bytes until an end, a limit, or no good answer in `answer_s`; see `status`.

        What the caller sends before the answer goes on at once: in a closed swarm all ends know
        what to do with it.
        """
        with self._scope:
            self._called.attach(_Answering(self, self._back, self._there), paced=True)
            self._caller.attach(_End(self, self._there, self._back), paced=True)
            with trio.move_on_after(answer_s):
                await self._has_answer.wait()
            if self.status is Status.OK:
                async with trio.open_nursery() as nursery:
                    for way in (self._there, self._back):
                        nursery.start_soon(self._linger, way, nursery)
        self.pump.leave(self._there)
        self.pump.leave(self._back)

    async def _linger(self, way: Way, nursery: trio.Nursery) -> None:
        await way.ended.wait()
        nursery.cancel_scope.deadline = trio.current_time() + LINGER_S

    def answered(self, status: Status) -> None:
        """Whom the circuit was brought to has answered."""
        self.status = status
        self._has_answer.set()
        if status is Status.OK:
            self._caller.push(pack_hop(Answer(status, self._limits)), now=True)

    def end(self) -> None:
        """End it, both ways; what waits is lost."""
        self._scope.cancel()
