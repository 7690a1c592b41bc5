"""`/shoal/admit/1`: both sides prove that they know the swarm key, right after the handshake.

    dialler  -> Hello(nonce)
    listener -> Challenge(nonce, proof)
    dialler  -> Proof(proof)
    listener -> Welcome()

The dialler may use the connection once it has sent its proof: the listener has proved itself by
then, and admits it before it looks at what comes behind.

A proof is an HMAC-SHA256 with the swarm key over role, both peer IDs, both nonces and the Noise
handshake hash, so that it is worth nothing on another connection, in the other direction, or later.
Neither side learns anything of the key: it has 256 random bits.

An open swarm has no key: its diallers propose `/shoal/open/1` first, so that they never mistake a
closed swarm's node for one of theirs; other libp2p implementations, which speak neither, are
welcome there. DESIGN, section 9.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta

from wire.codec import Message, decode, encode
from wire.errors import PeerError
from wire.frames import FrameParser, pack
from wire.ids import PeerId

ADMIT = "/shoal/admit/1"
OPEN = "/shoal/open/1"
ADMIT_S = 5.0  # from the end of the handshake; four messages of 40 bytes
FRAME_MAX = 128  # bytes; the longest message has 71

Role = Literal["dialler", "listener"]
M = TypeVar("M", bound=Message)
_Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Hello(Message, frozen=True, tag="hello"):
    """The dialler begins."""

    nonce: _Bytes32


class Challenge(Message, frozen=True, tag="challenge"):
    """The listener proves itself and asks the same."""

    nonce: _Bytes32
    proof: _Bytes32


class Proof(Message, frozen=True, tag="proof"):
    """The dialler proves itself."""

    proof: _Bytes32


class Welcome(Message, frozen=True, tag="welcome"):
    """The listener has admitted the dialler."""


AdmitMessage = Hello | Challenge | Proof | Welcome
decoder = msgspec.msgpack.Decoder(AdmitMessage)


class NotAdmitted(PeerError):
    """The other side does not know our swarm key."""

    code = "not_admitted"


@dataclass(frozen=True)
class Binding:
    """What ties a proof to one connection."""

    dialler: PeerId
    listener: PeerId
    handshake_hash: bytes  # of Noise: both sides' ephemeral and static keys are in it


def prove(key: bytes, role: Role, binding: Binding, hello: bytes, challenge: bytes) -> bytes:
    """Return the proof of one role. Every part has a fixed length or a length in front."""
    parts = (
        role.encode(),
        binding.dialler.encode(),
        binding.listener.encode(),
        binding.handshake_hash,
        hello,
        challenge,
    )
    body = b"shoal/admit/1\0" + b"".join(len(part).to_bytes(2, "big") + part for part in parts)
    return hmac.new(key, body, hashlib.sha256).digest()


class _Stream(Protocol):
    async def read(self, max_bytes: int) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


async def admit_as_dialler(
    stream: _Stream, key: bytes, binding: Binding, *, on_proved: Callable[[], None]
) -> None:
    """Run the dialler's side, to the listener's welcome; `on_proved` is called before.

    Raises NotAdmitted, BadMessage, and what the stream raises.
    """
    frames = FrameParser(FRAME_MAX)
    nonce = secrets.token_bytes(32)
    await stream.write(pack(encode(Hello(nonce))))
    challenge = await _receive(stream, frames, Challenge)
    expected = prove(key, "listener", binding, nonce, challenge.nonce)
    if not hmac.compare_digest(challenge.proof, expected):
        raise NotAdmitted("the peer is of another swarm")
    proof = prove(key, "dialler", binding, nonce, challenge.nonce)
    await stream.write(pack(encode(Proof(proof))))
    on_proved()
    await _receive(stream, frames, Welcome)


async def admit_as_listener(stream: _Stream, key: bytes, binding: Binding) -> None:
    """Run the listener's side. Raises NotAdmitted, BadMessage, and what the stream raises.

    Its Welcome is for the caller to send (`welcome`), after it has let the peer in.
    """
    frames = FrameParser(FRAME_MAX)
    hello = await _receive(stream, frames, Hello)
    nonce = secrets.token_bytes(32)
    proof = prove(key, "listener", binding, hello.nonce, nonce)
    await stream.write(pack(encode(Challenge(nonce, proof))))
    answer = await _receive(stream, frames, Proof)
    expected = prove(key, "dialler", binding, hello.nonce, nonce)
    if not hmac.compare_digest(answer.proof, expected):
        raise NotAdmitted("the peer is of another swarm")


async def welcome(stream: _Stream) -> None:
    """Tell the dialler that it is in: it may use every protocol from now on."""
    await stream.write(pack(encode(Welcome())))


async def _receive(stream: _Stream, frames: FrameParser, expected: type[M]) -> M:
    found = list[memoryview]()
    while not found:
        data = await stream.read(FRAME_MAX)
        if not data:
            raise NotAdmitted("the peer hung up: it may be of another swarm")
        found = frames.feed(data)
    if len(found) > 1:
        raise NotAdmitted("the peer said more than it was asked")
    message = decode(found[0], decoder, FRAME_MAX)
    if not isinstance(message, expected):
        raise NotAdmitted(f"expected {expected.__name__}, got {type(message).__name__}")
    return message
