"""One secured connection under the muxer: libp2p's Noise handshake, then our own record layer.

`/noise` is everybody's. Between Shoal's own nodes `/shoal/noise-aes/1` is preferred: the same
handshake, payload and record format with AES-GCM, which takes half of ChaCha20-Poly1305's time on
every machine with AES instructions.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import trio
from libp2p.abc import ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.crypto.keys import PrivateKey, PublicKey
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.security.noise.patterns import IPattern, PatternXX
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secure_session import SecureSession
from multiaddr import Multiaddr

from node.host.carrier import Carrier
from node.host.negotiate import Awaited, proposal
from node.host.records import PLAIN_MAX, RECORDS_PER_TURN, after_handshake

NOISE_AES = TProtocol("/shoal/noise-aes/1")
RECEIVE_BYTES = 256 * 1024  # one system call brings at most so much: four of the largest records
SCRATCH_BYTES = RECEIVE_BYTES + 65536  # and before it the beginning of a record

# What a channel raises when it is over; a ValueError is what trio says of a socket closed before.
ENDS = (ConnectionClosedError, trio.ClosedResourceError, OSError, ValueError)


class AesNoiseTransport(NoiseTransport):
    """libp2p's Noise, with AES-GCM for ChaCha20-Poly1305."""

    def get_pattern(self) -> IPattern:
        """Return the XX handshake under the name of the other cipher."""
        pattern = super().get_pattern()
        assert isinstance(pattern, PatternXX)
        pattern.protocol_name = b"Noise_XX_25519_AESGCM_SHA256"
        return pattern


class Channel(Protocol):
    """What the muxer needs of a secured connection. ENDS and BadMessage mean its end."""

    is_initiator: bool

    async def receive(self) -> Sequence[bytes]:
        """Wait for plaintext and return it, record by record."""
        ...

    def seal(self, parts: Sequence[bytes | memoryview]) -> None:
        """Make one record of the parts, which must be written next: at most PLAIN_MAX bytes."""
        ...

    def send(self) -> bool:
        """Give the socket what it takes now; true if nothing is left."""
        ...

    async def wait_writable(self) -> None:
        """Wait until `send` gets further."""
        ...

    @property
    def unsent_bytes(self) -> int:
        """Of records that are sealed and not sent."""
        ...

    async def close(self) -> None:
        """Close the socket."""
        ...

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return IP address and port of the other end."""
        ...


class SecureChannel(ISecureConn):
    """A Channel over a carrier, after the handshake.

    scratch: received bytes stay in it for the length of one `receive` without a wait, so that all
    connections of a host share it and an idle one has no buffer.
    """

    def __init__(self, session: SecureSession, carrier: Carrier, scratch: bytearray) -> None:
        noise: Any = session.conn
        self.handshake_hash = bytes(noise.noise_state.get_handshake_hash())
        self.is_initiator = session.is_initiator
        self._session = session
        self._carrier = carrier
        self._sealer, self._opener = after_handshake(noise.noise_state)
        self._scratch = memoryview(scratch)
        self._cut = b""  # the beginning of a record, or all that is to be opened next turn
        self._has_more = False
        self._ready: list[bytes] = []  # plaintext that was received and not taken
        self._unsent: list[bytes | memoryview] = []
        self._awaited: Awaited | None = None
        self.unsent_bytes = 0
        self._open(self._put_first(carrier.take_buffered()))

    async def receive(self) -> Sequence[bytes]:
        """Wait for at least one whole record. Raises ConnectionClosedError, BadMessage."""
        while not self._ready:
            if self._has_more:
                await trio.lowlevel.checkpoint()
                size = self._put_first(self._cut)
            else:
                await self._carrier.wait_readable()
                size = self._put_first(self._cut)
                size += self._carrier.read_now(self._scratch[size:])
            self._open(size)
        ready, self._ready = self._ready, []
        return ready

    def _put_first(self, data: bytes) -> int:
        self._scratch[: len(data)] = data
        return len(data)

    def _open(self, size: int) -> None:
        records, used = self._opener.open(self._scratch[:size])
        self._has_more = len(records) == RECORDS_PER_TURN
        if self._awaited is not None:
            records = self._without_answer(self._awaited, records)
        self._ready += [plain for plain in records if plain]
        self._cut = bytes(self._scratch[used:size])

    def _without_answer(self, awaited: Awaited, records: list[bytes]) -> list[bytes]:
        rest = [bytes(awaited.cut_off(plain)) for plain in records]
        if not awaited.left_bytes:
            self._awaited = None
        return rest

    def propose(self, protocol: str) -> None:
        """Choose what the channel carries: said with what is sent first, its answer cut off from
        what is received.
        """
        self.seal([proposal(protocol)])
        self._awaited = Awaited(protocol)

    def seal(self, parts: Sequence[bytes | memoryview]) -> None:
        """Encrypt the parts as the next record; `send` sends it."""
        plain = b"".join(parts)
        assert len(plain) <= PLAIN_MAX, len(plain)
        length, sealed = self._sealer.seal(plain)
        self._unsent += (length, sealed)
        self.unsent_bytes += len(length) + len(sealed)

    def send(self) -> bool:
        """Write sealed records until the socket is full. Raises ConnectionClosedError."""
        if self._unsent:
            size = self._carrier.write_now(self._unsent)
            self.unsent_bytes -= size
            if self.unsent_bytes:
                self._drop_sent(size)
                return False
            self._unsent.clear()
        return True

    def _drop_sent(self, size: int) -> None:
        done = 0
        while size >= len(self._unsent[done]):
            size -= len(self._unsent[done])
            done += 1
        del self._unsent[:done]
        self._unsent[0] = memoryview(self._unsent[0])[size:]

    async def wait_writable(self) -> None:
        """Wait until the socket takes bytes again. Raises trio.ClosedResourceError."""
        await self._carrier.wait_writable()

    # as a plain byte stream, for the choice of a muxer

    async def read(self, n: int | None = None) -> bytes:
        """Return between 1 and `n` bytes."""
        data = b"".join(await self.receive())
        size = len(data) if n is None else n
        if size < len(data):
            self._ready.insert(0, data[size:])
        return data[:size]

    async def write(self, data: bytes) -> None:
        """Send all of a small message."""
        self.seal([data])
        while not self.send():
            await self.wait_writable()

    async def close(self) -> None:
        """Close the socket. Safe to repeat."""
        await self._carrier.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return IP address and port of the other end."""
        return self._carrier.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Return the address of the other end."""
        return self._session.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Return whether it is direct or relayed."""
        return self._session.get_connection_type()

    def get_local_peer(self) -> ID:
        """Return our peer ID."""
        return self._session.get_local_peer()

    def get_local_private_key(self) -> PrivateKey:
        """Return the key of our identity."""
        return self._session.get_local_private_key()

    def get_remote_peer(self) -> ID:
        """Return who is at the other end, as the handshake has proved."""
        return self._session.get_remote_peer()

    def get_remote_public_key(self) -> PublicKey:
        """Return the key of the other end."""
        return self._session.get_remote_public_key()
