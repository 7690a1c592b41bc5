"""STUN on sockets: serving it, holding an anchor, and looking at our mapping from fresh ports.

Source: RFC 8489, section 6.2.2 (over TCP); the messages are in node/reach/stun.py.
"""

import ipaddress
import logging
import math
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import trio

from node.host.addresses import Address, is_loopback
from node.host.gate import Gate, Limits
from node.host.listeners import Listener, connect_from
from node.reach import stun
from node.reach.behaviour import Behaviour, Observation, classify
from wire.errors import BadMessage, PeerUnreachable
from wire.faults import OnFailure

CONNECTIONS_MAX = 256  # served; most are anchors of members, and cost 10 KB each
PER_NETWORK_MAX = 8  # a household, or a laboratory behind one address; of IPv6 a /64 is one
IDLE_S = 75.0  # three of an anchor's questions may get lost
PACE_S = 0.1  # between answers on one connection: who asks faster waits
STUN_S = 3.0  # for a connection, and for an answer: two SYNs
ANCHOR_S = 25.0  # between an anchor's questions: routers forget idle TCP after a minute at worst
CALM_S = 1.0  # between questions, whatever happens
ROUNDS = 3  # of looking: a sequential router is told from a random one by several steps
ROUNDS_ENOUGH = 2  # once all servers saw the same

log = logging.getLogger(__name__)


