"""How a line moves to a better connection (see `wire`): the caller's steps, and the server's."""

import logging
import secrets

import trio

from protocols.rpc.caller import CallerLine
from protocols.rpc.server import ServerLine
from protocols.rpc.wire import MOVE, READY, TOKEN_BYTES
from wire.errors import PeerUnreachable, ShoalError
from wire.ids import PeerId
from wire.ports import Host, Stream

OPEN_S = 10.0  # to open a stream over a connection that is there
MOVE_S = 30.0  # for both sides to hear the last word on a stream: behind MiB, over a slow relay

log = logging.getLogger(__name__)


async def move(host: Host, line: CallerLine) -> bool:
    """Let a line of ours go on over the best connection. False if it does not."""
    token = secrets.token_bytes(TOKEN_BYTES)
    try:
        stream = await host.open(line.peer, MOVE, timeout_s=OPEN_S)
    except ShoalError as error:
        log.debug("rpc.not_moved peer=%s %s", line.peer, error)
        return False
    try:
        with trio.move_on_after(MOVE_S):
            await stream.write(token)
            if await stream.read(1) != READY:  # it may not know how to move
                raise PeerUnreachable(f"{line.peer} takes no second stream")
            return await line.move(stream, token)
    except PeerUnreachable as error:
        log.debug("rpc.not_moved peer=%s %s", line.peer, error)
    finally:
        if line.stream is not stream:
            stream.drop()
            if line.successor is not None:
                line.stream.drop()  # nobody knows what was heard: it is lost
    return False


class Departures:
    """Lines whose caller has said its last word on their streams, by the token in it."""

    def __init__(self) -> None:
        self._lines: dict[tuple[PeerId, bytes], ServerLine] = {}
        self._changed = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: ServerLine, token: bytes) -> None:
        """A caller has said it; one token a line, so that there are no more than lines."""
        self._lines[line.stream.peer, token] = line
        self._changed.unpark_all()

    def forget(self, line: ServerLine) -> None:
        """A line is over."""
        if line.leaving is not None:
            self._lines.pop((line.stream.peer, line.leaving), None)

    async def meet(self, stream: Stream) -> tuple[ServerLine, bytes] | None:
        """Wait for the line whose last word names the token that is given here."""
        with trio.move_on_after(MOVE_S):
            token = await _read_token(stream)
            while (line := self._lines.pop((stream.peer, token), None)) is None:
                await self._changed.park()
            return None if line.lost else (line, token)
        return None


async def stay(line: ServerLine, stream: Stream) -> None:
    """Keep a stream's server until the line is over, or goes on elsewhere."""
    while line.lost is None and stream in (line.stream, line.successor):
        await line.turned.park()


async def _read_token(stream: Stream) -> bytes:
    token = b""
    while len(token) < TOKEN_BYTES:
        more = await stream.read(TOKEN_BYTES - len(token))
        if not more:
            raise PeerUnreachable(f"{stream.peer} began no move")
        token += more
    return token
