"""Attacks on a store by a member of its swarm: entries that no honest author writes, and requests
of syncs that no honest peer makes. Each is a list of messages; `REASONS` says how they end.
"""

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from benchmarks.agree_entries import Author, author
from benchmarks.agree_store import frames, push_frame
from benchmarks.agree_villain_sync import REQUESTS
from benchmarks.orders import Answer
from crdt.entry import COUNTER, GRANT, Counted, Record, Signed, seal
from crdt.namespace import Genesis, Grant, open_genesis
from wire import codec
from wire.clock import SystemClock
from wire.errors import ShoalError
from wire.ids import Signer

Ask = Callable[[bytes], Awaitable[bytes]]

FLOOD = 1_000  # new authors in one go, an entry each
RUN = 50  # entries of a chain with one that is wrong
AHEAD_MS = 600_000  # of a far future: twenty times what is allowed
OWNED = 40  # namespaces that one owner lists: more than anybody replicates


def _sign(body: bytes, signer: Signer) -> Signed:
    return Signed(body, signer.sign("crdt/entry/1", body))


class Villain:
    """Makes messages and throws them."""

    def __init__(self, ask: Ask, salt: bytes) -> None:
        self._ask = ask
        self.namespace = open_genesis("kv", salt).id
        self.directory = open_genesis("namespaces", salt).id

    async def attack(self, name: str, seconds: float) -> Answer:
        """Throw one kind of messages for so long, at least once; count the answers."""
        end, answers = time.monotonic() + seconds, Counter[str]()
        while not answers or time.monotonic() < end:
            for message in ATTACKS[name](self):
                try:
                    await self._ask(message)
                except ShoalError as error:
                    answers[error.code] += 1
                else:
                    answers["answered"] += 1
        return {"answers": answers}

    def author(self) -> Author:
        """Return somebody new."""
        return author(self.namespace, os.urandom(8).hex())

    # --- entries -------------------------------------------------------------------------------

    def forged(self) -> list[bytes]:
        """Entries whose signature is wrong, and one of them at the end of a good run."""
        writer, other = self.author(), self.author()
        run = [writer.write(f"run/{number}", number, _now()) for number in range(RUN)]
        bad = [Signed(record.signed.body, os.urandom(64)) for record in (run[0], run[-1])]
        in_anothers_name = _sign(run[0].signed.body, other.signer)
        return [
            push_frame(self.namespace, [bad[0]]),
            push_frame(self.namespace, [*(record.signed for record in run[:-1]), bad[1]]),
            push_frame(self.namespace, [in_anothers_name]),
        ]

    def not_canonical(self) -> list[bytes]:
        """The same entry in other bytes, signed: it would have a second name."""
        writer = self.author()
        body = writer.write("x", 1, _now()).signed.body
        assert body[1] == 1, "the version"
        longer = body[:1] + b"\xcc\x01" + body[2:]
        return [push_frame(self.namespace, [_sign(longer, writer.signer)])]

    def oversized(self) -> list[bytes]:
        """Bodies, values and messages over their limits."""
        writer = self.author()
        entry = writer.entry("x", _now(), value=bytes(3000), seq=1)
        long_key = writer.entry("x" * 300, _now(), value=b"\xc0", seq=1)
        bodies = [codec.encode(entry), codec.encode(long_key), bytes(5000)]
        small = [_sign(b"x", writer.signer)] * 10_000
        return [
            *(push_frame(self.namespace, [_sign(body, writer.signer)]) for body in bodies),
            push_frame(self.namespace, small),
        ]

    def replayed(self) -> list[bytes]:
        """A good entry, a hundred times."""
        return [push_frame(self.namespace, [self.author().write("replay", 1, _now()).signed])] * 100

    def misordered(self) -> list[bytes]:
        """A chain along which the clock falls, and one along which a counter does."""
        writer, counter = self.author(), self.author()
        chain = [writer.write(f"back/{number}", 1, _now() - number * 1000) for number in range(3)]
        values = [codec.encode(Counted(number, 0)) for number in (9, 3)]
        fell = [
            counter.write("count", 0, _now() + number, kind=COUNTER, value=one)
            for number, one in enumerate(values)
        ]
        return [push_frame(self.namespace, [record.signed]) for record in (*chain, *fell)]

    def far_future(self) -> list[bytes]:
        """Entries from far ahead, of many authors: more than are kept for later."""
        made = [self.author().write("ahead", 1, _now() + AHEAD_MS) for _ in range(RUN)]
        return frames(made)

    def forked(self) -> list[bytes]:
        """Two entries in one place of a chain."""
        writer = self.author()
        first = writer.write("fork/a", "a", _now())
        second = seal(msgspec.structs.replace(first.entry, key="fork/b"), writer.signer)
        return [
            push_frame(self.namespace, [first.signed]),
            push_frame(self.namespace, [second.signed]),
        ]

    def foreign_key(self) -> list[bytes]:
        """A key that belongs to another peer."""
        writer, other = self.author(), self.author()
        entry = writer.entry(f"about/@{other.signer.peer}", _now(), value=b"\xc0", seq=1)
        return [push_frame(self.namespace, [_sign(codec.encode(entry), writer.signer)])]

    def foreign_namespace(self) -> list[bytes]:
        """A namespace that nobody has announced."""
        writer = author(os.urandom(32), "nowhere")
        entry = writer.write("x", 1, _now()).signed
        return [push_frame(self.namespace, [entry]), push_frame(writer.namespace, [entry])]

    def self_granted(self) -> list[bytes]:
        """Writes in another's namespace: without a grant, and with one by the writer itself."""
        genesis, listed = self.listing()
        writer = author(genesis.id, os.urandom(8).hex())
        grant = Grant(writer.public)
        granted = writer.write("grant", 0, _now(), kind=GRANT, value=codec.encode(grant))
        written = writer.write("x", 1, _now(), grant=granted.id)
        return [push_frame(one.namespace, [one.signed]) for one in (listed, granted, written)]

    def authors(self) -> list[bytes]:
        """A flood of new authors, an entry each: nobody can tell them from newcomers."""
        return frames([self.author().write("flood", 1, _now()) for _ in range(FLOOD)])

    def namespaces(self) -> list[bytes]:
        """An owner who lists more namespaces than anybody replicates."""
        return frames([self.listing(f"n{number}", "greedy")[1] for number in range(OWNED)])

    def listing(self, name: str = "club", owner: str = "club") -> tuple[Genesis, Record]:
        """Return a namespace of somebody else's and its entry in the directory."""
        writer = author(self.directory, owner)
        writer.instance = os.urandom(8)
        genesis = Genesis(1, name, writer.public, "list")
        key = f"{name}/@{writer.signer.peer}"
        return genesis, writer.write(key, codec.encode(genesis), _now())


