"""Circuits from their ends: reserving at a relay, dialling through one, taking what one brings.

A `Circuit` is a Carrier over a stream to the relay: Noise, admission and Yamux run in it as on a
socket, so the relay sees sizes and times. Source: libp2p/specs, relay/circuit-v2.md.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import trio
from libp2p.io.exceptions import ConnectionClosedError

from node.host.addresses import Address, parse_address
from node.host.service import LibP2pHost
from node.host.stream import HostStream
from node.host.views import Traffic
from node.reach.messages import (
    HOP,
    STOP,
    Answer,
    Connect,
    Limits,
    Opening,
    Reserve,
    Status,
    pack_hop,
    pack_stop,
    read_hop,
    read_stop,
    receive,
)
from wire.errors import BadMessage, DeadlineExceeded, PeerUnreachable
from wire.ids import PeerId
from wire.ports import PUSH_MAX, Stream

log = logging.getLogger(__name__)

ASK_S = 10.0  # for a relay to answer: it may ask whom we call, which has 5 s
TAKE_S = 5.0  # for a relay to say what it brings
# A relay tells a wall-clock time; its clock or ours may be wrong, by years. So much is believed,
# and renewed at half of it; that its connection stands says more than any clock.
RESERVATION_MIN_S, RESERVATION_MAX_S = 120.0, 3600.0


@dataclass(frozen=True)
class Reservation:
    """A relay's promise."""

    relay: PeerId
    until: float  # trio's clock; when the connection to the relay ends, it ends too
    addresses: tuple[str, ...]  # ours through this relay, to be announced
    limits: Limits


