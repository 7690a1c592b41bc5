"""The DHT's requests over the host's streams, both ends (dht.ports.Transport).

Asking: one kept stream per peer. Answering: what a peer asks, in order, as fast as it takes the
answers. Format and bounds: docs/protocols/dht.md, "Wire".
"""

import functools
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import trio

from dht import wire
from dht.limits import TOO_MANY, Limits
from dht.messages import AddProviders, Answer, Contact, Request, Stored
from dht.ports import Reply
from node.host.addresses import Address, parse_address
from node.host.ping import PING, ping
from node.host.race import Lanes, race
from node.host.service import LibP2pHost
from node.host.stream import HostStream
from node.kad_line import Line
from wire import frames
from wire.errors import BadMessage, DeadlineExceeded, PeerUnreachable, ShoalError
from wire.ids import PeerId
from wire.ports import Clock, Stream

T = TypeVar("T")

LINES_MAX = 512  # kept streams; beyond, the one that was used longest ago goes
LINE_IDLE_S = 60.0  # before a kept stream is closed: other implementations wait as long, or less
IDLE_S = 600.0  # for a peer to ask again on its stream
STREAMS_MAX = 32  # of one peer at a time; others open one for each request
READ_BYTES = 64 * 1024
WRITE_S = 30.0  # for a peer to take an answer
PAUSE_S = 0.5  # before a refusal for too many requests: who floods is slowed to this rate
CHECKED_MAX = 2  # addresses dialled to check one peer: its IPv4 and its IPv6 one
CHECK_STAGGER_S = 1.0  # until the second is dialled, too: a firewall swallows what comes by IPv6
OFF_LOOP_BYTES = 16 * 1024  # a larger message, of 60 signatures and more, is read in a thread
PUBLIC = "/ipfs/"  # begins protocols that other implementations speak


