"""A kept stream to a peer, as its asking end: requests in order, and their answers in that order.

It is a sink (wire.ports): an answer wakes who waits for it without a task of the line's own.
"""

from collections import deque

import trio
from trio import current_time as now

from dht.wire import MESSAGE_MAX
from node.host.stream import HostStream
from wire import frames
from wire.errors import BadMessage, Busy, PeerUnreachable
from wire.ports import PUSH_MAX

IN_FLIGHT_MAX = 64  # requests to one peer at a time; a lookup has one, handing over a few
STUCK_S = 2.0  # without an answer to the oldest request when one is given up: the line ends


class _Asked:
    """One request that was sent, and who waits for its answer."""

    def __init__(self) -> None:
        self.since = now()
        self.ended = trio.Event()
        self.answer: bytes | None = None


class Line:
    """One stream. `over` tells whether anything more can be asked on it."""

    def __init__(self, stream: HostStream) -> None:
        self.stream = stream
        self.used_at = now()
        self.waiting = 0  # for an answer, now
        self._why = ""  # it is over
        self._asked: deque[_Asked] = deque()  # the oldest first; given up ones too
        self._outbox: deque[bytes] = deque()  # pieces that wait for room; at most IN_FLIGHT_MAX
        self._parser = frames.FrameParser(MESSAGE_MAX)
        stream.attach(self)

    @property
    def is_over(self) -> bool:
        """True once nothing can be asked on it."""
        return bool(self._why)

    @property
    def is_idle(self) -> bool:
        """True if no answer is awaited."""
        return not self._asked

    async def ask(self, message: bytes) -> bytes:
        """Send a request and return its answer.

        Raises PeerUnreachable if the stream ends before, Busy if too many are in flight. Who is
        cancelled is passed over when its answer comes.
        """
        if self.is_over:
            raise PeerUnreachable(self._why)
        if len(self._asked) >= IN_FLIGHT_MAX:
            raise Busy(f"{IN_FLIGHT_MAX} requests to {self.stream.peer} wait already")
        asked = _Asked()
        self._asked.append(asked)
        self.used_at = now()
        self._send(frames.pack(message))
        self.waiting += 1
        try:
            await asked.ended.wait()
        finally:
            self.waiting -= 1
            is_given_up = not asked.ended.is_set()
            if is_given_up and (self.is_over or self._asked[0].since + STUCK_S <= now()):
                self.end(f"{self.stream.peer} does not answer")  # nor will it the others
        if asked.answer is None:
            raise PeerUnreachable(self._why)
        return asked.answer

    def end(self, why: str) -> None:
        """Throw the stream away; everybody who waits is told why."""
        self._over(why)
        self.stream.drop()

    def leave(self) -> None:
        """Ask nothing more: the stream ends with the last answer."""
        self._why = "the line is being left"
        if self.is_idle:
            self.stream.drop()

    def _send(self, frame: bytes) -> None:
        view = memoryview(frame)
        self._outbox.extend(bytes(view[at : at + PUSH_MAX]) for at in range(0, len(view), PUSH_MAX))
        self.on_room()

    def _over(self, why: str) -> None:
        self._why = self._why or why
        self._outbox.clear()
        while self._asked:
            self._asked.popleft().ended.set()

    # wire.ports.Sink

    def on_data(self, data: bytes | memoryview) -> None:
        """Hand answers to who waits for them. Raises BadMessage for one too many."""
        for frame in self._parser.feed(data):
            if not self._asked:
                raise BadMessage("an answer to nothing")
            asked = self._asked.popleft()
            asked.answer = bytes(frame)
            asked.ended.set()
        if self.is_over and self.is_idle:
            self.stream.drop()

    def on_room(self) -> None:
        """Push what waits."""
        while self._outbox and self.stream.has_room:
            self.stream.push(self._outbox.popleft(), now=True)

    def on_end(self, error: PeerUnreachable | None) -> None:
        """The peer ended the stream."""
        self._over(str(error) if error else f"{self.stream.peer} ended the stream")
        self.stream.drop()
