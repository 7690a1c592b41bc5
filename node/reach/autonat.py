"""AutoNAT v2: dialling peers back at an address of theirs, and being dialled back.

What a server may be abused for, and what it does against it:
- to attack or scan a third machine: an address that is not the asker's own costs the asker more
  bytes (30 kB) than a handshake costs the victim, no port under 1024 is dialled there, and the
  answer does not tell a closed port from one where somebody else listens;
- to reach what is behind us: only global addresses are dialled, none of our own, of our networks or
  of our router, who lets in more from here than from outside;
- to keep us busy: a few requests a minute, one at a time for each peer, all with a deadline.
A server that lies is found out if it says yes (the nonce did not come), and outvoted if it says no.

Source: libp2p/specs, autonat/autonat-v2.md.
"""

import logging
import random
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import trio

from node.host.addresses import Address, parse_address
from node.host.interfaces import is_global
from node.host.service import LibP2pHost
from node.host.stream import HostStream
from node.reach import autonat_wire as wire
from node.reach.autonat_wire import DIAL_BACK, DIAL_REQUEST
from node.reach.candidates import Outcome
from wire.errors import BadMessage, DeadlineExceeded, PeerError, PeerUnreachable
from wire.frames import FrameParser
from wire.ids import PeerId
from wire.ports import Stream

PER_PEER = 12  # requests a minute; a node has a few addresses, and asks every 10 minutes
IN_ALL = 120  # requests a minute, of all peers: a handshake is 5 ms of work
AT_ONCE = 32  # dials, of all peers; most wait for what a firewall drops
MINUTE_S = 60.0
PEERS_MAX = 1024  # remembered; those who asked longest ago are forgotten
PLACES_MAX = 16  # of a request that are looked at
LOW_PORT = 1024  # below are other people's services

DATA_BYTES = (30_000, 60_000)  # asked for a foreign address: chosen at random, so none prepares it
DATA_TAKEN_MAX = 100_000  # that we send when asked: what the specification suggests at most
DATA_PIECE_MIN = 100  # bytes a message: thousands of tiny ones would cost us more than them
DATA_S = 20.0  # for all of it

DIAL_S = 3.0  # for TCP: two SYNs
BACK_S = 10.0  # for handshake, nonce and answer
ASK_S = DATA_S + DIAL_S + BACK_S + 5.0
NONCE_S = 1.0  # that a nonce may come later than the answer to the request

log = logging.getLogger(__name__)


@dataclass
class Quota:
    """Who may ask how often. Pure."""

    _all: deque[float] = field(default_factory=deque[float])
    _peers: dict[PeerId, deque[float]] = field(default_factory=dict[PeerId, deque[float]])
    _busy: set[PeerId] = field(default_factory=set[PeerId])

    def begin(self, peer: PeerId, now: float) -> bool:
        """Count a request; True if it may be served, and then `end` follows."""
        own = self._peers.pop(peer, None) or deque[float]()
        self._peers[peer] = own  # last: the one that asked longest ago falls out first
        if len(self._peers) > PEERS_MAX:
            del self._peers[next(iter(self._peers))]
        for times in (own, self._all):
            while times and times[0] <= now - MINUTE_S:
                times.popleft()
        is_over = len(own) >= PER_PEER or len(self._all) >= IN_ALL or len(self._busy) >= AT_ONCE
        if is_over or peer in self._busy:
            return False
        own.append(now)
        self._all.append(now)
        self._busy.add(peer)
        return True

    def end(self, peer: PeerId) -> None:
        """Note that a request that was begun is served."""
        self._busy.discard(peer)


def choose(
    places: Sequence[Address | None],
    seen_at: str,
    own_hosts: Iterable[str],
    may_dial: Callable[[str], bool] = is_global,
    is_near: Callable[[str], bool] = lambda _: False,
) -> int | None:
    """Return the index of the first place that we dial for somebody whom we see at an IP address.

    None if there is none: also if it is of IPv6, and we have none. is_near: in our networks, where
    only the asker itself is dialled. Pure.
    """
    own = set(own_hosts)
    has_ip6 = any(":" in host and may_dial(host) for host in own)
    for index, place in enumerate(places[:PLACES_MAX]):
        if place is None or not may_dial(place.host) or (place.network == "ip6" and not has_ip6):
            continue
        is_foreign = place.port >= LOW_PORT and place.host not in own and not is_near(place.host)
        if place.host == seen_at or is_foreign:
            return index
    return None


