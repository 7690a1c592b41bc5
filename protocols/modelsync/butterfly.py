"""A butterfly all-reduce: each member owns a shard, averages it for all, and gets the others'.

A member encodes its contribution chunk by chunk and sends each owner its shard's. The owner
aggregates **in member order** in float32, encodes the result once and sends it to all; everybody,
the owner too, decodes those same bytes, so all hold the same bits whatever the codec. Also our own
contribution counts as others would decode it: the result does not depend on who owns what.
"""

import hashlib
from collections.abc import Mapping
from functools import partial

import numpy as np
import trio

from protocols.modelsync.codecs import MEAN_MAX, VALUE_MAX, Vector
from protocols.modelsync.links import CallLink, blaming, chunk_wait_s
from protocols.modelsync.news import MEAN_WAIT_S, OPEN_S, PIECE_WAIT_S, Fault, Held
from protocols.modelsync.parcels import Parcel, floats_of, is_raw, lay_out, raw_parcel
from protocols.modelsync.sealing import HASH_BYTES, NOTHING, Digest, Opening, hash_of, update
from protocols.modelsync.shards import CHUNK_ELEMENTS, chunks, shard_range
from protocols.modelsync.side import Side, Terms
from protocols.modelsync.vectors import check_within
from protocols.modelsync.wire import REDUCE, Piece
from protocols.modelsync.work import suited
from wire.errors import BadMessage
from wire.ids import PeerId
from wire.ports import Call

BATCH = 8  # chunks worked on in one go: a thread is held for some milliseconds, not more


