"""libp2p's Swarm without its traps: what listens, upgrades and holds connections.

Facts: network, section 2. A subclass, so that libp2p's own parts (identify, later the relay and
AutoNAT) find the network they expect; each override says what it avoids.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import cast

import trio
from libp2p.abc import IMuxedConn, INetConn, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from node.host.carrier import Carrier
from node.host.channel import NOISE_AES, SCRATCH_BYTES, AesNoiseTransport, SecureChannel
from node.host.connection import Connection
from node.host.gate import Gate, Place
from node.host.negotiate import Awaited, accept, proposal, select
from node.host.tcp import CountedTcp
from node.host.views import Traffic
from node.host.yamux import MuxedConnection
from node.host.yamux_stream import MuxedStream
from wire.errors import BadMessage, PeerUnreachable, ShoalError
from wire.ids import PeerId

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0  # Noise and Yamux, either side (facts: security 3.4, pre-auth deadline)
CLOSE_ALL_S = 0.5  # for all connections to say goodbye when the host stops


class _Ahead:
    """A raw stream of a dialler who sends its proposal with its first message."""

    def __init__(self, carrier: Carrier, protocol: str) -> None:
        self._carrier = carrier
        self._first = proposal(protocol)
        self._awaited = Awaited(protocol)

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        first, self._first = self._first, b""
        await self._carrier.write(first + data)

    async def read(self, n: int | None = None) -> bytes:
        """Return between 1 and `n` bytes from behind the answer."""
        while self._awaited.left_bytes:
            self._awaited.cut_off(await self._carrier.read(self._awaited.left_bytes))
        return await self._carrier.read(n)

    async def close(self) -> None:
        """Close the carrier."""
        await self._carrier.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the IP address and port of the other end."""
        return self._carrier.get_remote_address()


class _Handshakes:
    """From a carrier to a muxed connection: libp2p's Noise, then our record layer and Yamux.

    In place of libp2p's TransportUpgrader, which takes two round trips for each choice. Here it is
    one, or none where the swarm is closed and the listener ours.
    """

    def __init__(self, key_pair: KeyPair, *, is_closed: bool) -> None:
        self._is_closed = is_closed
        static = create_new_x25519_key_pair().private_key
        self._security: dict[str, NoiseTransport] = {
            NOISE_AES: AesNoiseTransport(key_pair, static),  # first choice
            NOISE: NoiseTransport(key_pair, static),
        }
        self._scratch = bytearray(SCRATCH_BYTES)

    async def run(
        self, carrier: Carrier, peer: PeerId | None, *, initiator: bool
    ) -> MuxedConnection:
        """Secure a connection; `peer`: who must answer. Raises BadMessage, libp2p's errors."""
        if initiator:
            assert peer is not None
            session = await self._dial(carrier, ID.from_base58(peer))
        else:
            raw = RawConnection(cast(ReadWriteCloser, carrier), initiator=False)
            security = await _agree(raw, list(self._security))
            session = await self._security[security].secure_inbound(raw)
        assert isinstance(session, SecureSession)
        if peer is not None and session.get_remote_peer().to_base58() != peer:
            raise BadMessage(f"{session.get_remote_peer()} answers for {peer}")
        channel = SecureChannel(session, carrier, self._scratch)
        if initiator and self._is_closed:
            channel.propose(YAMUX)
        else:
            await _agree(channel, [YAMUX])
        return MuxedConnection(channel, session.get_remote_peer())

    async def _dial(self, carrier: Carrier, peer: ID) -> ISecureConn:
        if self._is_closed:
            ahead = RawConnection(cast(ReadWriteCloser, _Ahead(carrier, NOISE_AES)), initiator=True)
            return await self._security[NOISE_AES].secure_outbound(ahead, peer)
        raw = RawConnection(cast(ReadWriteCloser, carrier), initiator=True)
        return await self._security[await _agree(raw, list(self._security))].secure_outbound(
            raw, peer
        )


async def _agree(conn: RawConnection | SecureChannel, names: list[str]) -> str:
    async def is_known(name: str) -> bool:
        return name in names

    name = await (select(conn, names) if conn.is_initiator else accept(conn, is_known))
    if name is None:
        raise BadMessage(f"peer speaks none of {', '.join(names)}")
    return name