def _now() -> int:
    return SystemClock().wall_ms()


def _request(make: Callable[[bytes], list[bytes]]) -> Callable[[Villain], list[bytes]]:
    return lambda villain: make(villain.namespace)


ATTACKS: dict[str, Callable[[Villain], list[bytes]]] = {
    "forged": Villain.forged,
    "not_canonical": Villain.not_canonical,
    "oversized": Villain.oversized,
    "replayed": Villain.replayed,
    "misordered": Villain.misordered,
    "far_future": Villain.far_future,
    "forked": Villain.forked,
    "foreign_key": Villain.foreign_key,
    "foreign_namespace": Villain.foreign_namespace,
    "self_granted": Villain.self_granted,
    "authors": Villain.authors,
    "namespaces": Villain.namespaces,
    **{name: _request(make) for name, make in REQUESTS.items()},
}

# How the daemon counts each: reasons of shoal_store_refused_total, "proven" of shoal_store_faults.
# No reason: that is a request like any other, answered within its bounds.
REASONS: dict[str, set[str]] = {
    "forged": {"forged"},
    "not_canonical": {"forged"},
    "oversized": {"forged", "malformed"},
    "replayed": {"known"},
    "misordered": {"proven"},
    "far_future": {"future"},
    "forked": {"proven"},
    "foreign_key": {"forged"},
    "foreign_namespace": {"namespace"},
    "self_granted": {"policy", "no_grant"},
    "authors": set(),
    "namespaces": {"namespaces_full"},
    "overlapping": {"malformed"},
    "endless": set(),
    "wants": set(),
    "lawless": set(),
    "garbage": {"malformed"},
}
