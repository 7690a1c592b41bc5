"""Where things are: 256-bit keys, the same space for peers and content, distance by XOR.

Source: Maymounkov and Mazières, "Kademlia", 2002.
"""

import functools
import hashlib
from typing import NewType

from wire.ids import PeerId

Key = NewType("Key", int)  # an integer, since distance is arithmetic; 32 bytes on the wire
KEY_BITS = 256
KEY_BYTES = KEY_BITS // 8


@functools.lru_cache(maxsize=16384)
def key_of_peer(peer: PeerId) -> Key:
    """Return where a peer is."""
    return key_of(peer.encode())


def key_of(content: bytes) -> Key:
    """Return where content with this name is."""
    return Key(int.from_bytes(hashlib.sha256(content).digest()))


def to_bytes(key: Key) -> bytes:
    """Return a key as it travels."""
    return key.to_bytes(KEY_BYTES)


def from_bytes(raw: bytes) -> Key:
    """Read a key of 32 bytes."""
    assert len(raw) == KEY_BYTES
    return Key(int.from_bytes(raw))


def distance(a: Key, b: Key) -> int:
    """XOR metric: symmetric, and exactly one key at each distance."""
    return a ^ b


def common_bits(a: Key, b: Key) -> int:
    """How many leading bits are equal: 256 for the same key."""
    return KEY_BITS - (a ^ b).bit_length()


def key_at(own: Key, bits_in_common: int, rest: int) -> Key:
    """Return a key that shares exactly `bits_in_common` leading bits with `own`.

    `rest` (any integer, such as a random one) picks the bits after that.
    """
    assert 0 <= bits_in_common < KEY_BITS
    free = KEY_BITS - bits_in_common - 1
    head = (own >> free) ^ 1
    return Key(head << free | rest & ((1 << free) - 1))
