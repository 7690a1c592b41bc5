"""Answers to calls with an idempotency key: a call that is made again is not done again.

A caller whose connection broke does not know whether its call was done. It makes it again with the
same key; if the first one was done, it gets that answer, and if it is still being done, it waits
for it. One that was cancelled (its line broke) was not done, and is done now.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from wire.errors import ShoalError
from wire.ids import PeerId

KEPT_MAX = 4096  # answers, of all peers
KEPT_OF_PEER_MAX = 512  # so that one peer cannot make us forget the others' answers
KEPT_BYTES = 64 * 1024  # a larger answer is not kept: such a method is better made repeatable
AGE_S = 600.0  # a caller that tries again does it within seconds

Name = tuple[PeerId, str, bytes]  # who calls, which method, with which key


@dataclass
class _Answer:
    is_done: trio.Event = field(default_factory=trio.Event)
    at: float = 0.0
    body: bytes | None = None
    error: ShoalError | None = None


class Answers:
    """What was answered to whom."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Name, _Answer] = OrderedDict()

    async def once(self, name: Name, work: Callable[[], Awaitable[bytes]]) -> tuple[bytes, bool]:
        """Do the work, or return what came of it before (True). Raises its ShoalError again."""
        self._drop_old(trio.current_time())
        while (found := self._kept.get(name)) is not None:
            await found.is_done.wait()
            if found.error is not None:
                raise found.error
            if found.body is not None:
                return found.body, True
        return await self._do(name, work), False

    async def _do(self, name: Name, work: Callable[[], Awaitable[bytes]]) -> bytes:
        answer = self._kept[name] = _Answer(at=trio.current_time())
        try:
            body = await work()
            if len(body) <= KEPT_BYTES:
                answer.body = body
            return body
        except ShoalError as error:
            answer.error = error
            raise
        finally:
            if answer.body is None and answer.error is None:
                del self._kept[name]
            answer.is_done.set()

    def _drop_old(self, now: float) -> None:
        while self._kept:
            name, answer = next(iter(self._kept.items()))
            if answer.at > now - AGE_S and len(self._kept) < KEPT_MAX:
                return
            if not answer.is_done.is_set():
                self._kept.move_to_end(name)
                return
            del self._kept[name]
