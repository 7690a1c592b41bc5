"""The data of one attempt: a butterfly all-reduce over streams, one per member and shard owner.

Each member streams its encoded contribution to a shard to the shard's owner and gets the mean of
the shard back on the same stream. The owner sums in member order in float32, divides by the total
weight, encodes once; everybody, the owner too, decodes those same bytes, so all hold the same bits
whatever the codec. Nothing is applied here: the mean lies in a buffer of its own until COMMIT.

A fault of another member becomes a `Fault` and stops only the task that met it: the streams stay
open until the proposer has decided, or a healthy member's retreat would look like a second fault.
"""

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

import numpy as np
import trio

from protocols.modelsync.aggregate import weighted_mean
from protocols.modelsync.codecs import Vector, codec_named, decode_contribution
from protocols.modelsync.news import MEAN_WAIT_S, OPEN_S, PIECE_WAIT_S, Complete, Fault
from protocols.modelsync.shards import chunks, shard_range
from protocols.modelsync.wire import REDUCE, Piece, Prepare
from protocols.modelsync.work import Work
from wire.errors import BadMessage, PeerError, PeerUnreachable, ShoalError
from wire.ids import PeerId
from wire.ports import Call, Rpc

SLOT_CHUNKS = 2  # chunks of one contribution kept while others are slower; then it waits


class _Slot:
    """Decoded chunks of one member's contribution to our shard."""

    def __init__(self) -> None:
        # Bounded: a member ahead of the others waits.
        self.send, self.receive = trio.open_memory_channel[Vector](SLOT_CHUNKS)
        self.is_taken = False


