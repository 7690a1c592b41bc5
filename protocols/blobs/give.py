"""The serving side: gives what the store has to any member that asks.

What one peer can make us hold is bounded: questions by `QUEUE_MAX`, chunks in memory by
`CHUNKS_OF_PEER`. Chunks are read and hashed on a thread while the one before is being sent.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from protocols.blobs.files import BlobFile
from protocols.blobs.machine import full, members, to_bits
from protocols.blobs.progress import Counters
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import (
    GAINED_MAX,
    GET,
    OBJECT,
    QUEUE_MAX,
    WHO,
    Ask,
    Cancel,
    Chunk,
    Cid,
    Gained,
    Get,
    Have,
    Here,
    Missing,
    Object,
    Tell,
    Want,
    Who,
    parse_cid,
)
from wire.errors import BadMessage, DeadlineExceeded, NotFound, ShoalError, UsageError
from wire.faults import OnFailure
from wire.ids import PeerId
from wire.ports import Call, OffLoop, Rpc

FIRST_WAIT_S = 10.0  # for the word that says which blob a stream is about
IDLE_S = 120.0  # without a question; the fetcher opens another stream when it has one
SEND_WAIT_S = 60.0  # for a peer to take a chunk: 17 KB/s
NEWS_INTERVAL_S = 0.5  # between two words about chunks that have come meanwhile
BURST_S = 0.25  # of a rate that may be made up for: a pause of ours is not to cost it
CHUNKS_OF_PEER = 8  # in memory for one peer, whatever it asks for


class Pace:
    """Spreads what is sent so that a rate is kept; 0 is no limit."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = -math.inf  # when the link is free again

    async def wait(self, size_bytes: int) -> None:
        """Wait until so much may be sent."""
        if not self._bytes_per_s:
            return
        begin_s = max(trio.current_time() - BURST_S, self._free_s)
        self._free_s = begin_s + size_bytes / self._bytes_per_s
        await trio.sleep_until(begin_s)


class Giving:
    """Answers `blobs.who`, `blobs.object` and `blobs.get`."""

    def __init__(
        self,
        rpc: Rpc,
        store: BlobStore,
        *,
        off_loop: OffLoop,
        counters: Counters,
        upload_bytes_per_s: float = 0.0,
    ) -> None:
        self._store, self._off_loop, self.counters = store, off_loop, counters
        self.pace = Pace(upload_bytes_per_s)
        self._chunks: Counter[PeerId] = Counter()  # in memory
        self._room = trio.lowlevel.ParkingLot()
        rpc.serve(WHO, self._who)
        rpc.serve(OBJECT, self._object)
        rpc.serve_stream(GET, self._give)

    async def _who(self, _: PeerId, who: Who) -> Here:
        cid = _cid(who.cid)
        return Here(*await self._off_loop(partial(self._store.chunks_here, cid)))

    async def _object(self, peer: PeerId, who: Who) -> Object:
        cid = _cid(who.cid)
        data = await self._off_loop(partial(self._store.object, cid))
        await self._off_loop(partial(self._store.touch, cid))
        await self.pace.wait(len(data))
        self.counters.bytes_out += len(data)
        return Object(data)

    async def _give(self, call: Call[Tell, Ask]) -> None:
        cid = await _first(call)
        file = await self._off_loop(partial(self._store.acquire, cid))
        try:
            await self._off_loop(partial(self._store.touch, cid))
            await _Conversation(self, call, file).run()
        finally:
            with trio.CancelScope(shield=True):
                await self._off_loop(partial(self._store.release, file))

    async def read(self, peer: PeerId, file: BlobFile, index: int) -> Chunk | Missing:
        """Read a chunk once there is room for it; `sent` gives the room back."""
        while self._chunks[peer] >= CHUNKS_OF_PEER:
            await self._room.park()
        self._chunks[peer] += 1
        with OnFailure(partial(self.sent, peer)):
            try:
                return Chunk(index, await self._off_loop(partial(file.chunk, index)))
            except NotFound:
                return Missing(index)

    def sent(self, peer: PeerId) -> None:
        """A chunk is not in memory any more."""
        self._chunks[peer] -= 1
        if not self._chunks[peer]:
            del self._chunks[peer]
        self._room.unpark_all()


