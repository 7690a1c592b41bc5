"""What watches one connection: pings that keep and measure it, and its end once it is retired."""

from collections.abc import Awaitable, Callable

import trio

from node.host.connection import Connection
from node.host.liveness import Liveness, patience_s
from node.host.ping import ping
from node.host.stream import HostStream
from wire.errors import ShoalError

FIRST_PINGS = 3  # when a connection begins both ends are busy: the least of a few is the path's
LATE_S = 0.25  # our own loop was so late: what has come meanwhile is not read yet
RETIRED_S = 10.0  # that what did not move may take to end, on a retired connection
RETIRED_MAX_S = 60.0  # and as long as bytes move: a line's last word may be behind some MiB
TICK_S = 1.0  # for the other end to open its streams elsewhere

OpenPing = Callable[[Connection], Awaitable[HostStream]]


async def keep_alive(
    connection: Connection, open_ping: OpenPing, on_proven: Callable[[Connection], None]
) -> None:
    """Ping an admitted connection until nobody answers. `on_proven`: somebody has."""
    keeper = _Keeper(connection, open_ping, on_proven)
    while not keeper.liveness.is_dead:
        await keeper.turn()
    connection.abort("no answer to pings")
    connection.carrier.reset()


class _Keeper:
    def __init__(
        self, connection: Connection, open_ping: OpenPing, on_proven: Callable[[Connection], None]
    ) -> None:
        self.liveness = Liveness(next_ping_at=trio.current_time())
        self._connection = connection
        self._open_ping, self._on_proven = open_ping, on_proven
        self._stream: HostStream | None = None
        self._is_resting = False  # it is retired, and not asked about

    async def turn(self) -> None:
        """Wait until there is something to do, and do it."""
        connection, liveness = self._connection, self.liveness
        if not connection.is_doubted and connection.is_retired == self._is_resting:
            connection.next_look_at = liveness.next_ping_at
            if connection.waiting:
                connection.hurry()
            with trio.move_on_at(connection.next_look_at):
                await connection.changed.park()
        now = trio.current_time()
        connection.rates.note(now, connection.carrier.own)
        self._is_resting = connection.is_retired
        if self._is_resting:
            connection.is_doubted = False  # it is not asked about
            self._drop_stream()  # so that nothing is left on it
            liveness.next_ping_at = now + RETIRED_MAX_S
            return
        if connection.is_doubted:
            connection.is_doubted = False
            liveness.check(now)
        hurries = connection.waiting > 0
        if liveness.is_due(now, connection.carrier.heard_at, hurries=hurries):
            hurries = hurries or liveness.is_checking
            await self._ask(patience_s(connection.rtt_s, hurries=hurries))

    async def _ask(self, within_s: float) -> None:
        connection, liveness = self._connection, self.liveness
        liveness.pinged(connection.carrier.own.bytes_in)
        with trio.move_on_after(within_s) as patience:
            connection.patience = patience
            try:
                if self._stream is None:
                    self._stream = await self._open_ping(connection)
                for _ in range(1 if connection.rtts_s else FIRST_PINGS):
                    connection.rtts_s.append(await ping(self._stream))
                connection.muxed.rtt_s = connection.rtts_s[-1]
                liveness.answered(trio.current_time())
                self._on_proven(connection)
            except ShoalError:
                self._drop_stream()
                await trio.sleep_forever()  # never faster than one in the time of patience
        if patience.cancelled_caught:
            is_late = trio.current_time() > patience.deadline + LATE_S
            await trio.sleep(LATE_S if is_late else 0)  # whoever reads the socket is first
            liveness.missed(trio.current_time(), connection.carrier.own.bytes_in)

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.drop()
            self._stream = None


async def see_off(connection: Connection) -> None:
    """Close a connection once it is retired and nothing is left on it that may be waited for."""
    while True:
        while not connection.is_retired:
            await connection.turned.park()
        since, traffic = trio.current_time(), connection.carrier.own
        while connection.is_retired:
            before = traffic.bytes_in + traffic.bytes_out
            await trio.sleep(TICK_S)
            for_s = trio.current_time() - since
            is_still = traffic.bytes_in + traffic.bytes_out == before
            is_over = for_s >= RETIRED_MAX_S or (for_s >= RETIRED_S and is_still)
            if connection.is_retired and (is_over or not connection.muxed.streams):
                return await connection.close()
