"""A butterfly all-reduce: each member owns a shard, averages it for all, and gets the others'.

A member encodes its contribution chunk by chunk and sends each owner its shard's. The owner
aggregates **in member order** in float32, encodes the result once and sends it to all; everybody,
the owner too, decodes those same bytes, so all hold the same bits whatever the codec. Also our own
contribution counts as others would decode it: the result does not depend on who owns what.
"""

import hashlib
from functools import partial

import numpy as np
import trio

from protocols.modelsync.codecs import VALUE_MAX, Vector, is_within
from protocols.modelsync.links import CallLink, Link, blaming, chunk_wait_s, watch
from protocols.modelsync.news import MEAN_WAIT_S, OPEN_S, PIECE_WAIT_S, Fault, Held
from protocols.modelsync.parcels import Parcel, is_raw, raw_parcel
from protocols.modelsync.shards import CHUNK_ELEMENTS, chunks, shard_range
from protocols.modelsync.side import Side, Terms
from protocols.modelsync.vectors import MEAN_MAX, check_within
from protocols.modelsync.wire import REDUCE, Piece
from wire.errors import BadMessage
from wire.ids import PeerId
from wire.ports import Call

BATCH = 4  # chunks worked on in one go: a thread is held for some milliseconds, not more


class Butterfly(Side):
    """One member's side of an all-reduce."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        prepare, codec = self.prepare, self._codec
        self._is_raw = is_raw(codec)
        self._gives: dict[PeerId, Parcel] = {}  # our contribution, by the shard's owner
        self._means: dict[PeerId, Parcel] = {}  # by the shard's owner
        self._takes: dict[PeerId, Parcel] = {}  # others' contributions to our shard, and ours
        self._hashes: dict[PeerId, bytes] = {}
        for index, owner in enumerate(prepare.members):
            parts = list(chunks(*shard_range(prepare.shards, index)))
            self._means[owner] = Parcel(codec, parts)
            if self._is_raw:
                self._gives[owner] = raw_parcel(codec, parts, terms.contribution)
            else:
                self._gives[owner] = Parcel(codec, parts)
        self._own = self._means[self._me].parts
        for member, weight in self._weights.items():
            if weight > 0:
                is_ours = member == self._me
                self._takes[member] = (
                    self._gives[member] if is_ours else Parcel(codec, self._own)
                )
        self._places: dict[PeerId, Vector] = {}  # where a chunk of each member is decoded

    @property
    def held(self) -> Held:
        """The complete result. It shares memory with this exchange."""
        data = [self._means[owner].chunks() for owner in self.prepare.members]
        return Held(self.prepare, self.shards, data)

    async def run(self) -> None:
        """Move the data until done. Cancel it to abort."""
        await self._may_flow.wait()
        async with trio.open_nursery() as nursery:
            if self._weights[self._me] > 0 and not self._is_raw:
                nursery.start_soon(self._encode)
            nursery.start_soon(self._reduce)
            for peer in self._others:
                nursery.start_soon(self._follow_mean, peer)
                nursery.start_soon(self._trade, peer)
                nursery.start_soon(self._attend, peer)

    async def serve(self, call: Call[Piece, Piece], first: Piece) -> None:
        """As owner: take one member's contribution to our shard, give back the mean."""
        async with self._serving(call) as link:
            parcel = self._takes.get(call.peer)
            if parcel is not None and parcel.count:
                link.take(parcel, first)
            await self._swap(link, self._means[self._me], parcel)

    def take(self, into: Vector, sent: Vector | None = None) -> None:
        """Put the result into `into`, and what others decoded of ours into `sent`."""
        if sent is not None:
            self._decode(self._gives, sent)
        self._decode(self._means, into)

    # -- moving ------------------------------------------------------------------------------

    async def _trade(self, owner: PeerId) -> None:
        """As member of another's shard: give our contribution, take the mean."""
        mean = self._means[owner]
        if not mean.count:
            return
        give = self._gives[owner] if self._weights[self._me] > 0 else None
        with blaming(owner, self._terms.news):
            link: Link | None = self._bulk_link(owner, mean, "contribution", "mean")
            if link is not None:
                await self._swap(link, give, mean)
                return
            async with self._terms.rpc.stream(owner, REDUCE, timeout_s=OPEN_S) as call:
                link = CallLink(call, self.prepare, self._traffic)
                await self._swap(link, give or Parcel(self._codec, []), mean)

    async def _attend(self, member: PeerId) -> None:
        """As owner: see that a member's contribution comes; by bulk, also take it."""
        mean, take = self._means[self._me], self._takes.get(member)
        link = self._bulk_link(member, mean, "mean", "contribution")
        async with trio.open_nursery() as nursery:
            if link is not None:
                nursery.start_soon(self._swap, link, mean, take)
            if take is not None:
                with blaming(member, self._terms.news):
                    await watch(take, chunk_wait_s(len(self._weights)))

    async def _swap(self, link: Link, give: Parcel | None, take: Parcel | None) -> None:
        """Push and pull at once."""
        async with trio.open_nursery() as nursery:
            if give is not None:
                nursery.start_soon(self._push, link, give)
            if take is not None:
                with blaming(link.peer, self._terms.news):
                    await link.pull(take)

    async def _push(self, link: Link, parcel: Parcel) -> None:
        with blaming(link.peer, self._terms.news):
            await link.push(parcel)

    # -- crunching ---------------------------------------------------------------------------

    async def _encode(self) -> None:
        """Encode our contribution: the first chunk of each shard first."""
        parcels = list(self._gives.values())
        for index in range(max(parcel.count for parcel in parcels)):
            row = [parcel for parcel in parcels if index < parcel.count]
            await self._terms.work(partial(self._encode_row, row, index))
            for parcel in row:
                parcel.grow(index + 1)

    def _encode_row(self, row: list[Parcel], index: int) -> None:
        for parcel in row:
            start, stop = parcel.parts[index]
            parcel.write(index, self._codec.encode(self._terms.contribution[start:stop]))

    async def _reduce(self) -> None:
        """As owner: average chunks as soon as everybody's are here."""
        mean, digest, done = self._means[self._me], hashlib.sha256(), 0
        step = BATCH if self._terms.aggregator.is_chunked else max(mean.count, 1)
        while done < mean.count:
            need = min(done + 1, mean.count) if step == BATCH else mean.count
            for parcel in self._takes.values():
                await parcel.wait(need)
            here = min((parcel.here for parcel in self._takes.values()), default=mean.count)
            upto = min(here, done + step)
            culprit = await self._terms.work(partial(self._average, done, upto, digest))
            if culprit is not None:
                self._terms.news(Fault(culprit, "bad"))
                return
            mean.grow(upto)
            done = upto
        self._finish(self._me, digest.digest())

    def _average(self, first: int, upto: int, digest: "hashlib._Hash") -> PeerId | None:
        """Make chunks of the mean; return whose contribution is none, if one is not."""
        mean = self._means[self._me]
        for index in range(first, upto):
            start, stop = self._own[index]
            vectors: list[Vector] = []
            for member, parcel in self._takes.items():
                try:
                    vectors.append(self._vector(member, parcel.chunk(index), stop - start))
                except BadMessage:
                    return member
            weights = [self._weights[member] for member in self._takes]
            if not vectors:
                vectors, weights = [np.zeros(stop - start, dtype=np.float32)], [0.0]
            result = self._terms.aggregator(vectors, weights)
            mean.write(index, self._codec.encode_mean(result))
            digest.update(mean.chunk(index))
        return None

    def _vector(self, member: PeerId, data: memoryview, elements: int) -> Vector:
        """Decode a contribution's chunk; in place if it can be. Raises BadMessage."""
        if self._is_raw:
            vector = np.frombuffer(data, dtype=np.float32)
            check_within(vector, VALUE_MAX)
            return vector
        place = self._places.setdefault(member, np.empty(CHUNK_ELEMENTS, dtype=np.float32))
        self._codec.decode_into(data, place[:elements], VALUE_MAX)
        return place[:elements]

    async def _follow_mean(self, owner: PeerId) -> None:
        """Check and hash the mean of another's shard as it comes."""
        parcel, digest, done = self._means[owner], hashlib.sha256(), 0
        wait_s = chunk_wait_s(len(self._weights)) + MEAN_WAIT_S - PIECE_WAIT_S
        with blaming(owner, self._terms.news):
            while done < parcel.count:
                with trio.fail_after(wait_s):
                    await parcel.wait(done + 1)
                upto = min(parcel.here, done + BATCH)
                await self._terms.work(partial(self._check, parcel, done, upto, digest))
                done = upto
            self._finish(owner, digest.digest())

    def _check(self, parcel: Parcel, first: int, upto: int, digest: "hashlib._Hash") -> None:
        """Hash chunks of a mean; raise BadMessage if one could not be decoded after COMMIT."""
        for index in range(first, upto):
            data, (start, stop) = parcel.chunk(index), parcel.parts[index]
            digest.update(data)
            if self._is_raw:
                check_within(np.frombuffer(data, dtype=np.float32), MEAN_MAX)
            else:
                self._codec.decode(data, stop - start)

    def _finish(self, owner: PeerId, digest: bytes) -> None:
        self._hashes[owner] = digest
        if len(self._hashes) == len(self._means):
            self._complete([self._hashes[member] for member in self._means])

    def _decode(self, parcels: dict[PeerId, Parcel], into: Vector) -> None:
        for parcel in parcels.values():
            for index, (start, stop) in enumerate(parcel.parts):
                self._codec.decode_into(parcel.chunk(index), into[start:stop], MEAN_MAX)
