"""Server-sent events from bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Pure: both clients feed it what they read. Only `event` and `data` are used by the daemon.
"""

from shoal.api import Event
from shoal.errors import ClientError

LINE_MAX_BYTES = 16 * 1024 * 1024  # one event of ours is below 1 MiB; a bound against nonsense


class Parser:
    """Collects bytes and returns the events that are complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[Event]:
        """Add bytes; return the events they complete. Raises ClientError if a line never ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_MAX_BYTES:
            raise ClientError(f"event line over {LINE_MAX_BYTES} B")
        events: list[Event] = []
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._end()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._name = value.decode("utf-8", "replace")
        elif name == b"data":
            self._data.append(value)
        return None  # comments (keep-alive) and other fields carry nothing

    def _end(self) -> Event | None:
        name, data = self._name, self._data
        self._name, self._data = "", []
        return Event(name, b"\n".join(data)) if data else None