class CircuitCarrier:
    """A Carrier in a circuit. Holds at most a Yamux window (256 KiB) that was not read."""

    is_punched = False

    def __init__(self, stream: HostStream, *, answer: Opening | None = None) -> None:
        """answer: of the relay, if it has not come yet; what is not OK ends the circuit."""
        self.own = Traffic()
        self.heard_at = trio.current_time()
        self.relay: PeerId | None = stream.peer
        self._stream = stream
        self._answer = answer
        self._buffer = bytearray()
        self._ended = ""  # why there is nothing more to read or write
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        stream.attach(self, paced=True)

    # wire.ports.Sink

    def on_data(self, data: bytes | memoryview) -> None:
        """Keep what came until it is read; the window bounds it. Raises BadMessage."""
        self.heard_at = trio.current_time()
        self.own.bytes_in += len(data)
        if self._answer is None:
            self._buffer += data
        elif found := self._answer.feed(data):
            self._answer = None
            status = _answer_in(found[0]).status
            if status is not Status.OK:
                self._end(f"relay {self.relay}: {status.in_words()}")
                return
            self._buffer += found[1]
        self._readable.unpark_all()

    def on_room(self) -> None:
        """Let the writer go on."""
        self._writable.unpark_all()

    def on_end(self, error: PeerUnreachable | None) -> None:
        """Nothing more comes."""
        self._end("circuit ended" if error is None else f"circuit broke: {error}")

    def _end(self, reason: str) -> None:
        self._ended = self._ended or reason
        self._readable.unpark_all()
        self._writable.unpark_all()

    # node.host.carrier.Carrier

    async def read(self, n: int | None = None) -> bytes:
        """Return between 1 and `n` bytes. Raises ConnectionClosedError."""
        await self.wait_readable()
        data = bytearray(len(self._buffer) if n is None else min(n, len(self._buffer)))
        self.read_now(memoryview(data))
        return bytes(data)

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises ConnectionClosedError."""
        left = memoryview(data)
        while left:
            await self.wait_writable()
            left = left[self.write_now([left]) :]

    def take_buffered(self) -> bytes:
        """Nothing: `read_now` sees it all."""
        return b""

    def read_now(self, into: memoryview) -> int:
        """Read what is there; 0 if nothing is. Raises ConnectionClosedError."""
        size = min(len(into), len(self._buffer))
        if not size and self._ended:
            raise ConnectionClosedError(self._ended, transport="circuit")
        with memoryview(self._buffer) as view:
            into[:size] = view[:size]
        del self._buffer[:size]
        self._stream.took(size)
        return size

    def write_now(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Push what there is room for and return how much. Raises ConnectionClosedError."""
        if self._ended:
            raise ConnectionClosedError(self._ended, transport="circuit")
        data = memoryview(b"".join(buffers))
        sent = 0
        while sent < len(data) and self._stream.has_room:
            part = data[sent : sent + PUSH_MAX]
            sent += len(part)
            self._stream.push(bytes(part), now=sent == len(data))
        self.own.bytes_out += sent
        return sent

    async def wait_readable(self) -> None:
        """Wait until `read_now` has something to say."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not (self._buffer or self._ended):
            await self._readable.park()

    async def wait_writable(self) -> None:
        """Wait until `write_now` takes something, or raises."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not (self._stream.has_room or self._ended):
            await self._writable.park()

    async def close(self) -> None:
        """End our direction; the relay ends the rest. Safe to repeat."""
        await trio.lowlevel.checkpoint()
        self._end("closed here")
        self._stream.finish_now()

    def abort(self) -> None:
        """End it at once."""
        self._end("closed here")
        self._stream.drop()

    def reset(self) -> None:
        """End it at once."""
        self.abort()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the IP address and port of the relay."""
        place = parse_address(self._stream.remote)
        return place.host, place.port


class CircuitClient:
    """Makes and takes circuits for a host, from the moment it is made.

    is_closed: all ends are Shoal's, so that whom we call hears our handshake with the relay's
    request, and nothing is waited for.
    """

    def __init__(self, host: LibP2pHost, *, is_closed: bool) -> None:
        self._host = host
        self._is_closed = is_closed
        host.use_circuits(self)
        host.serve(STOP, self._take)

    async def reserve(self, relay: PeerId, *, timeout_s: float = ASK_S) -> Reservation:
        """Ask a relay to take circuits for us; again to renew.

        Raises PeerUnreachable (also if it refuses), BadMessage.
        """
        stream = await self._open(relay, timeout_s)
        try:
            with trio.fail_after(timeout_s):
                await stream.write(pack_hop(Reserve()))
                answer = _answer_in(await receive(stream))
        except trio.TooSlowError:
            raise PeerUnreachable(f"relay {relay} does not answer") from None
        finally:
            stream.drop()
        if answer.status is not Status.OK:
            raise PeerUnreachable(f"relay {relay}: {answer.status.in_words()}")
        left_s = answer.until - time.time()
        left_s = min(max(left_s, RESERVATION_MIN_S), RESERVATION_MAX_S)
        return Reservation(
            relay,
            trio.current_time() + left_s,
            tuple(self._through(relay, answer.addresses)),
            answer.limits,
        )

    def _through(self, relay: PeerId, told: tuple[Address, ...]) -> list[str]:
        """Our addresses at a relay; the one by which we reached it ourselves comes first."""
        known = [parse_address(text) for text in self._host.addresses_of(relay)]
        places = [replace(place, peer=relay) for place in (*known[:1], *told)]
        return [
            str(replace(place, relay=relay, peer=self._host.peer))
            for place in dict.fromkeys(places)
            if place.relay is None
        ]

    async def dial(self, relay: Address, peer: PeerId) -> CircuitCarrier:
        """Ask the relay at an address for a circuit to a peer. Raises PeerUnreachable.

        In a closed swarm it is returned at once, and ends if the relay refuses.
        """
        assert relay.relay is not None
        if relay.relay == self._host.peer:
            raise PeerUnreachable("that relay is this node")
        place = str(replace(relay, relay=None, peer=relay.relay))
        self._host.learn(relay.relay, [place], is_hearsay=True)  # the peer that we call says so
        stream = await self._open(relay.relay, ASK_S)
        try:
            with trio.fail_after(ASK_S):
                await stream.write(pack_hop(Connect(peer)))
                if self._is_closed:
                    return CircuitCarrier(stream, answer=Opening())
                answer = _answer_in(await receive(stream))
            if answer.status is not Status.OK:
                raise PeerUnreachable(f"relay {relay.relay}: {answer.status.in_words()}")
        except (trio.TooSlowError, BadMessage) as error:
            stream.drop()
            raise PeerUnreachable(f"relay {relay.relay}: {error!r}") from error
        except BaseException:
            stream.drop()
            raise
        return CircuitCarrier(stream)

    async def _open(self, relay: PeerId, timeout_s: float) -> HostStream:
        try:
            stream = await self._host.open(relay, HOP, timeout_s=timeout_s)
        except DeadlineExceeded as error:
            raise PeerUnreachable(str(error)) from error
        if stream.path != "direct":
            stream.drop()
            raise PeerUnreachable(f"relay {relay} is itself reached through a relay")
        return stream

    async def _take(self, stream: Stream) -> None:
        """A relay brings a circuit: answer, and run the connection in it to its end."""
        assert isinstance(stream, HostStream)
        with trio.fail_after(TAKE_S):
            request = read_stop(await receive(stream))
            if not isinstance(request, Connect):
                await stream.write(pack_stop(Answer(Status.UNEXPECTED_MESSAGE)))
                return
            if stream.path != "direct":
                await stream.write(pack_stop(Answer(Status.PERMISSION_DENIED)))
                return
            await stream.write(pack_stop(Answer(Status.OK)))
        log.debug("circuit.taken relay=%s peer=%s", stream.peer, request.peer)
        await self._host.take(CircuitCarrier(stream))


def _answer_in(body: bytes) -> Answer:
    answer = read_hop(body)
    if not isinstance(answer, Answer):
        raise BadMessage("a relay asks where it should answer")
    return answer
