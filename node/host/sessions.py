"""What the host does with each connection: admit the peer, serve its streams, see that it lives.

The fences are here: whatever a stream's server or a connection's session raises ends that stream or
that connection, and nothing else (facts: network, trap 1).
"""

import logging
from collections.abc import Mapping
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import StreamHandlerFn
from libp2p.stream_muxer.exceptions import MuxedStreamError

from node.host import admission
from node.host.admission import ADMIT, ADMIT_S, OPEN, Binding, NotAdmitted
from node.host.channel import SecureChannel
from node.host.connection import Connection
from node.host.gate import Limits
from node.host.keepalive import keep_alive, see_off
from node.host.negotiate import accept, select
from node.host.peers import Peers
from node.host.ping import PING, answer_pings
from node.host.stream import HostStream
from node.host.yamux_stream import MuxedStream
from node.tickets import SwarmKey
from wire.errors import PeerError, PeerUnreachable, ShoalError
from wire.ids import PeerId
from wire.ports import StreamServer

log = logging.getLogger(__name__)

NEGOTIATE_S = 10.0  # for a peer that opened a stream to say what for
# Before we speak first (identify): js-libp2p 3 loses what comes in one piece with our answer to its
# proposal and the stream's end ("Cannot push data onto a stream that is closed").
PUBLIC_PAUSE_S = 0.05
STRANGER_S = 1.0  # in an open swarm: who did not say by then what it is, is a foreign libp2p node


