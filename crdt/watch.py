"""Watching keys: each watcher holds the set of keys that changed, so it never delays a writer."""

from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

CHANGED_MAX = 300_000  # keys that a watcher may have before it: more than a store holds at a time,
# but keys that come and go are never at an end


@dataclass(eq=False)
class Watcher:
    """Iterate over the keys that changed; a key that changed twice before it is read comes once.

    Who reads nothing while `CHANGED_MAX` keys change loses the oldest of them.
    """

    namespace: bytes
    prefix: str
    _changed: dict[str, None] = field(default_factory=dict[str, None])
    _wake: trio.Event = field(default_factory=trio.Event)

    def touch(self, key: str) -> None:
        """Note a change."""
        if len(self._changed) >= CHANGED_MAX and key not in self._changed:
            del self._changed[next(iter(self._changed))]
        self._changed[key] = None
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        await trio.lowlevel.checkpoint()
        while not self._changed:
            self._wake = trio.Event()
            await self._wake.wait()
        key = next(iter(self._changed))
        del self._changed[key]
        return key


@dataclass
class Watchers:
    """All who watch now."""

    _open: set[Watcher] = field(default_factory=set[Watcher])

    def touch(self, namespace: bytes, key: str) -> None:
        """Tell everybody whom it concerns."""
        for watcher in self._open:
            if watcher.namespace == namespace and key.startswith(watcher.prefix):
                watcher.touch(key)

    @contextmanager
    def open(self, namespace: bytes, prefix: str) -> Generator[Watcher]:
        """Watch from now until the block is left."""
        watcher = Watcher(namespace, prefix)
        self._open.add(watcher)
        try:
            yield watcher
        finally:
            self._open.remove(watcher)