class _Opening:
    """A stream that is being opened, and what came of it for all who wait."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.error: ShoalError | None = None


class KadStreams:
    """Carries requests there, and answers what comes. `run` it before others can ask.

    answer: never raises. is_serving: False for a client, which refuses the protocol; call
    `mode_changed` when it has changed. own: our record, that goes with answers.
    """

    def __init__(
        self,
        host: LibP2pHost,
        protocol: str,
        answer: Callable[[PeerId, Contact | None, Request], Answer],
        is_serving: Callable[[], bool],
        *,
        own: Callable[[], Contact | None],
        clock: Clock,
    ) -> None:
        self._host, self._protocol, self._clock = host, protocol, clock
        self._answer, self._is_serving, self._own = answer, is_serving, own
        self._is_public = protocol.startswith(PUBLIC)
        self._lines: OrderedDict[PeerId, Line] = OrderedDict()  # used longest ago first
        self._openings: dict[PeerId, _Opening] = {}
        self._asking = Counter[PeerId]()  # streams that peers ask on
        self._limits = Limits()  # of what it costs to open, before it is known what it is
        self._is_offered = False
        self.bad_messages = 0  # streams that a peer broke the protocol on

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve, and close streams that nobody uses, until cancelled."""
        self.mode_changed()
        task_status.started()
        try:
            while True:
                await trio.sleep(LINE_IDLE_S / 2)
                self._close_idle(trio.current_time() - LINE_IDLE_S)
        finally:
            for line in self._lines.values():
                line.end("the node stops")

    def mode_changed(self) -> None:
        """Offer the protocol to others, or no more."""
        if self._is_serving() and not self._is_offered:
            self._host.serve(self._protocol, self._serve)
        elif self._is_offered and not self._is_serving():
            self._host.unserve(self._protocol)
        self._is_offered = self._is_serving()

    # --- asking ----------------------------------------------------------------------------------

    async def ask(
        self,
        contact: Contact,
        request: Request,
        sender: Contact | None,
        *,
        timeout_s: float,
        is_check: bool,
    ) -> Reply:
        """Ask a peer: see dht.ports.Transport."""
        with trio.move_on_after(timeout_s):
            if self._is_public and isinstance(request, AddProviders) and not contact.sealed:
                return Reply(await self._tell(contact, request, sender))
            message = wire.encode_request(request, sender)
            line, is_kept = await self._line_to(contact)
            try:
                answered = await line.ask(message)
            except PeerUnreachable:
                if not is_kept:
                    raise
                line, _ = await self._line_to(contact)  # it had ended, and we learn it now
                answered = await line.ask(message)
            return await self._reply(line, contact, request, answered, is_check=is_check)
        raise DeadlineExceeded(f"no answer from {contact.peer} within {timeout_s:g} s")

    async def _reply(
        self, line: Line, contact: Contact, request: Request, answered: bytes, *, is_check: bool
    ) -> Reply:
        read = functools.partial(
            wire.decode_answer,
            answered,
            request,
            contact.peer,
            self._clock.wall_ms(),
            is_public=self._is_public,
        )
        try:
            answer, theirs = await _off_loop(len(answered), read)
        except BadMessage:
            self.bad_messages += 1
            line.end("the peer broke the protocol")
            raise
        claims = _claims(contact.peer, theirs.addrs if theirs else contact.addrs)
        address = _answering_at(line.stream, claims)
        if address is None and is_check:
            address = await self._dialled(contact.peer, claims)
        return Reply(answer, theirs, address)

    async def _dialled(self, peer: PeerId, claims: tuple[Address, ...]) -> str | None:
        """Dial a peer that came to us where it claims to be; return where it answered first.

        Only that it is there is asked, which needs no admission. Raises PeerUnreachable if it is
        not, None if it claims no global address.
        """
        places = [each for each in claims if _is_global(each)][:CHECKED_MAX]
        if not places:
            return None
        ping_it = functools.partial(self._ping_at, peer)
        return await race(Lanes([places]), ping_it, lambda _: None, stagger_s=CHECK_STAGGER_S)

    async def _ping_at(self, peer: PeerId, address: Address) -> str:
        """Return the address. Raises PeerUnreachable."""
        try:
            tcp = await self._host.once.connect(address)
            async with self._host.once.stream(tcp, peer, PING) as stream:
                await ping(stream)
        except ShoalError as error:
            raise PeerUnreachable(str(error)) from error
        return str(address)

    async def _tell(
        self, contact: Contact, request: AddProviders, sender: Contact | None
    ) -> Stored:
        """Give provider records to another implementation, which does not answer: whether it keeps
        them is not known. That the stream ends, in good order or not, says that it has read.
        """
        for provision in request.provisions:
            stream = await self._open(contact)
            try:
                one = wire.encode_request(AddProviders((provision,)), sender)
                await stream.write(frames.pack(one))
                await stream.finish()
                with suppress(PeerUnreachable):
                    while await stream.read(READ_BYTES):
                        pass  # one of ours, known by hearsay, answers
            finally:
                stream.drop()
        return Stored(len(request.provisions))

    async def _line_to(self, contact: Contact) -> tuple[Line, bool]:
        """Return the kept stream to a peer, and whether it was there before."""
        peer = contact.peer
        while opening := self._openings.get(peer):
            await opening.ended.wait()
            if opening.error is not None:
                raise type(opening.error)(str(opening.error))
        line = self._lines.get(peer)
        if line is not None and not line.is_over:
            if not line.stream.is_retired:
                self._lines.move_to_end(peer)
                return line, True
            line.leave()
        opening = self._openings[peer] = _Opening()
        try:
            line = self._lines[peer] = Line(await self._open(contact))
        except ShoalError as error:
            opening.error = error
            raise
        finally:
            del self._openings[peer]
            opening.ended.set()
        self._lines.move_to_end(peer)
        if len(self._lines) > LINES_MAX:
            self._lines.popitem(last=False)[1].leave()
        return line, False

    async def _open(self, contact: Contact) -> HostStream:
        """Open a stream; `ask` has the deadline."""
        self._host.learn(contact.peer, list(contact.addrs), is_hearsay=not contact.sealed)
        return await self._host.open(contact.peer, self._protocol, timeout_s=float("inf"))

    def _close_idle(self, before_s: float) -> None:
        """Close what was used last before then, and forget what is over."""
        for peer, line in list(self._lines.items()):
            if line.used_at < before_s and not line.waiting:
                line.end("not used any more")
            if line.is_over:
                del self._lines[peer]

    # --- answering -------------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        """One stream that a peer opened; what is raised resets it."""
        peer = stream.peer
        if self._asking[peer] >= STREAMS_MAX:
            raise BadMessage(f"more than {STREAMS_MAX} streams")
        self._asking[peer] += 1
        try:
            await self._answer_all(stream)
        except BadMessage:
            self.bad_messages += 1
            raise
        finally:
            self._asking[peer] -= 1
            if not self._asking[peer]:
                del self._asking[peer]

    async def _answer_all(self, stream: Stream) -> None:
        parser = frames.FrameParser(wire.MESSAGE_MAX)
        while True:
            data = b""
            with trio.move_on_after(IDLE_S):
                data = await stream.read(READ_BYTES)
            if not data:
                return
            for frame in parser.feed(data):
                if not self._is_serving():
                    return
                answer = await self._answered(stream.peer, frame)
                with trio.fail_after(WRITE_S):
                    await stream.write(frames.pack(answer))

    async def _answered(self, peer: PeerId, frame: memoryview) -> bytes:
        """Return the answer to one request. Raises BadMessage."""
        draft, own = wire.Draft(frame), self._own()
        cost = draft.signatures
        if cost and not self._limits.allows(peer, "record", self._clock.now(), cost):
            await trio.sleep(PAUSE_S)
            return draft.refuse(TOO_MANY, own)
        try:
            open_it = functools.partial(draft.open, peer, self._clock.wall_ms())
            request, theirs = await _off_loop(len(frame), open_it)
        except wire.BadRecord as error:
            return draft.refuse(str(error), own)
        answer = self._answer(peer, theirs, request)
        if answer == Stored(0, TOO_MANY):
            await trio.sleep(PAUSE_S)
        return wire.encode_answer(request, answer, own)