class Butterfly:
    """One node's side of the data of one attempt. `news` gets one Complete, or Faults."""

    def __init__(
        self,
        prepare: Prepare,
        rpc: Rpc,
        contribution: Vector,
        work: Work,
        news: Callable[[Fault | Complete], None],
    ) -> None:
        self.prepare = prepare
        self.mean: Vector = np.zeros(prepare.elements, dtype=np.float32)
        self.bytes_in = 0  # payload of pieces, without frames and encryption
        self.bytes_out = 0
        self.shards: list[bytes] = []
        self._rpc = rpc
        self._contribution = contribution
        self._work = work
        self._news = news
        self._codec = codec_named(prepare.codec)
        me = prepare.members.index(rpc.peer)
        self._own = list(chunks(*shard_range(prepare.shards, me)))
        self._weights = dict(zip(prepare.members, prepare.weights, strict=True))
        self._slots = {m: _Slot() for m in prepare.members if m != rpc.peer}
        self._made: list[bytes] = []
        self._made_event = [trio.Event() for _ in self._own]
        self._hashes: dict[PeerId, bytes] = {}
        self._scopes: set[trio.CancelScope] = set()

    async def run(self) -> None:
        """Move the data until done. Cancel it to abort; `close` also ends the owner's streams."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reduce)
            for owner in self._slots:
                nursery.start_soon(self._trade, owner)

    def close(self) -> None:
        """End the streams that others opened to us."""
        for scope in self._scopes:
            scope.cancel()

    async def serve(self, call: Call[Piece, Piece], first: Piece) -> None:
        """As owner: take one member's contribution to our shard, give back the mean."""
        slot = self._slots.get(call.peer)
        if slot is None or slot.is_taken:
            raise BadMessage("not a member of this attempt, or here already")
        slot.is_taken = True
        async with trio.open_nursery() as nursery:
            self._scopes.add(nursery.cancel_scope)
            nursery.start_soon(self._collect, call, first, slot)
            await self._give(call)
        self._scopes.discard(nursery.cancel_scope)
        if nursery.cancel_scope.cancelled_caught:
            raise _Aborted("the attempt is over")

    # -- as owner of a shard -----------------------------------------------------------------

    async def _collect(self, call: Call[Piece, Piece], first: Piece, slot: _Slot) -> None:
        if self._weights[call.peer] == 0:
            return
        with self._blame(call.peer):
            piece = first
            for index, (start, stop) in enumerate(self._own):
                if index:
                    piece = await call.receive()
                data = self._data_of(piece, index)
                vector = await self._work(
                    partial(decode_contribution, self._codec, data, stop - start)
                )
                await slot.send.send(vector)

    async def _give(self, call: Call[Piece, Piece]) -> None:
        with self._blame(call.peer):
            for index in range(len(self._own)):
                await self._made_event[index].wait()
                await call.send(self._piece(index, self._made[index]))

    async def _reduce(self) -> None:
        me, digest = self._rpc.peer, hashlib.sha256()
        for index, (start, stop) in enumerate(self._own):
            vectors: list[Vector] = []
            weights: list[float] = []
            for member, weight in self._weights.items():
                if weight == 0:
                    continue
                vector = self._contribution[start:stop]
                if member != me:
                    taken = await self._take(member)
                    if taken is None:
                        return
                    vector = taken
                vectors.append(vector)
                weights.append(weight)
            vectors = vectors or [np.zeros(stop - start, dtype=np.float32)]
            data, mean = await self._work(partial(self._average, vectors, weights or [0.0]))
            self.mean[start:stop] = mean
            digest.update(data)
            self._made.append(data)
            self._made_event[index].set()
        self._finish(me, digest.digest())

    async def _take(self, member: PeerId) -> Vector | None:
        with trio.move_on_after(PIECE_WAIT_S):
            return await self._slots[member].receive.receive()
        self._news(Fault(member, "silent"))
        return None

    def _average(self, vectors: list[Vector], weights: list[float]) -> tuple[bytes, Vector]:
        """Encode the mean, and decode it again: what we apply is what the others decode."""
        data = self._codec.encode(weighted_mean(vectors, weights))
        return data, self._codec.decode(data, len(vectors[0]))

    # -- as member of another's shard --------------------------------------------------------

    async def _trade(self, owner: PeerId) -> None:
        index = self.prepare.members.index(owner)
        parts = list(chunks(*shard_range(self.prepare.shards, index)))
        with self._blame(owner):
            async with (
                self._rpc.stream(owner, REDUCE, timeout_s=OPEN_S) as call,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._contribute, call, parts)
                with self._blame(owner):
                    self._finish(owner, await self._collect_mean(call, parts))

    async def _contribute(self, call: Call[Piece, Piece], parts: list[tuple[int, int]]) -> None:
        with self._blame(call.peer):
            if self._weights[self._rpc.peer] == 0 or not parts:
                await call.send(self._piece(0, b""))
            else:
                for index, (start, stop) in enumerate(parts):
                    values = self._contribution[start:stop]
                    data = await self._work(partial(self._codec.encode, values))
                    await call.send(self._piece(index, data))

    async def _collect_mean(self, call: Call[Piece, Piece], parts: list[tuple[int, int]]) -> bytes:
        digest = hashlib.sha256()
        for index, (start, stop) in enumerate(parts):
            with trio.fail_after(MEAN_WAIT_S):
                piece = await call.receive()
            data = self._data_of(piece, index)
            values = await self._work(partial(self._codec.decode, data, stop - start))
            self.mean[start:stop] = values
            digest.update(data)
        return digest.digest()

    # -- both --------------------------------------------------------------------------------

    def _piece(self, index: int, data: bytes) -> Piece:
        self.bytes_out += len(data)
        prepare = self.prepare
        return Piece(prepare.run, *prepare.ballot, index=index, data=data, lane=prepare.lane)

    def _data_of(self, piece: Piece, index: int) -> bytes:
        if piece.index != index:
            raise BadMessage(f"chunk {piece.index} where {index} was due")
        self.bytes_in += len(piece.data)
        return piece.data

    def _finish(self, owner: PeerId, digest: bytes) -> None:
        self._hashes[owner] = digest
        if len(self._hashes) == len(self.prepare.members):
            self.shards = [self._hashes[member] for member in self.prepare.members]
            self._news(Complete(self.shards))

    @contextmanager
    def _blame(self, peer: PeerId) -> Generator[None]:
        """Turn what goes wrong with a peer into a Fault; the task ends, nothing else does."""
        try:
            yield
        except trio.TooSlowError:
            self._news(Fault(peer, "silent"))
        except (PeerUnreachable, trio.EndOfChannel):
            self._news(Fault(peer, "broken"))
        except PeerError:
            self._news(Fault(peer, "bad"))
        except ShoalError as error:
            self._news(Fault(peer, "aborted" if error.code == _Aborted.code else "broken"))


class _Aborted(ShoalError):
    """The owner has left the attempt; no fault of anybody's on this stream."""

    code = "aborted"