class DialBackServer:
    """Dials peers that ask for it. own_hosts: this machine's IP addresses, never dialled; nor is
    what `is_near`, unless the asker is there.
    """

    def __init__(
        self,
        host: LibP2pHost,
        own_hosts: Callable[[], Iterable[str]],
        may_dial: Callable[[str], bool] = is_global,
        is_near: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._host, self._own_hosts = host, own_hosts
        self._may_dial, self._is_near = may_dial, is_near
        self._quota = Quota()
        self.served = 0  # since the start
        host.serve(DIAL_REQUEST, self._serve)

    async def _serve(self, stream: Stream) -> None:
        assert isinstance(stream, HostStream)
        peer = stream.peer
        if stream.path != "direct" or not self._quota.begin(peer, trio.current_time()):
            await stream.write(wire.encode_response(wire.REJECTED))
            return
        self.served += 1
        try:
            with trio.move_on_after(ASK_S):
                await stream.write(await self._answer(_Messages(stream), stream))
        finally:
            self._quota.end(peer)

    async def _answer(self, messages: "_Messages", stream: HostStream) -> bytes:
        request = wire.decode(await messages.next())
        if not isinstance(request, wire.DialRequest):
            raise BadMessage(f"AutoNAT: a {type(request).__name__} before any request")
        seen_at = parse_address(stream.remote).host
        own = self._own_hosts()
        index = choose(request.places, seen_at, own, self._may_dial, self._is_near)
        place = None if index is None else request.places[index]
        if index is None or place is None:
            return wire.encode_response(wire.REFUSED)
        is_theirs = place.host == seen_at
        if not is_theirs:
            await self._take_data(messages, stream, index)
        status = await self._dial(place, stream.peer, request.nonce)
        if status == wire.DIAL_BACK_ERROR and not is_theirs:
            status = wire.DIAL_ERROR  # whether somebody else listens there is none of its business
        return wire.encode_response(wire.OK, index, status)

    async def _take_data(self, messages: "_Messages", stream: HostStream, index: int) -> None:
        """Let the asker pay. Raises BadMessage, DeadlineExceeded."""
        left = random.randint(*DATA_BYTES)
        await stream.write(wire.encode_data_request(index, left))
        with trio.move_on_after(DATA_S):
            while left > 0:
                piece = wire.decode(await messages.next())
                if not isinstance(piece, wire.Data) or piece.size_bytes < min(left, DATA_PIECE_MIN):
                    raise BadMessage("AutoNAT: not the data that were asked for")
                left -= piece.size_bytes
            return
        raise DeadlineExceeded(f"AutoNAT: data did not come within {DATA_S:.0f} s")

    async def _dial(self, place: Address, peer: PeerId, nonce: int) -> int:
        """Dial and deliver; returns the dial's status."""
        try:
            with trio.fail_after(DIAL_S):
                tcp = await self._host.once.connect(place)
        except (PeerUnreachable, trio.TooSlowError):
            return wire.DIAL_ERROR
        try:
            with trio.fail_after(BACK_S):
                async with self._host.once.stream(tcp, peer, DIAL_BACK) as back:
                    await back.write(wire.encode_back(nonce))
                    await _Messages(back, wire.BACK_MAX).next()
        except (PeerUnreachable, PeerError, trio.TooSlowError) as error:
            log.debug("autonat.no_delivery peer=%s place=%s %r", peer, place, error)
            return wire.DIAL_BACK_ERROR
        return wire.OK


@dataclass(frozen=True)
class _Question:
    """What we asked a server. `came`: its nonce, by a dial after `at` (trio's clock)."""

    came: trio.Event
    at: float


class DialBackClient:
    """Asks peers to dial us, and takes the nonces that come."""

    def __init__(self, host: LibP2pHost) -> None:
        self._host = host
        self._waiting: dict[int, _Question] = {}
        self._turns: dict[PeerId, trio.Lock] = {}  # a server serves each peer one request at a time
        self.asked = 0  # since the start
        host.serve(DIAL_BACK, self._take, before_admission=True)

    async def ask(self, peer: PeerId, address: Address) -> Outcome:
        """Ask a connected peer to dial one address of ours. Never raises for what a peer does."""
        turn = self._turns.setdefault(peer, trio.Lock())
        try:
            async with turn:
                return await self._ask_in_turn(peer, address)
        finally:
            if not (turn.locked() or turn.statistics().tasks_waiting):
                self._turns.pop(peer, None)

    async def _ask_in_turn(self, peer: PeerId, address: Address) -> Outcome:
        self.asked += 1
        nonce, came = secrets.randbits(64), trio.Event()
        self._waiting[nonce] = _Question(came, trio.current_time())
        try:
            with trio.fail_after(ASK_S):
                return await self._ask(peer, address, nonce, came)
        except (PeerUnreachable, DeadlineExceeded, PeerError, trio.TooSlowError) as error:
            log.debug("autonat.no_answer peer=%s address=%s %r", peer, address, error)
            return "reached" if came.is_set() else "no answer"
        finally:
            del self._waiting[nonce]

    async def _ask(self, peer: PeerId, address: Address, nonce: int, came: trio.Event) -> Outcome:
        stream = await self._host.open(peer, DIAL_REQUEST, timeout_s=DIAL_S)
        try:
            await stream.write(wire.encode_request([address], nonce))
            messages = _Messages(stream)
            said = wire.decode(await messages.next())
            if isinstance(said, wire.DataRequest):
                await _pay(stream, said.size_bytes)
                said = wire.decode(await messages.next())
            if not isinstance(said, wire.DialResponse) or said.index != 0:
                raise BadMessage("AutoNAT: not an answer to what we asked")
        finally:
            stream.drop()
        if said.status != wire.OK:
            return "no answer"
        if said.dial_status == wire.OK:
            with trio.move_on_after(NONCE_S):
                await came.wait()
        if came.is_set():
            return "reached"
        return "failed" if said.dial_status != wire.OK else "no answer"

    async def _take(self, stream: Stream) -> None:
        """Take a nonce. Its sender may be anybody: it says nothing but that it knows it. It must
        have dialled us for it: over a connection that was there before, it says nothing.
        """
        assert isinstance(stream, HostStream)
        with trio.move_on_after(BACK_S):
            nonce = wire.decode_back(await _Messages(stream, wire.BACK_MAX).next())
            asked = self._waiting.get(nonce)
            if asked is None or stream.path != "direct":
                raise BadMessage("AutoNAT: a nonce that nobody waits for")
            if stream.came_in_at is None or stream.came_in_at < asked.at:
                raise BadMessage("AutoNAT: a nonce without a dial")
            asked.came.set()
            await stream.write(b"\0")


async def _pay(stream: HostStream, size_bytes: int) -> None:
    """Send what a server wants for dialling another address than it sees us at."""
    if size_bytes > DATA_TAKEN_MAX:
        raise BadMessage(f"AutoNAT: {size_bytes} B asked, more than {DATA_TAKEN_MAX}")
    piece = wire.encode_data(wire.DATA_BYTES)
    for _ in range(-(-size_bytes // wire.DATA_BYTES)):
        await stream.write(piece)


class _Messages:
    """Reads whole messages from a stream."""

    def __init__(self, stream: HostStream, max_size: int = wire.MESSAGE_MAX) -> None:
        self._stream, self._max_size = stream, max_size
        self._parser = FrameParser(max_size)
        self._ready = deque[bytes]()

    async def next(self) -> bytes:
        """Return the next message. Raises BadMessage, PeerUnreachable."""
        while not self._ready:
            data = await self._stream.read(self._max_size)
            if not data:
                raise PeerUnreachable("AutoNAT: the stream ended early")
            self._ready += [bytes(frame) for frame in self._parser.feed(data)]
        return self._ready.popleft()
