"""Hostile bytes for the DHT's decoder: real messages of every kind, broken at random.

    python -m tests.soak.kad_bytes [1000000] [SEED]

prints one JSON line. Whatever comes, the decoder raises BadMessage or nothing.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

from dht import kad_pb2 as pb
from dht import wire
from dht.key import key_of_peer
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    FindNode,
    GetProviders,
    GetValue,
    Nodes,
    Ping,
    Pong,
    Providers,
    Provision,
    PutValue,
    Request,
    Stored,
    Values,
)
from dht.records import seal_peer, seal_provision
from dht.values import multi_name, pk_value, public_key_bytes, seal_multi
from wire.errors import BadMessage
from wire.ids import Signer

NOW_MS = 1_000_000
NAME = bytes.fromhex("1220") + bytes(range(32))
NASTY = [
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff\xff\xff\x0f",
    b"\x80" * 10,
    b"\x0b",
    b"\x0c",
]

SIGNERS = [Signer(bytes([number]) * 32) for number in range(1, 5)]
PEER = SIGNERS[0].peer


def contacts() -> tuple[Contact, ...]:
    sealed = [
        seal_peer(each, [f"/ip4/10.0.0.1/tcp/4001/p2p/{each.peer}"], seq=1, now_ms=NOW_MS)
        for each in SIGNERS
    ]
    addrs = ("/dns4/example.org/tcp/1", f"/ip6/::1/tcp/2/p2p/{PEER}/p2p-circuit")
    told = Contact(PEER, key_of_peer(PEER), addrs)
    return (*sealed, told)


def exchanges() -> list[tuple[Request, Answer]]:
    """A request of each kind, with an answer that has everything in it."""
    closer = contacts()
    provisions = tuple(seal_provision(each, NAME, expires_ms=NOW_MS + 1000) for each in SIGNERS)
    told = Provision(NAME, PEER, NOW_MS, addrs=closer[-1].addrs)
    many = [seal_multi(each, "runs", b"data", seq=1, expires_ms=NOW_MS) for each in SIGNERS]
    pk = pk_value(public_key_bytes(PEER))
    return [
        (Ping(), Pong()),
        (FindNode(NAME), Nodes(closer)),
        (FindNode(NAME), Stored(0, "too many requests")),
        (GetProviders(NAME), Providers((*provisions, told), closer)),
        (AddProviders(provisions), Stored(3, "no room")),
        (AddProviders((told,)), Stored(1)),
        (GetValue(multi_name("runs")), Values(tuple(many), closer)),
        (GetValue(pk.name), Values((pk,), ())),
        (PutValue(many[0]), Stored(1)),
        (PutValue(pk), Stored(0, "expired")),
    ]


def decoders() -> list[tuple[bytes, Callable[[bytes], object]]]:
    """A good message, and what reads it: each request, each answer."""
    own = contacts()[0]
    found = list[tuple[bytes, Callable[[bytes], object]]]()
    for request, answer in exchanges():
        found.append((wire.encode_request(request, own), read_request))
        found.append((wire.encode_answer(request, answer, own), reader_of(request)))
    return found


def read_request(frame: bytes) -> tuple[Request, Contact | None]:
    return wire.decode_request(frame, PEER, NOW_MS)


def reader_of(request: Request) -> Callable[[bytes], tuple[Answer, Contact | None]]:
    return lambda frame: wire.decode_answer(frame, request, PEER, NOW_MS, is_public=True)


def broken(frame: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return a message with up to four things wrong."""
    data = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 3:
            data[at:at] = rng.choice(NASTY)
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randint(1, 40))
        elif kind == 5:  # a part of another message
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at:at] = other[start : start + rng.randint(1, 400)]
        else:  # the same field many times
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + 60] * rng.randint(2, 40)
    return bytes(data)


def altered(frame: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return a message that is one still, with up to three fields that are broken."""
    message = pb.Message.FromString(frame)
    peers = [*message.closerPeers, *message.providerPeers]

    def worse(data: bytes) -> bytes:
        return broken(data, others, rng)

    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(9)
        lists = [each for each in (message.provisions, message.values) if each]
        if kind == 0:
            message.type = rng.randint(-1, 7)
        elif kind == 1:
            message.key = worse(message.key)
        elif kind == 2:
            message.sender = worse(message.sender)
        elif kind == 3 and message.record.value:
            message.record.value = worse(message.record.value)
        elif kind == 4:
            message.refusal, message.kept = rng.randbytes(20), rng.randrange(1 << 32)
        elif kind == 5 and lists:
            items = rng.choice(lists)
            items[rng.randrange(len(items))] = worse(rng.choice(items))
        elif kind == 6 and peers:
            peer = rng.choice(peers)
            peer.id = worse(peer.id)
        elif kind == 7 and peers:
            rng.choice(peers).addrs.append(worse(b"\x04\x0a\x00\x00\x01\x06\x0f\xa1"))
        elif peers:
            peer = rng.choice(peers)
            peer.sealed = worse(peer.sealed)
    return message.SerializeToString()


def inputs(count: int, seed: int) -> Iterator[tuple[bytes, Callable[[bytes], object]]]:
    """Yield broken messages, some nonsense, and who is to read them."""
    rng, good = random.Random(seed), decoders()
    frames = [frame for frame, _ in good]
    for _ in range(count):
        frame, read = rng.choice(good)
        kind = rng.random()
        if kind < 0.05:
            yield rng.randbytes(rng.randrange(400)), read
        elif kind < 0.4:
            yield broken(frame, frames, rng), read
        else:
            yield altered(frame, frames, rng), read


def fuzz(count: int, seed: int) -> Counter[str]:
    """Read so many inputs; count what came of them. Raises whatever is not BadMessage."""
    seen = Counter[str]()
    for frame, read in inputs(count, seed):
        try:
            read(frame)
        except BadMessage as error:
            seen[type(error).__name__] += 1
        else:
            seen["read"] += 1
    return seen


def main(count: int = 1_000_000, seed: int = 0) -> None:
    """Print what came of it."""
    began = time.perf_counter()
    seen = fuzz(count, seed)
    took_s = round(time.perf_counter() - began, 1)
    print(json.dumps({"inputs": count, "seed": seed, "took_s": took_s} | dict(seen)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