class StunServer:
    """Tells anybody its own address. other_port: our second port, None while there is none."""

    def __init__(self, other_port: Callable[[], int | None]) -> None:
        self._other_port = other_port
        self._gate = Gate(
            Limits(
                connections=CONNECTIONS_MAX,
                unadmitted=CONNECTIONS_MAX,
                unadmitted_per_ip=PER_NETWORK_MAX,
                per_ip=PER_NETWORK_MAX,
            )
        )

    @property
    def connections(self) -> int:
        """How many are open now."""
        return self._gate.total

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer on one connection until it is idle or over, and close it. Never raises.

        Beyond the limits it is closed at once: who wants an anchor has other servers.
        """
        try:
            place = self._gate.enter(_household(_remote(stream).host))
            if place is None:
                return
            try:
                await self._answer(stream)
            finally:
                place.leave()
        except (BadMessage, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("stun.ended %r", error)
        finally:
            stream.socket.close()

    async def _answer(self, stream: trio.SocketStream) -> None:
        remote, local = _remote(stream), _address(stream.socket.getsockname())
        while True:
            message = None
            with trio.move_on_after(IDLE_S):
                message = await _read(stream)
            if message is None:
                return  # it hung up, or sleeps
            port = self._other_port()
            other = None if port is None else replace(local, port=port)
            answer = stun.encode_answer(stun.decode_request(message), remote, other)
            with trio.move_on_after(STUN_S) as slow:
                await stream.send_all(answer)
            if slow.cancelled_caught:
                return
            await trio.sleep(PACE_S)


async def ask(stream: trio.SocketStream) -> stun.Answer:
    """Ask once. Raises PeerUnreachable (also if there is no answer within STUN_S), BadMessage."""
    transaction = secrets.token_bytes(stun.TRANSACTION_BYTES)
    try:
        with trio.fail_after(STUN_S):
            await stream.send_all(stun.encode_request(transaction))
            message = await _read(stream)
    except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise PeerUnreachable(f"STUN: {error!r}") from error
    if message is None:
        raise PeerUnreachable("STUN: the server hung up")
    return stun.decode_answer(message, transaction)


class Anchor:
    """A connection from our listening port to a server, asked every ANCHOR_S.

    told: what the server sees, each time the same: a connection that routers map anew is over.
    """

    def __init__(
        self, listener: Listener, server: Address, told: Callable[[Address], None]
    ) -> None:
        self._listener, self._server, self._told = listener, server, told
        self._rest = trio.CancelScope()
        self._asked_at = -math.inf

    def ask_now(self) -> None:
        """Ask before the time: something hints that the network is not what it was."""
        if trio.current_time() >= self._asked_at + CALM_S:
            self._rest.cancel()

    async def hold(self) -> NoReturn:
        """Hold it. Raises PeerUnreachable or BadMessage when it is over."""
        try:
            stream = await connect_from(self._listener, self._server, STUN_S)
        except (OSError, trio.TooSlowError) as error:
            raise PeerUnreachable(f"{self._server}: {error!r}") from error
        try:
            # Reset when closed: in TIME_WAIT, the next to the same server could not be made.
            linger = struct.pack("ii", 1, 0)
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            seen = None
            while True:
                self._asked_at = trio.current_time()
                before, seen = seen, (await ask(stream)).mapped
                if before not in (None, seen):
                    raise BadMessage(f"{self._server} saw {before}, and now {seen}")
                self._told(seen)
                with trio.move_on_after(ANCHOR_S) as self._rest:
                    await _read(stream)
                    raise PeerUnreachable(f"{self._server} hung up, or speaks unasked")
        except trio.BrokenResourceError as error:
            raise PeerUnreachable(f"{self._server}: {error!r}") from error
        finally:
            stream.socket.close()


async def look(listener: Listener, servers: Sequence[Address]) -> Behaviour | None:
    """Tell the mapping behaviour: ask each server, at both of its ports, from the same fresh port.

    None if too few answered. Takes two round trips for each question, a dozen questions at most.
    """
    seen = list[Observation]()
    for done in range(1, ROUNDS + 1):
        found = await _look_once(listener, servers)
        seen += found
        behaviour = classify(seen)
        is_kind = behaviour is not None and behaviour.mapping in ("none", "endpoint-independent")
        if not found or (is_kind and len(found) > 1 and done >= ROUNDS_ENOUGH):
            break
    return classify(seen)


async def look_one(listener: Listener, servers: Sequence[Address]) -> Address | None:
    """Ask the first server that answers what a new connection from a fresh port looks like."""
    for server in servers:
        look = await _try(replace(listener.address, port=0), server)
        if look is not None:
            look.stream.socket.close()
            return look.seen.mapped
    return None


@dataclass(frozen=True)
class _Look:
    """One answer, with its connection, and where else the server says it answers."""

    stream: trio.SocketStream
    seen: Observation
    other: Address | None


async def _look_once(listener: Listener, servers: Sequence[Address]) -> list[Observation]:
    """Ask in turn; all connections stay open meanwhile, so that routers keep the mappings."""
    local, looks = replace(listener.address, port=0), list[_Look]()
    try:
        for server in servers:
            look = await _try(local, server)
            if look is None:
                continue
            looks.append(look)
            local = replace(local, port=look.seen.local.port)
            if look.other is not None:
                # The port only: behind a cloud's translation it does not know its own address.
                second = await _try(local, replace(server, port=look.other.port))
                looks += [second] if second is not None else []
    finally:
        for look in looks:
            look.stream.socket.close()
    return [look.seen for look in looks]


async def _try(local: Address, server: Address) -> _Look | None:
    """Connect and ask; the connection is the caller's then. None if that failed."""
    sock = trio.socket.socket(local.family, socket.SOCK_STREAM)
    with OnFailure(sock.close):
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # with those to other servers
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            await sock.bind((local.host, local.port))
            with trio.fail_after(STUN_S):
                await sock.connect((server.host, server.port))
            stream = trio.SocketStream(sock)
            answer = await ask(stream)
        except (OSError, trio.TooSlowError, PeerUnreachable, BadMessage) as error:
            log.debug("stun.no_answer server=%s %r", server, error)
            sock.close()
            return None
        seen = Observation(_address(sock.getsockname()), server, answer.mapped)
        return _Look(stream, seen, answer.other)


async def _read(stream: trio.SocketStream) -> bytes | None:
    """Read one message; None at the end of the stream. Raises BadMessage."""
    header = await _read_exactly(stream, stun.HEADER_BYTES)
    if header is None:
        return None
    body = await _read_exactly(stream, stun.body_bytes(header))
    return None if body is None else header + body


async def _read_exactly(stream: trio.SocketStream, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            return None
        data += more
    return data


def _remote(stream: trio.SocketStream) -> Address:
    """Raises OSError if it hung up already."""
    return _address(stream.socket.getpeername())


def _address(name: tuple[object, ...]) -> Address:
    host = str(name[0]).split("%")[0]
    port = name[1]
    assert isinstance(port, int)
    return Address("ip6" if ":" in host else "ip4", host, port)


def _household(host: str) -> str:
    """Return what counts as one caller: an IPv4 address, or a /64, of which one machine has all."""
    if ":" not in host or is_loopback(host):
        return host
    return str(ipaddress.ip_network(f"{host}/64", strict=False))
