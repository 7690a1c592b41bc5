"""Where things are: 256-bit keys, the same space for peers and content, distance by XOR.

As libp2p's kad-dht has it: the key of a peer is the SHA-256 of the bytes of its ID, that of a
record the SHA-256 of its name. Source: Maymounkov and Mazières, "Kademlia", 2002; libp2p's
kad-dht specification.
"""

import functools
import hashlib
from typing import NewType

import base58

from wire.ids import PeerId

Key = NewType("Key", int)  # an integer, since distance is arithmetic
KEY_BITS = 256
KEY_BYTES = KEY_BITS // 8
SPACE = 1 << KEY_BITS  # how many keys there are


@functools.lru_cache(maxsize=16384)
def key_of_peer(peer: PeerId) -> Key:
    """Return where a peer is. Cost: 10 µs, base58; contacts remember theirs."""
    return key_of(name_of_peer(peer))


def name_of_peer(peer: PeerId) -> bytes:
    """Return the bytes of a peer ID: by that name it is looked for. Cost: 10 µs."""
    return base58.b58decode(peer)


def key_of(name: bytes) -> Key:
    """Return where a record of this name is, or the peer whose ID has these bytes."""
    return Key(int.from_bytes(hashlib.sha256(name).digest()))


def distance(a: Key, b: Key) -> int:
    """XOR metric: symmetric, and exactly one key at each distance."""
    return a ^ b


def common_bits(a: Key, b: Key) -> int:
    """How many leading bits are equal: 256 for the same key."""
    return KEY_BITS - (a ^ b).bit_length()
