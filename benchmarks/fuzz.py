"""Hostile frames against every decoder that a peer's bytes reach, as a child that answers orders.

Valid frames of each protocol are mutated (seeded, so that a crash can be repeated) and given to the
decoder that the daemon uses. Anything but an answer or a PeerError is a crash.
"""

import gc
import random
import time
from pathlib import Path

from msgspec import inspect

from benchmarks import fuzz_store
from benchmarks.fuzz_messages import Messages, Target, examples, mutate
from benchmarks.orders import Answer, answer_orders, say
from wire.errors import PeerError

CRASHES_KEPT = 3


def rpc() -> Target:
    """The frames of a line, both ways, and what a call keeps of their pieces."""
    from protocols.rpc import wire
    from protocols.rpc.machine import Budget, Incoming
    from wire import codec, frames

    decoders = (wire.server_decoder, wire.caller_decoder)
    good = [
        bytes([side]) + frames.pack(codec.encode(one))
        for side, type_ in enumerate((wire.ToServer, wire.ToCaller))
        for one in examples(inspect.multi_type_info([type_])[0])
    ]

    def take(frame: bytes) -> None:
        side = frame[0] & 1 if frame else 0
        for body in frames.FrameParser(wire.FRAME_MAX).feed(frame[1:]):
            message = codec.decode(body, decoders[side], wire.FRAME_MAX)
            if isinstance(message, wire.Part | wire.Data | wire.Reply):
                Incoming(1000, Budget(1000)).put(message)

    return Target(good, take)


def gossip() -> Target:
    """Protobuf frames of GossipSub."""
    from protocols.channels import wire

    message = wire.message(
        author=bytes(38), seqno=bytes(8), topic="topic", data=bytes(100), signature=bytes(64)
    )
    news = wire.Rpc(subscriptions=(wire.Subscription("topic", True),), messages=(message,))
    control = wire.Rpc(
        ihave=(wire.IHave("topic", (bytes(46),) * 3),),
        iwant=(bytes(46),) * 2,
        graft=("topic",),
        prune=(wire.Prune("topic", 60),),
        idontwant=(bytes(46),),
    )
    return Target([wire.encode(news), wire.encode(control)], wire.decode)


def blobs() -> Target:
    """Requests, answers and manifests."""
    messages = Messages("protocols.blobs.wire")
    return Target(messages.frames, messages.take)


def bulk() -> Target:
    """The calls that agree on transfers, and what a lane begins with and carries."""
    from protocols.bulk import wire

    messages = Messages("protocols.bulk.wire")
    hello = wire.hello(bytes(16), bytes(32))
    header = wire.pack_header(7, 1 << 20, 1 << 19)

    def take(frame: bytes) -> None:
        if frame[:1] == hello[:1]:
            wire.parse_hello(frame)
        elif len(frame) == wire.HEADER_BYTES:
            wire.unpack_header(frame)
        else:
            messages.take(frame)

    return Target([hello, header, *messages.frames], take)


def yamux() -> Target:
    """Frames of the muxer, through a fresh reader each."""
    from node.host import yamux_frames as frames

    good = [
        frames.pack(kind, flags, 5, length) + bytes(length if kind == frames.DATA else 0)
        for kind in range(4)
        for flags in (0, frames.SYN, frames.FIN, frames.RST)
        for length in (0, 20)
    ]
    return Target(good, lambda frame: frames.FrameReader().feed(frame))


def noise() -> Target:
    """Encrypted records of a connection, the first of each a fresh one's."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from node.host.records import Opener, Sealer

    cipher = AESGCM(bytes(32))
    good = [b"".join(Sealer(cipher, 0).seal(bytes(size))) for size in (0, 12, 200)]
    return Target(good, lambda frame: Opener(cipher, 0).open(memoryview(frame)))


def admission() -> Target:
    """What proves that a stranger belongs to the swarm."""
    from node.host import admission as wire
    from wire import codec

    nonce = bytes(32)
    messages = (wire.Hello(nonce), wire.Challenge(nonce, nonce), wire.Proof(nonce), wire.Welcome())
    return Target(
        [codec.encode(message) for message in messages],
        lambda frame: codec.decode(frame, wire.decoder, wire.FRAME_MAX),
    )


TARGETS = (rpc, gossip, blobs, bulk, yamux, noise, admission, *fuzz_store.TARGETS)


def fuzz(protocol: str, frames: int, seed: int) -> Answer:
    """Give one protocol's decoder so many frames."""
    target = next(make for make in TARGETS if make.__name__ == protocol)()
    random_ = random.Random(seed)
    for frame in target.frames:
        target.take(frame)  # what is right must be taken, or nothing below means anything
    crashes, refused = list[str](), 0
    gc.collect()
    before_mb, began = _rss_mb(), time.perf_counter()
    for _ in range(frames):
        frame = mutate(random_, random_.choice(target.frames))
        try:
            target.take(frame)
        except PeerError:
            refused += 1
        except Exception as error:
            crashes.append(f"{type(error).__name__}: {error} at {frame.hex()}"[:300])
    gc.collect()
    return {
        "crashes": len(crashes),
        "examples": crashes[:CRASHES_KEPT],
        "refused": refused,
        "grown_mb": _rss_mb() - before_mb,
        "seconds": time.perf_counter() - began,
    }


def _rss_mb() -> float:
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024 / 1e6


if __name__ == "__main__":
    say({})
    answer_orders({"fuzz": fuzz})
