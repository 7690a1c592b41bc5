"""Our own chains: what we write gets its place, its time and its signature here. No I/O.

An instance is random and lives only in memory: whatever happens to the file (restored, copied,
rolled back, half written), the next start goes on with chains that nobody has seen, so nothing on
a disk can make us write two entries with one number.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from crdt.clock import HybridClock
from crdt.entry import NO_LINK, BlobRef, Dot, Entry, Record, Signed, chain_of, finish, unseal
from crdt.namespace import Genesis
from wire import codec
from wire.errors import BadMessage, UsageError
from wire.ids import Signer, public_key_of

INSTANCE_BYTES = 8
_SOME_LINK = b"\xff" * 32  # stands for a predecessor whose link is not known yet
_LINK_MIN = 70  # where to look for it: before there are version, namespace and author
_NO_SIGNATURE = bytes(64)


@dataclass(frozen=True)
class Draft:
    """What an entry of ours shall say; who, when and where in the chain is added."""

    kind: int
    element: bytes = b""
    seen: tuple[Dot, ...] = ()
    value: bytes | None = None
    blob: BlobRef | None = None
    expires_ms: int = 0
    grant: bytes | None = None

    def under(self, grant: bytes | None) -> "Draft":
        """Return the same, allowed by a grant."""
        return replace(self, grant=grant)


# Given what is held at the key and counts, and the name of the chain that the entry will be in;
# None if there is nothing to write. Among what is held may be entries of ours that are not signed
# yet: all but their id and link is right. Raises ShoalError to refuse.
Build = Callable[[Sequence[Record], bytes], Draft | None]


@dataclass
class Chain:
    """One that we write. `seq` counts what is drafted, `link` follows what is signed."""

    instance: bytes
    id: bytes
    seq: int = 0
    hlc: int = 0
    link: bytes = NO_LINK


@dataclass
class Pending:
    """An entry of ours on its way: `shape` lacks its predecessor's link and its signature."""

    chain: Chain
    shape: Record


@dataclass
class OwnChains:
    """The chain and the clock of each namespace."""

    signer: Signer
    author: bytes = b""
    _chains: dict[bytes, Chain] = field(default_factory=dict[bytes, Chain])
    _clocks: dict[bytes, HybridClock] = field(default_factory=dict[bytes, HybridClock])

    def __post_init__(self) -> None:
        self.author = public_key_of(self.signer.peer)

    def observe(self, genesis: Genesis, id: bytes, hlc: int, now_ms: int) -> None:
        """Follow a stamp of a namespace."""
        self._clock(genesis, id).observe(hlc, now_ms)

    def draft(
        self,
        genesis: Genesis,
        namespace: bytes,
        key: str,
        build: Build,
        held: Sequence[Record],
        now_ms: int,
        counts: Callable[[Record], bool],
    ) -> Pending | None:
        """Prepare the next entry of a namespace, later than all that is held at its key; what it
        says depends on what of that counts.

        It has its number only once `take` is called. Raises ClockError, UsageError and what
        `build` raises.
        """
        clock = self._clock(genesis, namespace)
        chain = self._chain(namespace, clock)
        draft = build([record for record in held if counts(record)], chain.id)
        if draft is None:
            return None
        latest = max((record.hlc for record in held), default=0)
        seq = chain.seq + 1
        entry = Entry(
            1,
            namespace,
            self.author,
            chain.instance,
            seq,
            _SOME_LINK if chain.seq else NO_LINK,
            clock.tick(now_ms, after=latest),
            draft.kind,
            key,
            draft.element,
            draft.seen,
            draft.value,
            draft.blob,
            draft.expires_ms,
            draft.grant,
        )
        try:
            shape = unseal(Signed(codec.encode(entry), _NO_SIGNATURE))
        except (BadMessage, UnicodeEncodeError, OverflowError) as error:
            raise UsageError(f"the store cannot take {key!r}: {error}") from error
        return Pending(chain, shape)

    def take(self, pending: Pending) -> None:
        """Give an entry its number: it will be signed, and the next one follows it."""
        pending.chain.seq, pending.chain.hlc = pending.shape.seq, pending.shape.hlc

    def sign(self, pending: Sequence[Pending]) -> list[Record]:
        """Sign what was taken, in its order: the shapes become records. Blocking: 25 us each."""
        for one in pending:
            record, chain = one.shape, one.chain
            body = record.signed.body
            if record.seq > 1:
                at = body.index(_SOME_LINK, _LINK_MIN)
                body = body[:at] + chain.link + body[at + len(_SOME_LINK) :]
            finish(record, body, self.signer)
            chain.link = record.link
        return [one.shape for one in pending]

    def is_current(self, namespace: bytes, chain: bytes) -> bool:
        """True for a chain that we write now."""
        ours = self._chains.get(namespace)
        return ours is not None and ours.id == chain

    def restart(self) -> None:
        """Begin new chains: what became of the last entries of the present ones is not known."""
        self._chains.clear()

    def _chain(self, namespace: bytes, clock: HybridClock) -> Chain:
        chain = self._chains.get(namespace)
        # A chain whose last entry had to be later than somebody's far-ahead stamp would carry all
        # that follows so far ahead: it ends there.
        if chain is None or chain.hlc > clock.last:
            instance = os.urandom(INSTANCE_BYTES)
            chain = self._chains[namespace] = Chain(instance, chain_of(self.author, instance))
        return chain

    def _clock(self, genesis: Genesis, namespace: bytes) -> HybridClock:
        clock = self._clocks.get(namespace)
        if clock is None:
            clock = self._clocks[namespace] = HybridClock(genesis.rules.max_skew_ms)
        return clock
