"""The record layer: what libp2p's own Noise session writes and reads, and nothing forged."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secure_session import SecureSession

from node.host.channel import SCRATCH_BYTES, AesNoiseTransport, SecureChannel
from node.host.records import PLAIN_MAX, RECORDS_PER_TURN, Opener, Sealer
from node.host.tcp import CountedTcp
from node.host.views import Traffic
from wire.errors import BadMessage

CIPHERS = [ChaCha20Poly1305, AESGCM]


def pair(cipher: type[ChaCha20Poly1305] | type[AESGCM]) -> tuple[Sealer, Opener]:
    key = bytes(range(32))
    return Sealer(cipher(key), 0), Opener(cipher(key), 0)


@pytest.mark.parametrize("cipher", CIPHERS)
@given(
    plains=st.lists(st.binary(max_size=300), max_size=6),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
)
def test_records_survive_any_cutting(
    cipher: type[AESGCM], plains: list[bytes], cuts: list[int]
) -> None:
    sealer, opener = pair(cipher)
    wire = b"".join(part for plain in plains for part in sealer.seal(plain))
    opened, held = list[bytes](), b""
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    for start, end in itertools.pairwise(edges):
        data = memoryview(held + wire[start:end])
        records, used = opener.open(data)
        opened += records
        held = bytes(data[used:])
    assert opened == plains
    assert held == b""


@pytest.mark.parametrize("cipher", CIPHERS)
def test_the_largest_record_has_the_largest_length(cipher: type[AESGCM]) -> None:
    sealer, opener = pair(cipher)
    length, sealed = sealer.seal(bytes(PLAIN_MAX))
    assert length == b"\xff\xff"
    assert opener.open(memoryview(length + sealed)) == ([bytes(PLAIN_MAX)], 65537)


Tampering = Callable[[list[bytes]], bytes]


def flip_a_bit(records: list[bytes]) -> bytes:
    return records[0][:-1] + bytes([records[0][-1] ^ 1]) + records[1]


def shorten(records: list[bytes]) -> bytes:
    size = len(records[0]) - 3
    return size.to_bytes(2, "big") + records[0][2 : 2 + size] + records[1]


def repeat(records: list[bytes]) -> bytes:
    return records[0] + records[0]


def swap(records: list[bytes]) -> bytes:
    return records[1] + records[0]


def lose(records: list[bytes]) -> bytes:
    return records[1]


def less_than_a_tag(_records: list[bytes]) -> bytes:
    return b"\x00\x05hello"


def nothing(_records: list[bytes]) -> bytes:
    return b"\x00\x00"


TAMPERINGS = [flip_a_bit, shorten, repeat, swap, lose, less_than_a_tag, nothing]


@pytest.mark.parametrize("tamper", TAMPERINGS)
@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_is_not_the_next_record_is_refused(cipher: type[AESGCM], tamper: Tampering) -> None:
    sealer, opener = pair(cipher)
    records = [b"".join(sealer.seal(b"one")), b"".join(sealer.seal(b"two"))]
    with pytest.raises(BadMessage):
        opener.open(memoryview(tamper(records)))


def test_nonces_are_never_used_twice_even_after_two_to_the_64_records() -> None:
    sealer = Sealer(AESGCM(bytes(32)), (1 << 64) - 1)
    sealer.seal(b"the last")
    with pytest.raises(OverflowError):
        sealer.seal(b"one too many")


@contextlib.asynccontextmanager
async def handshaken(
    transport: type[NoiseTransport], *, we_dial: bool
) -> AsyncIterator[tuple[SecureChannel, SecureSession, trio.SocketStream]]:
    """Our channel, and libp2p's session at the other end of a TCP connection."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    ends = [await trio.open_tcp_stream("127.0.0.1", port), await listener.accept()]
    ours, theirs = ends if we_dial else reversed(ends)
    keys = [create_new_key_pair(bytes([i]) * 32) for i in (1, 2)]
    peers = [ID.from_pubkey(key.public_key) for key in keys]
    secured = list[SecureSession]()

    async def secure(i: int, raw: RawConnection) -> None:
        noise = transport(keys[i], create_new_x25519_key_pair().private_key)
        if raw.is_initiator:
            session = await noise.secure_outbound(raw, peers[1 - i])
        else:
            session = await noise.secure_inbound(raw)
        assert isinstance(session, SecureSession)
        secured.append(session)

    tcp = CountedTcp(ours, Traffic())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(secure, 0, RawConnection(tcp, initiator=we_dial))
        reference = RawConnection(CountedTcp(theirs, Traffic()), initiator=not we_dial)
        nursery.start_soon(secure, 1, reference)
    secured.sort(key=lambda session: session.get_remote_peer() == peers[0])
    channel = SecureChannel(secured[0], tcp, bytearray(SCRATCH_BYTES))
    assert channel.get_remote_peer() == peers[1]
    try:
        with trio.fail_after(10):
            yield channel, secured[1], theirs
    finally:
        await channel.close()
        await theirs.aclose()
        await listener.aclose()