class Butterfly(Side):
    """One member's side of an all-reduce."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        members, codec = self.prepare.members, self._codec
        self._is_raw = is_raw(codec)
        self._borrows = self._is_raw and not self.prepare.is_sealed  # sends from the contribution
        is_quick = codec.bytes_per_element >= 1 and terms.aggregator.combine is None
        self._crunch = suited(terms.work, self.prepare.elements) if is_quick else terms.work
        self._head = 1 if self.prepare.is_sealed else 0  # chunks before those of elements
        self._own = self._parts(members.index(self._me))
        self._gives = {owner: self._give(index) for index, owner in enumerate(members)}
        self._means = {owner: Parcel(codec, self._parts(i)) for i, owner in enumerate(members)}
        self._takes: dict[PeerId, Parcel] = {  # contributions to our shard, in member order
            member: self._gives[member] if member == self._me else self._parcel(self._own)
            for member, weight in self._weights.items()
            if weight > 0
        }
        self._others_takes = [p for m, p in self._takes.items() if m != self._me]
        self._mean_memory = lay_out(list(self._means.values()), terms.memory)
        self._taken_memory = lay_out(self._share_place(), terms.memory)
        given = [] if self._borrows else list(self._gives.values())
        self._given_memory = lay_out(given, terms.memory)
        self._hashes: dict[PeerId, bytes] = {}
        self._openings: dict[PeerId, Opening] = {}
        self._squares: dict[PeerId, float] = {}
        self._places: dict[PeerId, Vector] = {}  # where a chunk of each member is decoded
        self._exact = self._room_for_exact()
        self._grown = trio.Event()  # some mean has become longer
        for parcel in self._means.values():
            parcel.on_grow = lambda: self._grown.set()

    @property
    def held(self) -> Held:
        """The complete result. It shares memory with this exchange, until `take`."""
        means = (self._means[owner] for owner in self.prepare.members)
        return Held(self.prepare, self.shards, [mean.chunks() for mean in means])

    @property
    def brought(self) -> list[memoryview]:
        """The chunks that we have committed to; empty if we brought nothing."""
        if not self._head or self._weights[self._me] == 0:
            return []
        return [chunk for parcel in self._gives.values() for chunk in parcel.chunks()[1:]]

    @property
    def lengths(self) -> Mapping[PeerId, float]:
        """In sealed rounds: the norm of each contribution to our own shard."""
        return {member: float(np.sqrt(square)) for member, square in self._squares.items()}

    async def seal(self) -> bytes:
        """Encode all of our contribution; return its hash: SHA-256 over the shards' hashes."""
        if self._weights[self._me] == 0:
            return NOTHING
        parcels = list(self._gives.values())
        for parcel in parcels:
            parcel.write(0, bytes(HASH_BYTES * len(parcels)))  # its place; what it is, comes last
        await self._encode()
        work = self._crunch
        head = b"".join([await work(partial(hash_of, parcel, 1)) for parcel in parcels])
        for parcel in parcels:
            parcel.write(0, head)
            parcel.grow(parcel.count)
        return hashlib.sha256(head).digest()

    def go(self, commitments: Mapping[PeerId, bytes]) -> None:
        """Let data flow; what members bring must match these."""
        index = self.prepare.members.index(self._me)
        self._openings = {
            member: Opening(commitments[member], index)
            for member in self._takes
            if member != self._me and self._head
        }
        super().go(commitments)

    async def run(self) -> None:
        """Move the data until done. Cancel it to abort."""
        await self._may_flow.wait()
        wait_s = chunk_wait_s(len(self._weights))
        for peer in self._others:
            take = [(self._takes[peer], wait_s)] if peer in self._takes else []
            mean = (self._means[peer], wait_s + MEAN_WAIT_S - PIECE_WAIT_S)
            self._watched[peer] = [*take, mean]
        with self._running():
            await self._move()

    async def _move(self) -> None:
        async with trio.open_nursery() as outer:
            outer.start_soon(self._watch)
            async with trio.open_nursery() as nursery:
                if self._weights[self._me] > 0 and not self._borrows and not self._head:
                    nursery.start_soon(self._encode)
                nursery.start_soon(self._reduce)
                nursery.start_soon(self._check_means)
                for peer in self._others:
                    nursery.start_soon(self._trade, peer)
            outer.cancel_scope.cancel()

    async def serve(self, call: Call[Piece, Piece], first: Piece) -> None:
        """As owner: take one member's contribution to our shard, give back the mean."""
        async with self._serving(call) as link:
            if self._bulk_link(call.peer, self._means[self._me], self._means[call.peer]):
                raise BadMessage("a call beside a transfer: both would write to one place")
            parcel = self._takes.get(call.peer)
            if parcel is not None and parcel.count:
                link.take(parcel, first)
            await self._swap(link, [self._means[self._me]], [parcel] if parcel is not None else [])

    def close(self) -> None:
        """End the streams that others opened to us, and let go of what came on them."""
        super().close()
        for parcel in self._others_takes:
            parcel.close()
        for parcel in self._means.values():
            parcel.on_grow = None  # a ring: our memory would wait for the garbage collector
        self._give_back(self._taken_memory)
        self._taken_memory = None
        if not self.shards:  # nobody can be bound to it
            self._let_go()

    def take(self, into: Vector, sent: Vector | None = None) -> None:
        """Put the result into `into`, and what has arrived of our contribution into `sent`: what
        others decoded of it, and on our own shard less what our encoding of the mean has lost.
        """
        if sent is not None:
            if self._weights[self._me] > 0:
                self._decode(self._gives, sent, self._head)
            else:
                sent.fill(0)
        self._decode(self._means, into, 0)
        if sent is not None and self._exact is not None:
            own = slice(*shard_range(self.prepare.shards, self.prepare.members.index(self._me)))
            lost = np.subtract(self._exact, into[own], out=self._exact)
            np.multiply(lost, np.float32(self._our_factor()), out=lost)
            np.subtract(sent[own], lost, out=sent[own])
        self._exact = None
        self._let_go()

    def _let_go(self) -> None:
        self._give_back(self._given_memory, self._mean_memory)
        self._given_memory = self._mean_memory = None

    # -- moving ------------------------------------------------------------------------------

    def _parts(self, owner: int) -> list[tuple[int, int]]:
        return list(chunks(*shard_range(self.prepare.shards, owner)))

    def _parcel(self, parts: list[tuple[int, int]]) -> Parcel:
        """Return a parcel for a contribution. In sealed rounds all shards' hashes go first."""
        return Parcel(
            self._codec, parts, head_bytes=self._head * HASH_BYTES * len(self.prepare.members)
        )

    def _share_place(self) -> list[Parcel]:
        """Let one contribution lie where our mean will: a chunk of the mean is written when that
        of each contribution has been read, and none is written twice. Return the others.
        """
        place = self._means[self._me].flat
        if place is None or self._head or not self._others_takes:
            return self._others_takes
        self._others_takes[0].lie_in(place)
        return self._others_takes[1:]

    def _room_for_exact(self) -> Vector | None:
        """Return where the mean of our shard lies as it was before it was encoded: who has error
        feedback, and a part in that mean, brings what the encoding loses to the next round.
        """
        is_lossy = not self._codec.is_exact and self._terms.aggregator.combine is None
        if not (self._terms.wants_sent and is_lossy and self._weights[self._me] > 0):
            return None
        return np.empty(sum(stop - start for start, stop in self._own), dtype=np.float32)

    def _our_factor(self) -> float:
        """Return how much of us makes 1 of the mean. Of who weighs less than the average not all:
        weights may be others the next time, and are what each member claims.
        """
        return min(sum(self._weights.values()) / self._weights[self._me], len(self._takes))

    def _give(self, owner: int) -> Parcel:
        parts = self._parts(owner)
        if self._borrows:
            return raw_parcel(self._codec, parts, self._terms.contribution)
        return self._parcel(parts)

    async def _trade(self, peer: PeerId) -> None:
        """Give a member our contribution to its shard and the mean of ours, and take both."""
        mean, theirs = self._means[self._me], self._means[peer]
        give = [self._gives[peer]] if self._weights[self._me] > 0 and theirs.count else []
        link = self._bulk_link(peer, mean, theirs)
        if link is not None:
            take = [self._takes[peer]] if peer in self._takes and mean.count else []
            give, take = [*give, mean], [*take, theirs]
            await self._swap(link, *([p for p in way if p.count] for way in (give, take)))
        elif theirs.count:  # of our own shard, the stream that it opens to us takes care
            with blaming(peer, self._fault):
                async with self._terms.rpc.stream(peer, REDUCE, timeout_s=OPEN_S) as call:
                    over_call = CallLink(call, self.prepare, self._traffic)
                    if not give:
                        await call.send(over_call.piece(0, b""))  # it opens the stream
                    await self._swap(over_call, give, [theirs])

    # -- crunching ---------------------------------------------------------------------------

    async def _encode(self) -> None:
        """Encode our contribution: the first chunk of each shard first."""
        parcels = list(self._gives.values())
        last = max(len(parcel.parts) for parcel in parcels)
        rows = max(1, BATCH // len(parcels))  # chunks of each shard in one go
        for first in range(0, last, rows):
            await self._crunch(partial(self._encode_rows, first, first + rows))
            if not self._head:
                for parcel in parcels:
                    parcel.grow(min(first + rows, len(parcel.parts)))

    def _encode_rows(self, first: int, upto: int) -> None:
        for parcel in self._gives.values():
            for index, (start, stop) in enumerate(parcel.parts[first:upto], first):
                data = self._codec.encode(self._terms.contribution[start:stop])
                parcel.write(index + self._head, data)

    async def _reduce(self) -> None:
        """As owner: average chunks as soon as everybody's are here."""
        mean, digest, done = self._means[self._me], hashlib.sha256(), 0
        is_chunked = self._terms.aggregator.is_chunked
        while done < mean.count:
            need = done + 1 if is_chunked else mean.count
            for parcel in self._takes.values():
                await parcel.wait(need + self._head)
            all_here = (parcel.here - self._head for parcel in self._takes.values())
            here = min(all_here, default=mean.count)
            upto = min(here, done + BATCH) if is_chunked else mean.count
            average = self._average if is_chunked else self._aggregate
            culprit = await self._crunch(partial(average, done, upto, digest))
            if culprit is not None:
                self._fault(Fault(culprit, "bad"))
                return
            mean.grow(upto)
            done = upto
        self._finish(self._me, digest.digest())

    def _average(self, first: int, upto: int, digest: Digest) -> PeerId | None:
        """Make chunks of the mean; return whose contribution is none, if one is not."""
        mean = self._means[self._me]
        for index in range(first, upto):
            start, stop = self._own[index]
            vectors: list[Vector] = []
            for member in self._takes:
                try:
                    vectors.append(self._vector(member, index))
                except BadMessage:
                    return member
            out, at = floats_of(mean.chunk(index)) if self._is_raw else None, self._own[0][0]
            combined = self._combined(vectors, stop - start, out)
            if self._exact is not None:
                self._exact[start - at : stop - at] = combined
            if out is None:  # else it was made where it goes from
                mean.write(index, self._codec.encode_mean(combined))
        update(digest, mean, first, upto)
        return None

    def _aggregate(self, first: int, upto: int, digest: Digest) -> PeerId | None:
        """The same for an aggregator that must see the whole shard."""
        mean, start = self._means[self._me], self._own[0][0]
        vectors: list[Vector] = []
        for member in self._takes:
            vector = np.empty(self._own[-1][1] - start, dtype=np.float32)
            try:
                for index, (at, stop) in enumerate(self._own):
                    vector[at - start : stop - start] = self._vector(member, index)
            except BadMessage:
                return member
            vectors.append(vector)
        result = self._combined(vectors, self._own[-1][1] - start)
        for index, (at, stop) in enumerate(self._own):
            mean.write(index, self._codec.encode_mean(result[at - start : stop - start]))
        update(digest, mean, first, upto)
        return None

    def _combined(self, vectors: list[Vector], elements: int, out: Vector | None = None) -> Vector:
        weights = [self._weights[member] for member in self._takes]
        out = np.empty(elements, dtype=np.float32) if out is None else out
        if vectors:
            return self._terms.aggregator(vectors, weights, out)
        out.fill(0)
        return out

    def _vector(self, member: PeerId, index: int) -> Vector:
        """Decode a contribution's chunk; in place if it can be. Raises BadMessage."""
        vector = self._decoded(member, index)
        if self._head:
            square = float(np.sum(np.square(vector, dtype=np.float64)))
            self._squares[member] = self._squares.get(member, 0.0) + square
        return vector

    def _decoded(self, member: PeerId, index: int) -> Vector:
        parcel, opening = self._takes[member], self._openings.get(member)
        data, (start, stop) = parcel.chunk(index + self._head), self._own[index]
        if opening is not None:
            if not index:
                opening.head(parcel.chunk(0))
            opening.update(data)
            if index == len(self._own) - 1:
                opening.end()
        if self._is_raw:
            vector = floats_of(data)
            check_within(vector, VALUE_MAX)
            return vector
        if member not in self._places:
            self._places[member] = np.empty(CHUNK_ELEMENTS, dtype=np.float32)
        place = self._places[member][: stop - start]
        self._codec.decode_into(data, place, VALUE_MAX)
        return place

    async def _check_means(self) -> None:
        """Check and hash the means of others' shards as they come."""
        digests: dict[PeerId, Digest] = {owner: hashlib.sha256() for owner in self._others}
        done = dict.fromkeys(self._others, 0)
        while done:
            self._grown = trio.Event()
            for owner in [owner for owner in done if done[owner] == self._means[owner].count]:
                del done[owner]
                self._finish(owner, digests[owner].digest())
            jobs = {o: (n, min(self._means[o].here, n + BATCH)) for o, n in done.items()}
            jobs = {owner: (first, upto) for owner, (first, upto) in jobs.items() if first < upto}
            if not jobs:
                if done:
                    await self._grown.wait()
                continue
            culprits = await self._crunch(partial(self._check, jobs, digests))
            for owner in culprits:
                self._fault(Fault(owner, "bad"))
                del done[owner]
            done |= {owner: upto for owner, (_, upto) in jobs.items() if owner in done}

    def _check(
        self, jobs: dict[PeerId, tuple[int, int]], digests: dict[PeerId, Digest]
    ) -> list[PeerId]:
        """Hash chunks of means; return owners of one that could not be decoded after COMMIT."""
        culprits: list[PeerId] = []
        for owner, (first, upto) in jobs.items():
            parcel = self._means[owner]
            update(digests[owner], parcel, first, upto)
            try:
                for index in range(first, upto):
                    start, stop = parcel.parts[index]
                    if self._is_raw:
                        vector = floats_of(parcel.chunk(index))
                        check_within(vector, MEAN_MAX)
                    else:
                        self._codec.refuse_bad(parcel.chunk(index), stop - start)
            except BadMessage:
                culprits.append(owner)
        return culprits

    def _finish(self, owner: PeerId, digest: bytes) -> None:
        self._hashes[owner] = digest
        if len(self._hashes) == len(self._means):
            self._complete([self._hashes[member] for member in self._means])

    def _decode(self, parcels: dict[PeerId, Parcel], into: Vector, skip: int) -> None:
        for parcel in parcels.values():
            for index, (start, stop) in enumerate(parcel.parts):
                data = parcel.chunk(index + skip)
                if self._is_raw:
                    np.copyto(into[start:stop], floats_of(data))
                else:
                    self._codec.decode_into(data, into[start:stop], MEAN_MAX)
