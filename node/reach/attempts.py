"""One try of a hole punch: connects from the listening port to a peer's addresses, all at once and
again, until one socket has become an admitted connection. docs/protocols/reach.md, "Hole punching".
"""

import logging
import socket
from collections.abc import Sequence

import trio

from node.host.addresses import Address
from node.host.holes import Holes
from node.host.listeners import connected
from wire.errors import PeerUnreachable, ShoalError
from wire.faults import OnFailure
from wire.ids import PeerId

CONNECTING_S = 3.0  # the other side begins within a round trip of us; three SYNs of the kernel's
PREDICTED_S = (
    1.5  # the same where ports were predicted: a refusal ends a router's mapping, the next
)
# one has another number, and only the next try knows that
# After a refusal we try again: these many times at once, for it closed what our router held open;
# then after a while that grows, for it may be a machine that has nothing to do with this.
AT_ONCE = 3
AGAIN_S = 0.1
AGAIN_MAX_S = 0.5
SILENCE_MIN_S = 0.25  # for an answer to one SYN, or 2 round trips: a new one has another sequence
# number, with which an answer that is on its way is void
BEGIN_MIN_S = 0.3  # for the initiator's first byte, or 2 round trips; docs/protocols/reach.md, 4
RTT_MAX_S = 2.0  # that is believed: the other side could have waited with its answer
ADOPTION_S = 5.0  # from a connected socket to an admitted connection
HANDSHAKES_MAX = 2  # with one address: one may cross the other side's; more is somebody else

log = logging.getLogger(__name__)


class Attempts:
    """A try with one peer. begins: whether we are DCUtR's initiator.

    is_predicted: our router is sequential and the peer was told where we come from. Then each
    target has a new port of ours: from the listening port, a router that still knows of an earlier
    connection to the target would let us come from where that one did.
    """

    def __init__(
        self,
        holes: Holes,
        peer: PeerId,
        targets: Sequence[Address],
        *,
        begins: bool,
        rtt_s: float,
        is_predicted: bool = False,
        within_s: float = CONNECTING_S,
    ) -> None:
        self._holes, self._peer, self._targets, self._begins = holes, peer, targets, begins
        self._within_s = within_s
        self._ports: list[int | None] = [0 if is_predicted else None] * len(targets)
        rtt_s = min(rtt_s, RTT_MAX_S)
        self._silence_s = max(SILENCE_MIN_S, 2 * rtt_s)
        self._begin_s = max(BEGIN_MIN_S, 2 * rtt_s)
        self.refusals = 0  # and other errors, of all targets

    async def run(self) -> None:
        """Return when a socket of ours was admitted, or none was in time; that the peer came in at
        our listener meanwhile is for the caller to see, and to cancel this.
        """
        end = trio.current_time() + self._within_s
        # At once, in their order, with nothing in between: a sequential router counts them.
        begun = [self._connect(at) for at in range(len(self._targets))]
        async with trio.open_nursery() as nursery:
            for at, sock in enumerate(begun):
                nursery.start_soon(self._persist, at, sock, end, nursery.cancel_scope)
            await trio.sleep_until(end)

    def _connect(self, at: int) -> socket.socket | None:
        target = self._targets[at]
        try:
            sock = self._holes.connect(target, port=self._ports[at])
        except OSError as error:  # no route, or the last one is not gone yet
            log.debug("punch.no_socket to=%s error=%r", target, error)
            return None
        if self._ports[at] is not None:
            self._ports[at] = int(sock.getsockname()[1])  # the next try's, too
        return sock

    async def _persist(
        self, at: int, sock: socket.socket | None, end: float, all_of_them: trio.CancelScope
    ) -> None:
        handshakes, connects, pause_s = 0, 0, AGAIN_S
        while True:
            connects += 1
            began = trio.current_time()
            stream = await self._answered(sock, min(end, began + self._silence_s))
            if stream is not None:
                handshakes += 1
                if await self._adopted(stream, self._targets[at]):
                    all_of_them.cancel()
                    return
            again = trio.current_time()
            if connects > AT_ONCE or stream is not None:
                again = max(again, began + pause_s)
                pause_s = min(1.5 * pause_s, AGAIN_MAX_S)
            if again >= end or handshakes >= HANDSHAKES_MAX:
                return
            await trio.sleep_until(again)
            sock = self._connect(at)

    async def _answered(
        self, sock: socket.socket | None, deadline: float
    ) -> trio.SocketStream | None:
        if sock is not None:
            with trio.CancelScope(deadline=deadline):
                try:
                    return await connected(sock)
                except OSError:  # refused, by the peer or any router: not yet
                    self.refusals += 1
        return None

    async def _adopted(self, stream: trio.SocketStream, target: Address) -> bool:
        try:
            with trio.fail_after(ADOPTION_S):
                with OnFailure(stream.socket.close):  # from then on, it is for `adopt` to close it
                    initiator = self._begins or not await self._was_greeted(stream)
                await self._holes.adopt(
                    stream, self._peer, initiator=initiator, is_ours=self._begins
                )
        except (ShoalError, trio.TooSlowError, OSError) as error:
            log.debug("punch.not_it peer=%s at=%s error=%r", self._peer, target, error)
            return False
        log.debug("punch.through peer=%s at=%s", self._peer, target)
        return True

    async def _was_greeted(self, stream: trio.SocketStream) -> bool:
        """Tell whether the other end begins; if it does not, it is a listener that waits for us."""
        with trio.move_on_after(self._begin_s):
            if not await stream.socket.recv(1, socket.MSG_PEEK):
                raise PeerUnreachable("it hung up")
            return True
        return False