class _Conversation:
    """One stream: what was asked and not answered yet."""

    def __init__(self, giving: Giving, call: Call[Tell, Ask], file: BlobFile) -> None:
        self._giving, self._call, self._file = giving, call, file
        self._queue: dict[int, None] = {}  # in the order of the questions
        self._asked = trio.Event()

    async def run(self) -> None:
        """Answer until the fetcher is done. Raises BadMessage, DeadlineExceeded."""
        file = self._file
        is_whole = file.is_whole
        told = full(file.layout.count) if is_whole else file.have
        bits = b"" if is_whole else to_bits(told) or b"\0"
        await self._call.send(Tell(Have(bits)))
        failure: ShoalError | None = None
        ready, to_send = trio.open_memory_channel[Chunk | Missing](1)  # full: wait
        parts: list[Callable[[], Awaitable[None]]] = [
            self._listen,
            partial(self._read, ready),
            partial(self._send, to_send),
        ]
        if not is_whole:
            parts.append(partial(self._tell_news, told))

        async def play(part: Callable[[], Awaitable[None]]) -> None:
            nonlocal failure
            try:
                await part()
            except ShoalError as error:  # carried out of the nursery, which would wrap it
                failure = failure or error
            if failure is not None or part == self._listen:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for part in parts:
                nursery.start_soon(play, part)
        if failure is not None:
            raise failure

    async def _listen(self) -> None:
        while True:
            with trio.move_on_after(IDLE_S):
                try:
                    ask = await self._call.receive()
                except trio.EndOfChannel:
                    return
                self._take(ask)
                continue
            if not self._queue:
                return

    def _take(self, ask: Ask) -> None:
        count = self._file.layout.count
        match ask.what:
            case Get(first, many):
                if first + many > count or len(self._queue) + many > QUEUE_MAX:
                    raise BadMessage(f"asked for chunks {first} to {first + many} of {count}")
                self._queue.update(dict.fromkeys(range(first, first + many)))
                self._asked.set()
            case Cancel(index):
                self._queue.pop(index, None)
            case Want():
                raise BadMessage("Want came twice")

    async def _read(self, ready: trio.MemorySendChannel[Chunk | Missing]) -> None:
        while True:
            while not self._queue:
                self._asked = trio.Event()
                await self._asked.wait()
            index = next(iter(self._queue))
            del self._queue[index]
            piece = await self._giving.read(self._call.peer, self._file, index)
            with OnFailure(partial(self._giving.sent, self._call.peer)):
                await ready.send(piece)

    async def _send(self, to_send: trio.MemoryReceiveChannel[Chunk | Missing]) -> None:
        giving, peer = self._giving, self._call.peer
        try:
            async for piece in to_send:
                size_bytes = len(piece.data) if isinstance(piece, Chunk) else 0
                try:
                    await giving.pace.wait(size_bytes)
                    with trio.move_on_after(SEND_WAIT_S) as sending:
                        await self._call.send(Tell(piece))
                finally:
                    giving.sent(peer)
                if sending.cancelled_caught:
                    raise DeadlineExceeded(f"{peer} took no chunk in {SEND_WAIT_S:g} s")
                giving.counters.bytes_out += size_bytes
        finally:
            while True:  # what was read and is not going to be sent
                try:
                    to_send.receive_nowait()
                except (trio.WouldBlock, trio.EndOfChannel):
                    break
                giving.sent(peer)

    async def _tell_news(self, told: int) -> None:
        while told != full(self._file.layout.count):
            await trio.sleep(NEWS_INTERVAL_S)
            news = list(members(self._file.have & ~told))[:GAINED_MAX]
            if news:
                await self._call.send(Tell(Gained(news)))
                told |= sum(1 << index for index in news)


async def _first(call: Call[Tell, Ask]) -> Cid:
    with trio.move_on_after(FIRST_WAIT_S):
        try:
            ask = await call.receive()
        except trio.EndOfChannel:
            raise BadMessage("the stream ended before it began") from None
        if not isinstance(ask.what, Want):
            raise BadMessage(f"{type(ask.what).__name__} where Want belongs")
        return _cid(ask.what.cid)
    raise DeadlineExceeded(f"no question within {FIRST_WAIT_S:g} s")


def _cid(text: str) -> Cid:
    try:
        return parse_cid(text)
    except UsageError as error:
        raise BadMessage(str(error)) from error
