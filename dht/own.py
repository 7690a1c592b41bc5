"""What we say ourselves, signed: where we are, what we have, and our values.

It is the `dht.node.Author` of a real node; the simulator has one without signatures.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from dht.messages import Contact, Provision, Value
from dht.records import LIFE_MAX_MS, seal_peer, seal_provision
from dht.values import HEAD, MULTI, head_name, seal_head, seal_multi
from wire.errors import UsageError
from wire.ids import Signer

HALF_LIFE_MS = LIFE_MAX_MS // 2  # our values are stored again after this: one republishing may fail
RECORD_AGE_MS = 3_600_000  # our own peer record is signed anew after this
RETRY_MS = 60_000  # until a value that nobody took is due again, doubled each time; a store
RETRY_MAX_MS = 3_600_000  # takes 30 s at most
PUBLISHED_MAX = 1000  # values: others keep no more of one author


class Own:
    """Our records. Times are Unix times in ms, passed in."""

    def __init__(self, signer: Signer, addresses: Callable[[], Sequence[str]]) -> None:
        """`addresses` are asked with every message: they must be at hand."""
        self.peer = signer.peer
        self._signer, self._addresses = signer, addresses
        self._contact: Contact | None = None
        self._said = list[str]()  # the addresses as they were when we signed
        self._sealed: dict[bytes, Provision] = {}
        self._values: dict[bytes, Value] = {}
        self._due_ms: dict[bytes, int] = {}  # when each value has to be stored (again)
        self._tries: dict[bytes, int] = {}  # in vain, since it was stored last
        self._last_seq = 0

    def contact(self, wall_ms: int) -> Contact:
        """Our own record, signed anew when our addresses change, or it gets old."""
        mine = self._contact
        addrs = [one.removesuffix(f"/p2p/{self.peer}") for one in self._addresses()]
        if mine is None or abs(wall_ms - mine.issued_ms) > RECORD_AGE_MS or addrs != self._said:
            seq = max(wall_ms, mine.seq + 1 if mine is not None else 0)
            self._contact = mine = seal_peer(self._signer, addrs, seq=seq, now_ms=wall_ms)
            self._said = addrs
        return mine

    # --- provider records ------------------------------------------------------------------------

    def provision(self, name: bytes, wall_ms: int) -> Provision:
        """Return our provider record of a name, living as long as may be, and where we are.

        Cost: 40 µs, if it is not prepared.
        """
        return replace(self._sealed_of(name, wall_ms), addrs=self.contact(wall_ms).addrs)

    def _sealed_of(self, name: bytes, wall_ms: int) -> Provision:
        made = self._sealed.get(name)
        if made is not None and made.expires_ms - wall_ms > LIFE_MAX_MS - RECORD_AGE_MS:
            return made
        return seal_provision(self._signer, name, expires_ms=wall_ms + LIFE_MAX_MS)

    def prepare(self, names: Iterable[bytes], wall_ms: int) -> None:
        """Seal many records before they are needed: on a thread, a part at a time."""
        for name in names:
            self._sealed[name] = self._sealed_of(name, wall_ms)

    def drop_prepared(self, names: Iterable[bytes]) -> None:
        """They have been sent."""
        for name in names:
            self._sealed.pop(name, None)

    # --- values ----------------------------------------------------------------------------------

    def head(self, name: str, data: bytes, wall_ms: int) -> Value:
        """Make our newest `/shoal/head/US/NAME`. Raises UsageError."""
        seq = self._next_seq(wall_ms)
        return self._keep(
            seal_head(self._signer, name, data, seq=seq, expires_ms=wall_ms + LIFE_MAX_MS), wall_ms
        )

    def multi(self, name: str, data: bytes, wall_ms: int) -> Value:
        """Make our newest value of `/shoal/multi/NAME`. Raises UsageError."""
        seq = self._next_seq(wall_ms)
        return self._keep(
            seal_multi(self._signer, name, data, seq=seq, expires_ms=wall_ms + LIFE_MAX_MS), wall_ms
        )

    def adopt(self, values: Iterable[Value]) -> None:
        """Take up our values of before a restart; they are due at once."""
        for value in values:
            if value.author == self.peer and value.name not in self._values:
                self._values[value.name] = value
                self._due_ms[value.name] = 0
            self._last_seq = max(self._last_seq, value.seq if value.author == self.peer else 0)

    def forget(self, name: bytes) -> None:
        """Do not store our value of a name again."""
        self._values.pop(name, None)
        self._due_ms.pop(name, None)
        self._tries.pop(name, None)

    def values(self) -> list[Value]:
        """Those that we republish."""
        return list(self._values.values())

    def due(self, wall_ms: int) -> list[bytes]:
        """Names of the values that have to be stored again."""
        return [name for name, at_ms in self._due_ms.items() if at_ms <= wall_ms]

    def again(self, name: bytes, wall_ms: int) -> Value | None:
        """Sign our value of a name anew, to be stored again; None if it was forgotten meanwhile."""
        value = self._values.get(name)
        if value is None:
            return None
        if name.startswith(HEAD):
            return self.head(name[len(head_name(self.peer, "")) :].decode(), value.data, wall_ms)
        return self.multi(name[len(MULTI) :].decode(), value.data, wall_ms)

    def stored(self, name: bytes, wall_ms: int) -> None:
        """Somebody keeps our value: it is due at half-life."""
        if name in self._due_ms:
            self._due_ms[name] = wall_ms + HALF_LIFE_MS
            self._tries.pop(name, None)

    def _keep(self, value: Value, wall_ms: int) -> Value:
        if value.name not in self._values and len(self._values) >= PUBLISHED_MAX:
            raise UsageError(f"this node publishes {PUBLISHED_MAX} values already")
        self._values[value.name] = value
        tries = self._tries.get(value.name, 0)
        self._tries[value.name] = tries + 1
        self._due_ms[value.name] = wall_ms + min(RETRY_MS << tries, RETRY_MAX_MS)
        return value

    def _next_seq(self, wall_ms: int) -> int:
        self._last_seq = max(wall_ms, self._last_seq + 1)
        return self._last_seq