@pytest.mark.parametrize("we_dial", [True, False])
@pytest.mark.parametrize("transport", [NoiseTransport, AesNoiseTransport])
async def test_libp2ps_own_session_reads_and_writes_the_same(
    transport: type[NoiseTransport], we_dial: bool
) -> None:
    async with handshaken(transport, we_dial=we_dial) as (channel, session, _):
        for size in (1, 12, 65518, PLAIN_MAX):
            message = bytes([size % 251]) * size
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.write, message)
                assert await session.read(size) == message
                nursery.start_soon(session.write, message)
                assert b"".join(await channel.receive()) == message
        async with trio.open_nursery() as nursery:  # three records of libp2p's
            nursery.start_soon(session.write, bytes(150_000))
            received = b""
            while len(received) < 150_000:
                received += b"".join(await channel.receive())
        assert received == bytes(150_000)


async def test_both_ends_know_one_handshake_hash() -> None:
    async with handshaken(AesNoiseTransport, we_dial=True) as (channel, session, _):
        theirs = session.conn.noise_state.get_handshake_hash()  # type: ignore[attr-defined]
        assert channel.handshake_hash == theirs
        assert len(channel.handshake_hash) == 32


@pytest.mark.parametrize(
    "garbage", [b"\x00\x20" + bytes(32), b"\x00\x00", b"\xff\xff" + bytes(65535)]
)
async def test_a_forged_record_is_an_error_of_the_connection(garbage: bytes) -> None:
    async with handshaken(AesNoiseTransport, we_dial=True) as (channel, session, bare):
        await session.write(b"first")
        assert await channel.receive() == [b"first"]
        await bare.send_all(garbage)
        with pytest.raises(BadMessage, match="not authentic"):
            await channel.receive()


async def test_a_flood_of_tiny_records_is_opened_in_parts_and_whole() -> None:
    async with handshaken(AesNoiseTransport, we_dial=True) as (channel, session, bare):
        sealed = [session.conn.encrypt(b"%d" % n) for n in range(1000)]
        await bare.send_all(b"".join(len(part).to_bytes(2, "big") + part for part in sealed))
        received, parts = list[bytes](), 0
        while len(received) < 1000:
            part = await channel.receive()
            assert len(part) <= RECORDS_PER_TURN
            received += part
            parts += 1
        assert received == [b"%d" % n for n in range(1000)]
        assert parts >= 4
        await session.write(b"and on")
        assert await channel.receive() == [b"and on"]


async def test_a_record_cut_off_by_the_end_is_never_handed_on() -> None:
    async with handshaken(NoiseTransport, we_dial=False) as (channel, _, bare):
        await bare.send_all(b"\x01\x00half of it")
        await bare.aclose()
        with pytest.raises(ConnectionClosedError):
            await channel.receive()


async def test_a_socket_that_takes_a_part_gets_the_rest_in_order() -> None:
    async with handshaken(AesNoiseTransport, we_dial=True) as (channel, session, _):
        sent, blocked = 0, False
        while not blocked:  # until the kernel's buffers are full
            channel.seal([sent.to_bytes(4, "big"), bytes(60_000)])
            sent += 1
            blocked = not channel.send()
        channel.seal([sent.to_bytes(4, "big"), bytes(60_000)])  # behind the half that is left
        assert channel.unsent_bytes > 60_000
        assert not channel.send()

        async def send_the_rest() -> None:
            while not channel.send():
                with trio.move_on_after(0.0001):  # cancelled at any point, it goes on
                    await channel.wait_writable()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_the_rest)
            for number in range(sent + 1):
                assert await session.read(60_004) == number.to_bytes(4, "big") + bytes(60_000)
        assert channel.unsent_bytes == 0
