"""Adoption: an attempt without sums, that spreads the result of an earlier one to all its members.

Who holds the result is done at once, and gives its encoded bytes to who asks; who does not asks one
member after the other, and checks the hashes that it gets against the result, and the bytes
against the hashes. A mix has no common result: who lacks its own keeps its vector as it is.
"""

import hashlib
from functools import partial

import numpy as np
import trio

from protocols.modelsync.codecs import MEAN_MAX, Vector, codec_named
from protocols.modelsync.links import blaming
from protocols.modelsync.news import MEAN_WAIT_S, OPEN_S, Fault, Held, extra_s
from protocols.modelsync.sealing import HASH_BYTES, all_parts
from protocols.modelsync.shards import chunks, shard_range
from protocols.modelsync.side import Side, Terms
from protocols.modelsync.wire import REDUCE, Bound, Piece, result_of
from wire.errors import BadMessage, NotFound, ShoalError
from wire.ids import PeerId
from wire.ports import Call

ASK_AGAIN_S = 0.25  # before who did not have it is asked again: it may have got it meanwhile
ADOPT_WAIT_S = 10.0  # for anybody to have more of it; then the proposer finds who claimed it


class Adoption(Side):
    """One member's side of an attempt that adopts a result."""

    def __init__(self, terms: Terms, adopt: Bound) -> None:
        super().__init__(terms)
        if sum(adopt.shards) != self.prepare.elements:
            raise BadMessage("a result of another size")
        self._adopt = adopt
        self._codec = codec_named(adopt.codec)
        self._is_mix = self.prepare.topology != "all"
        self._hashes: list[bytes] = []
        self._got: list[list[memoryview]] = [[] for _ in adopt.shards]  # chunks by shard
        self._result: Held | None = None
        self._patience, self._until = trio.CancelScope(), 0.0
        if terms.held is not None and result_of(terms.held.shards) == adopt.result:
            self._result = terms.held

    @property
    def held(self) -> Held:
        """The complete result."""
        assert self._result is not None, "it is not complete"
        return self._result

    async def run(self) -> None:
        """Get the result, if we have not got it. Cancel it to abort."""
        with self._patience:
            self._until = trio.current_time() + ADOPT_WAIT_S + extra_s(self.prepare)
            self._went_on()
            while self._result is None:
                await self._ask_all()
        if self._result is None:
            self._fault(Fault(self.prepare.proposer, "silent"))
            return
        self._complete(self._result.shards)

    async def serve(self, call: Call[Piece, Piece], first: Piece) -> None:
        """Give the hashes, then all chunks from the one that is asked for. Raises NotFound."""
        result = self._result
        if result is None:
            raise NotFound("that result is not here yet")
        async with self._serving(call) as link:
            await call.send(link.piece(0, b"".join(result.shards)))
            for index, data in enumerate(chunk for shard in result.data for chunk in shard):
                if index >= first.index:
                    await call.send(link.piece(index, bytes(data)))
        self._served.discard(call.peer)  # it may ask for the rest, if this broke

    def take(self, into: Vector, sent: Vector | None = None) -> None:
        """Put the result into `into`, and what others decoded of our contribution into `sent`."""
        if sent is not None:
            self._decode_ours(sent)
        held = self.held
        if held.mixed is not None:
            np.copyto(into, held.mixed)
            return
        parts = iter(all_parts(self._adopt.shards))
        for shard in held.data:
            for data in shard:
                start, stop = next(parts)
                self._codec.decode_into(data, into[start:stop], MEAN_MAX)

    def _decode_ours(self, sent: Vector) -> None:
        """Our contribution is still what it was in the attempt whose result this is."""
        weights = dict(zip(self._adopt.members, self._adopt.weights, strict=True))
        sent.fill(0)
        if weights.get(self._me, 0) > 0:
            for start, stop in all_parts(self._adopt.shards):
                data = self._codec.encode(self._terms.contribution[start:stop])
                self._codec.decode_into(data, sent[start:stop], MEAN_MAX)

    async def _ask_all(self) -> None:
        """Ask each other member once, from the one after us on."""
        me = self.prepare.members.index(self._me)
        members = self.prepare.members[me + 1 :] + self.prepare.members[:me]
        for peer in members:
            with blaming(peer, self._fault):
                try:
                    await self._ask(peer)
                except ShoalError as error:
                    if error.code != NotFound.code:
                        raise
            if self._result is not None:
                return
        await trio.sleep(ASK_AGAIN_S)

    async def _ask(self, peer: PeerId) -> None:
        """Get what is missing from one member."""
        parts = all_parts(self._adopt.shards)
        async with self._terms.rpc.stream(peer, REDUCE, timeout_s=OPEN_S) as call:
            done = sum(len(shard) for shard in self._got)
            prepare = self.prepare
            await call.send(
                Piece(prepare.run, *prepare.ballot, index=done, data=b"", lane=prepare.lane)
            )
            with trio.fail_after(MEAN_WAIT_S):
                self._read_hashes((await call.receive()).data)
            if self._is_mix:
                own = self._terms.contribution
                self._result = Held(prepare, self._hashes, [], own.copy())
                return
            await self._get(call, parts, done)
        self._result = Held(prepare, self._hashes, self._got)

    async def _get(self, call: Call[Piece, Piece], parts: list[tuple[int, int]], done: int) -> None:
        owners = [i for i, _ in enumerate(self._adopt.shards) for _ in self._chunks(i)]
        for index in range(done, len(parts)):
            with trio.fail_after(MEAN_WAIT_S):
                piece = await call.receive()
            if piece.index != index:
                raise BadMessage(f"chunk {piece.index} where {index} was due")
            owner = owners[index]
            self._traffic.taken[call.peer] += len(piece.data)
            start, stop = parts[index]
            await self._terms.work(partial(self._codec.refuse_bad, piece.data, stop - start))
            self._got[owner].append(memoryview(piece.data))
            self._went_on()
            if len(self._got[owner]) == len(self._chunks(owner)):
                await self._terms.work(partial(self._check, owner))

    def _went_on(self) -> None:
        self._patience.deadline = min(self._until, trio.current_time() + ADOPT_WAIT_S)

    def _chunks(self, owner: int) -> list[tuple[int, int]]:
        return list(chunks(*shard_range(self._adopt.shards, owner)))

    def _check(self, owner: int) -> None:
        """Forget a shard that is not what was signed. Raises BadMessage."""
        if hashlib.sha256(b"".join(self._got[owner])).digest() != self._hashes[owner]:
            self._got[owner] = []
            raise BadMessage("a shard that is not the result's")

    def _read_hashes(self, data: bytes) -> None:
        hashes = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
        if len(hashes) != len(self._adopt.shards) or result_of(hashes) != self._adopt.result:
            raise BadMessage("hashes that are not the result's")
        self._hashes = hashes
