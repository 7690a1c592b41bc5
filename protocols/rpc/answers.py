"""Answers to calls with an idempotency key: a call that is made again is not done again.

A caller whose connection broke does not know whether its call was done. It makes it again with the
same key; if the first one was done, it gets that answer, and if it is still being done, it waits
for it. One that was cancelled (its line broke) was not done, and is done now.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import trio

from wire.errors import RemoteError, ShoalError
from wire.ids import PeerId

KEPT_MAX = 4096  # answers, of all peers
KEPT_OF_PEER_MAX = 512  # so that one peer cannot make us forget the others' answers
KEPT_BYTES = 64 * 1024  # of a larger answer we keep that it was given: it is not done again
AGE_S = 600.0  # a caller that tries again does it within seconds

Name = tuple[PeerId, str, bytes]  # who calls, which method, with which key


@dataclass
class _Answer:
    is_done: trio.Event = field(default_factory=trio.Event)
    at: float = 0.0
    body: bytes | None = None
    error: tuple[str, str] | None = None  # code and text: the exception would hold the request


class Answers:
    """What was answered to whom."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Name, _Answer] = OrderedDict()
        self._of_peer: dict[PeerId, OrderedDict[Name, None]] = {}  # the same, in the same order

    async def once(self, name: Name, work: Callable[[], Awaitable[bytes]]) -> tuple[bytes, bool]:
        """Do the work, or return what came of it before (True). Raises its ShoalError again."""
        while (found := self._kept.get(name)) is not None:
            await found.is_done.wait()
            if found.error is not None:
                raise RemoteError(*found.error)
            if found.body is not None:
                return found.body, True
        self._make_room(name[0], trio.current_time())
        return await self._do(name, work), False

    async def _do(self, name: Name, work: Callable[[], Awaitable[bytes]]) -> bytes:
        answer = self._kept[name] = _Answer(at=trio.current_time())
        self._of_peer.setdefault(name[0], OrderedDict())[name] = None
        try:
            body = await work()
            if len(body) <= KEPT_BYTES:
                answer.body = body
            else:
                answer.error = ("answer_lost", f"it was done; its {len(body)} B were not kept")
            return body
        except ShoalError as error:
            answer.error = (error.code, str(error))
            raise
        finally:
            answer.is_done.set()
            if answer.body is None and answer.error is None:
                self._forget(name)

    def _make_room(self, peer: PeerId, now: float) -> None:
        """Forget what is old, and the oldest of a peer, or of all, that have as many as may be."""
        while self._kept and self._kept[next(iter(self._kept))].at <= now - AGE_S:
            if not self._drop_first(self._kept):
                break
        own = self._of_peer.get(peer, OrderedDict[Name, None]())
        if len(own) >= KEPT_OF_PEER_MAX:
            self._drop_first(own)
        if len(self._kept) >= KEPT_MAX:
            self._drop_first(self._kept)

    def _drop_first(self, names: Iterable[Name]) -> bool:
        """Forget the first that is done; false if none is."""
        name = next((name for name in names if self._kept[name].is_done.is_set()), None)
        if name is not None:
            self._forget(name)
        return name is not None

    def _forget(self, name: Name) -> None:
        """Forget an answer."""
        del self._kept[name]
        own = self._of_peer[name[0]]
        del own[name]
        if not own:
            del self._of_peer[name[0]]