async def _off_loop(size_bytes: int, work: Callable[[], T]) -> T:
    """Do it here, or in a thread if it may take long."""
    return work() if size_bytes < OFF_LOOP_BYTES else await trio.to_thread.run_sync(work)


@functools.lru_cache(maxsize=2048)  # asked of every answer; 2 KiB each at most
def _claims(peer: PeerId, addresses: tuple[str, ...]) -> tuple[Address, ...]:
    """Return the direct addresses among them that may be the peer's, without its name."""
    found = list[Address]()
    for text in addresses:
        try:
            address = parse_address(text)
        except BadMessage:
            continue
        if address.relay is None and address.peer in (None, peer):
            found.append(replace(address, peer=None))
    return tuple(found)


def _answering_at(stream: HostStream, claims: tuple[Address, ...]) -> str | None:
    """Return which of the claimed addresses a stream proves: the one that we dialled; or one on a
    local network, if that is where the peer came from.
    """
    if stream.path == "relayed":
        return None
    remotes = _claims(stream.peer, (stream.remote,))
    if not remotes:
        return None
    remote = remotes[0]
    if stream.came_in_at is None:
        for each in claims:
            is_there = each.host == remote.host or each.network.startswith("dns")
            if is_there and each.port == remote.port:
                return str(remote)
    if _is_global(remote):
        return None
    near = [each for each in claims if each.network.startswith("ip") and not _is_global(each)]
    return str(min(near, key=lambda each: each.host != remote.host)) if near else None


def _is_global(address: Address) -> bool:
    """True for an IP address that strangers could dial; names are not resolved for a check."""
    if not address.network.startswith("ip"):
        return False
    ip = ipaddress.ip_address(address.host)
    return ((ip.version == 6 and ip.ipv4_mapped) or ip).is_global