class Sessions:
    """One per host. `servers` are ours, by protocol; `public` are libp2p's, served to anybody."""

    def __init__(
        self,
        own: PeerId,
        key: SwarmKey | None,
        peers: Peers,
        limits: Limits,
        public: Mapping[Any, StreamHandlerFn],
    ) -> None:
        self._own = own
        self._key = key
        self._peers = peers
        self._limits = limits
        self._public = public
        self.servers: dict[str, StreamServer] = {}
        self.early = set[str]()  # of them, those that who dialled us may open before its admission
        self.failed_admissions = 0
        self.server_errors = 0

    async def run(self, connection: Connection) -> None:
        """From the handshake to the end of a connection. Never raises."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._admit_and_keep, connection)
                nursery.start_soon(see_off, connection)
                await connection.over.wait()
                nursery.cancel_scope.cancel()
        except Exception:  # a bug of ours, but one peer's only
            log.exception("session.failed peer=%s", connection.peer)
            connection.abort("internal error")
        finally:
            self._peers.remove(connection)
            connection.settled.set()
            connection.agreed.set()

    async def open(self, connection: Connection, protocols: list[str]) -> tuple[HostStream, str]:
        """Open a stream on one connection. Raises PeerUnreachable, also if all are refused.

        In a closed swarm a single one is not waited for: if it is refused, the stream says so.
        """
        try:
            muxed = await connection.muxed.open_stream()
        except Exception as error:
            raise PeerUnreachable(f"{connection.peer}: {error}") from error
        if self._key is not None and len(protocols) == 1:
            muxed.propose(protocols[0])
            return HostStream(muxed, connection, protocols[0]), protocols[0]
        try:
            protocol = await select(muxed, protocols)
        except (trio.Cancelled, ShoalError):
            muxed.drop()
            raise
        except Exception as error:  # libp2p's: the stream or the connection broke
            muxed.drop()
            raise PeerUnreachable(f"{connection.peer}: {error}") from error
        if protocol is None:
            muxed.drop()
            raise PeerUnreachable(f"{connection.peer} does not speak {' or '.join(protocols)}")
        return HostStream(muxed, connection, protocol), protocol

    async def serve(self, connection: Connection, muxed: MuxedStream) -> None:
        """One stream that a peer opened. Never raises; the stream is over afterwards."""
        protocol = None
        try:
            with trio.fail_after(NEGOTIATE_S):
                protocol = await accept(muxed, lambda name: self._offers(connection, name))
            if protocol is not None:
                await self._serve(connection, muxed, protocol)
                muxed.finish()
        except Exception as error:
            # libp2p's own handlers raise at malformed bytes; ours may have bugs. Unfenced, either
            # ends the whole host (trap 1).
            if _is_peers_fault(error):
                log.debug("stream.failed peer=%s protocol=%s %r", connection.peer, protocol, error)
            else:
                self.server_errors += 1
                log.exception("stream.server_failed peer=%s protocol=%s", connection.peer, protocol)
        finally:
            muxed.drop()

    async def _offers(self, connection: Connection, protocol: str) -> bool:
        if protocol in (ADMIT, PING) or protocol in self._public:
            return True
        if protocol == OPEN:
            return self._key is None
        if protocol in self.early and connection.way == "in":
            return True
        # Its first stream can overtake its Welcome: wait for the outcome before refusing.
        await connection.settled.wait()
        return connection.is_admitted and protocol in self.servers

    async def _serve(self, connection: Connection, muxed: MuxedStream, protocol: str) -> None:
        stream = HostStream(muxed, connection, protocol)
        if protocol == PING:
            await answer_pings(stream)
        elif protocol == OPEN:
            self._admit(connection)
        elif protocol == ADMIT:
            await self._answer_admission(connection, stream)
        elif server := self.servers.get(protocol):
            await server(stream)
        else:
            wrapped: INetStream = await connection.as_libp2p(muxed)
            await trio.sleep(PUBLIC_PAUSE_S)
            await self._public[protocol](wrapped)

    async def _admit_and_keep(self, connection: Connection) -> None:
        try:
            with trio.fail_after(ADMIT_S):
                if connection.way == "out":
                    await self._seek_admission(connection)
                elif self._key is None:
                    await self._take_stranger(connection)
                else:
                    await connection.settled.wait()
        except trio.TooSlowError:
            self._refuse(connection, f"no admission within {ADMIT_S:.0f} s")
        except ShoalError as error:
            self._refuse(connection, str(error))
        else:
            connection.agreed.set()
            await keep_alive(connection, self._open_ping, self._peers.proven)
            self._doubt_others(connection)

    def _doubt_others(self, silent: Connection) -> None:
        """Ask all others who else is gone: if our own router restarted, it is everybody, and the
        relays that lead back to the silent one should not be waited for.
        """
        for peer in self._peers.connected():
            for connection in self._peers.of(peer):
                if connection is not silent:
                    connection.doubt()

    async def _seek_admission(self, connection: Connection) -> None:
        if self._key is None:
            try:
                stream, protocol = await self.open(connection, [OPEN, ADMIT])
            except PeerUnreachable:
                if connection.over.is_set():
                    raise
                return self._admit(connection)  # another libp2p implementation
            await stream.reset() if protocol == ADMIT else await stream.finish()
            if protocol == ADMIT:
                raise NotAdmitted("the peer is of a closed swarm, and this one is open")
        else:
            stream, _ = await self.open(connection, [ADMIT])
            await admission.admit_as_dialler(
                stream,
                self._key,
                self._binding(connection),
                on_proved=lambda: self._admit(connection),
            )
            await stream.finish()
        return self._admit(connection)

    async def _take_stranger(self, connection: Connection) -> None:
        with trio.move_on_after(STRANGER_S):
            await connection.settled.wait()
        if not connection.settled.is_set():
            self._admit(connection)

    async def _answer_admission(self, connection: Connection, stream: HostStream) -> None:
        if connection.is_admitted or connection.way == "out":
            raise NotAdmitted("nobody asked for admission here")
        if self._key is None:
            return self._refuse(connection, "the peer is of a closed swarm, and this one is open")
        try:
            await admission.admit_as_listener(stream, self._key, self._binding(connection))
        except PeerError as error:  # a wrong proof, or what is no message of this protocol
            return self._refuse(connection, str(error))
        self._admit(connection)
        return await admission.welcome(stream)

    def _binding(self, connection: Connection) -> Binding:
        channel = connection.muxed.secured_conn
        assert isinstance(channel, SecureChannel)
        ends = (self._own, connection.peer)
        dialler, listener = ends if connection.way == "out" else reversed(ends)
        return Binding(dialler, listener, channel.handshake_hash)

    def _admit(self, connection: Connection) -> None:
        if connection.settled.is_set():
            return
        held = self._peers.of(connection.peer)
        if len(held) >= self._limits.per_peer:
            # A retired one, or the oldest, not the newest: a peer that came back must get in.
            goes = next((one for one in held if one.is_retired), held[0])
            goes.abort("too many connections to this peer")
        connection.is_admitted = True
        connection.place.admit()
        connection.muxed.trust()
        self._peers.add(connection)
        connection.settled.set()

    def _refuse(self, connection: Connection, reason: str) -> None:
        self.failed_admissions += 1
        connection.refusal = reason
        connection.settled.set()
        connection.abort(reason)
        log.debug("admission.failed peer=%s reason=%s", connection.peer, reason)

    async def _open_ping(self, connection: Connection) -> HostStream:
        stream, _ = await self.open(connection, [PING])
        return stream


def _is_peers_fault(error: Exception) -> bool:
    faults = (ShoalError, MuxedStreamError, trio.TooSlowError)
    if isinstance(error, ExceptionGroup):
        return error.split(faults)[1] is None
    return isinstance(error, faults)
