"""The provider records that we hold for others, with a bound on each count. Pure.

A key with more providers than places keeps those whose rank is lowest: a hash of key and peer under
a secret of this process. So who stays depends neither on who came first nor on who comes most
often, and nobody can choose a peer ID that ranks well here. This holds against anybody with few
identities; a record is taken from its connected provider only, so each costs a connection. With n
of them to one honest provider, that one stays on a node with a chance of 64 in n + 1, and each key
is held by 20 nodes with other secrets.
"""

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

from dht.records import ProviderRecord, Signed
from wire.ids import PeerId

PER_KEY_MAX = 64  # providers of one key: more would not fit an answer, and nobody needs them
KEYS_MAX = 10_000  # keys we hold records for, about 20 MB; the one idle for longest goes first
PER_PEER_MAX = 2_000  # records that one peer may keep with us


@dataclass
class Providers:
    """key -> peer -> its record."""

    _by_key: OrderedDict[bytes, dict[PeerId, tuple[int, Signed]]] = field(
        default_factory=OrderedDict[bytes, dict[PeerId, tuple[int, Signed]]]
    )
    _by_peer: dict[PeerId, int] = field(default_factory=dict[PeerId, int])
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), compare=False)

    def store(self, record: ProviderRecord, signed: Signed, now_ms: int) -> bool:
        """Keep a checked record, if there is room and it is not older than the one we hold."""
        found = self._by_key.get(record.key, {})
        known = found.get(record.peer)
        if known is None:
            self._expire(record.key, now_ms)
            if self._by_peer.get(record.peer, 0) >= PER_PEER_MAX:
                return False
            if not self._has_place(record.key, record.peer):
                return False
            self._by_peer[record.peer] = self._by_peer.get(record.peer, 0) + 1
        elif known[0] > record.expires_ms:
            return False
        self._by_key.setdefault(record.key, {})[record.peer] = record.expires_ms, signed
        self._by_key.move_to_end(record.key)
        while len(self._by_key) > KEYS_MAX:
            self._forget(next(iter(self._by_key)))
        return True

    def get(self, key: bytes, now_ms: int) -> list[Signed]:
        """Return the live records of a key, those that live longest first."""
        self._expire(key, now_ms)
        records = self._by_key.get(key, {}).values()
        return [signed for _, signed in sorted(records, key=lambda one: -one[0])]

    def expire(self, now_ms: int) -> None:
        """Throw away everything that has expired. Cost: all records."""
        for key in list(self._by_key):
            self._expire(key, now_ms)

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    def _has_place(self, key: bytes, peer: PeerId) -> bool:
        """Tell whether a peer may come in; makes room if it ranks lower than one that is there."""
        found = self._by_key.get(key, {})
        if len(found) < PER_KEY_MAX:
            return True
        last = max(found, key=lambda one: self._rank(key, one))
        if self._rank(key, last) < self._rank(key, peer):
            return False
        del found[last]
        self._release(last)
        return True

    def _rank(self, key: bytes, peer: PeerId) -> bytes:
        return hashlib.blake2b(key + peer.encode(), key=self._secret, digest_size=16).digest()

    def _expire(self, key: bytes, now_ms: int) -> None:
        found = self._by_key.get(key, {})
        for peer in [peer for peer, (expires_ms, _) in found.items() if expires_ms <= now_ms]:
            del found[peer]
            self._release(peer)
        if key in self._by_key and not found:
            del self._by_key[key]

    def _forget(self, key: bytes) -> None:
        for peer in self._by_key.pop(key):
            self._release(peer)

    def _release(self, peer: PeerId) -> None:
        self._by_peer[peer] -= 1
        if not self._by_peer[peer]:
            del self._by_peer[peer]