class FencedSwarm(Swarm):
    """Runs connections; `session` and `serve` are what the host does with one and its streams.

    is_closed: whom we dial is ours, so that nothing is negotiated back and forth.
    """

    def __init__(self, key_pair: KeyPair, gate: Gate, *, is_closed: bool) -> None:
        peer_id = ID.from_pubkey(key_pair.public_key)
        store = PeerStore()
        store.add_key_pair(peer_id, key_pair)
        self._handshakes = _Handshakes(key_pair, is_closed=is_closed)
        upgrader = TransportUpgrader({}, {})  # unused
        # Watermarks of 0: nothing is dialled or pruned by itself (auto-connector, pruner, health
        # monitor), which `run` does not start either.
        config = ConnectionConfig(min_connections=0, low_watermark=0)
        super().__init__(peer_id, store, upgrader, [], connection_config=config)
        self.gate = gate
        self.traffic = Traffic()
        self.accepted = self.refused = self.failed_handshakes = 0
        self.live: set[Connection] = set()
        self.session: Callable[[Connection], Awaitable[None]] = _no_session
        self.serve: Callable[[Connection, MuxedStream], Awaitable[None]] = _refuse
        self.reach: Callable[[ID], Awaitable[Connection]] = _no_dialler

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold connections until cancelled.

        Overridden: libp2p's runs under a service manager in which any task's exception ends the
        host (trap 1), and starts its auto-connector and pruner.
        """
        async with trio.open_nursery() as nursery:
            connections: trio.CancelScope = await nursery.start(self._hold)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(CLOSE_ALL_S, shield=True):
                    async with trio.open_nursery() as goodbyes:
                        for connection in self.live:
                            goodbyes.start_soon(connection.close)
                connections.cancel()

    async def _hold(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        # Shielded: when the host is cancelled, connections first send what is queued.
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as nursery:
                self.background_nursery = nursery
                self.event_background_nursery_created.set()
                task_status.started(scope)
                await trio.sleep_forever()

    async def serve_tcp(self, stream: trio.SocketStream) -> None:
        """One inbound TCP connection, from its first byte to its last. Never raises.

        In place of `_handle_inbound_connection`, which holds its slot until the host stops, so that
        a limit of N connections means N in the host's whole life (trap 3).
        """
        await self.serve_carrier(CountedTcp(stream, self.traffic))

    async def serve_carrier(self, carrier: Carrier) -> None:
        """One inbound connection, from its handshake to its end, on a socket or in a circuit (which
        counts for the relay's IP address). Closes the carrier. Never raises.
        """
        remote = carrier.get_remote_address()
        place = self.gate.enter(remote[0]) if remote else None
        if place is None:
            self.refused += 1
            await _close(carrier)
            return
        self.accepted += 1
        try:
            muxed = await self._upgrade(carrier, None, initiator=False)
            await self._run(Connection(muxed, self, carrier, place))
        except Exception as error:  # a stranger's bytes reach deep into libp2p and its libraries
            self.failed_handshakes += 1
            log.debug("handshake.failed from=%s error=%r", remote, error)
        finally:
            place.leave()
            await _close(carrier)

    async def secure(
        self, carrier: Carrier, peer: PeerId, *, initiator: bool = True
    ) -> MuxedConnection:
        """Do the handshake with a certain peer; closes the carrier if that fails.

        initiator: whether we are the dialler for Noise, admission and Yamux; of a punched socket's
        two ends one is not. `adopt` comes next. Raises PeerUnreachable.
        """
        try:
            return await self._upgrade(carrier, peer, initiator=initiator)
        except trio.Cancelled:
            await _close(carrier)
            raise
        except Exception as error:  # libp2p's many: not our peer, not libp2p, not in time
            await _close(carrier)
            reason = error if isinstance(error, ShoalError) else error.__cause__ or repr(error)
            raise PeerUnreachable(f"no handshake: {reason}") from error

    async def adopt(self, muxed: MuxedConnection, carrier: Carrier, place: Place) -> Connection:
        """Run a secured connection in the background: admission, streams, keep-alive, its end.

        place: of `gate.enter(None)`; it is left when the connection ends.
        """
        assert self.background_nursery is not None
        connection = Connection(muxed, self, carrier, place)
        await self.background_nursery.start(self._run_adopted, connection)
        return connection

    async def _run_adopted(
        self, connection: Connection, *, task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            await self._run(connection, task_status=task_status)
        except Exception:  # a bug, but one connection's only
            log.exception("connection.failed peer=%s", connection.peer)
        finally:
            connection.place.leave()
            await _close(connection.carrier)

    async def _run(
        self,
        connection: Connection,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await connection.run(self.session, self.serve, task_status=task_status)

    async def _upgrade(
        self, carrier: Carrier, peer: PeerId | None, *, initiator: bool
    ) -> MuxedConnection:
        with trio.fail_after(HANDSHAKE_S):
            return await self._handshakes.run(carrier, peer, initiator=initiator)

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """Reach a peer through the host's own dialler.

        Overridden: libp2p's tries one address per transport, waits 250 ms always, and bars a peer
        that failed once for 60 s (traps 4 and 5).
        """
        return [await self.reach(peer_id)]

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> Connection:
        """Never called: connections come in by `serve_carrier` and `adopt`."""
        raise NotImplementedError(f"add_conn of a {direction} {type(muxed_conn).__name__}")

    async def _handle_inbound_connection(
        self, read_write_closer: ReadWriteCloser, maddr: Multiaddr
    ) -> None:
        raise NotImplementedError("our listeners call serve_tcp")

    async def notify_disconnected(self, conn: INetConn) -> None:
        """Overridden: libp2p's also wakes its auto-connector."""
        await self._notify("disconnected", conn)

    async def close(self) -> None:
        """Nothing: the host cancels `run`. libp2p's closes one connection after the other."""


async def _close(carrier: Carrier) -> None:
    with trio.CancelScope(shield=True), contextlib.suppress(Exception):
        await carrier.close()


async def _no_session(_connection: Connection) -> None:
    return


async def _refuse(_connection: Connection, stream: MuxedStream) -> None:
    stream.drop()


async def _no_dialler(peer_id: ID) -> Connection:
    raise MuxedConnUnavailable(f"no way to {peer_id}")
