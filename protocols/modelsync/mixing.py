"""A mix: each member takes its neighbours' vectors and sums them with its own (gossip averaging).

What a member sends is what it has committed to before data flows, so it cannot tell neighbours
different things. The sum is a weighted mean in member order, like an owner's in a butterfly, our
own vector in it exact. Results differ; what all sign is the list of commitments.
"""

from functools import partial

import numpy as np
import trio

from protocols.modelsync.codecs import MEAN_MAX, VALUE_MAX, Vector
from protocols.modelsync.links import CallLink, blaming, chunk_wait_s
from protocols.modelsync.neighbours import sources, targets
from protocols.modelsync.news import OPEN_S, Fault, Held
from protocols.modelsync.parcels import Parcel, is_raw, lay_out, raw_parcel
from protocols.modelsync.sealing import NOTHING, Committing, all_parts
from protocols.modelsync.shards import CHUNK_ELEMENTS
from protocols.modelsync.side import Side, Terms
from protocols.modelsync.wire import REDUCE, Piece
from wire.errors import BadMessage
from wire.ids import PeerId
from wire.ports import Call

BATCH = 8  # chunks worked on in one go


class Mix(Side):
    """One member's side of a mix. Raises BadMessage if the attempt is not sealed."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        prepare = self.prepare
        if not prepare.is_sealed:
            raise BadMessage("a mix that is not sealed")
        members, me = prepare.members, prepare.members.index(self._me)
        self._shares = {  # of those that bring something, in member order
            members[index]: share
            for index, share in sources(prepare, me).items()
            if self._weights[members[index]] > 0
        }
        self._targets: list[PeerId] = []
        if self._weights[self._me] > 0:
            self._targets = [members[index] for index in targets(prepare, me)]
        self._parts = all_parts(prepare.shards)
        self._is_raw = is_raw(self._codec)
        if self._is_raw:
            self._give = raw_parcel(self._codec, self._parts, terms.contribution)
        else:
            self._give = Parcel(self._codec, self._parts)
        self._takes = {
            peer: Parcel(self._codec, self._parts) for peer in self._shares if peer != self._me
        }
        given = [] if self._is_raw else [self._give]
        self._memory = lay_out([*self._takes.values(), *given], terms.memory)
        self._mixed = np.empty(0, dtype=np.float32)
        self._places: dict[PeerId, Vector] = {}

    @property
    def held(self) -> Held:
        """The complete result, ours."""
        return Held(self.prepare, self.shards, [], self._mixed)

    async def seal(self) -> bytes:
        """Encode all of our contribution; return its hash: SHA-256 over the shards' hashes."""
        if self._weights[self._me] == 0:
            return NOTHING
        return await self._terms.work(self._encode)

    async def run(self) -> None:
        """Move the data until done. Cancel it to abort."""
        await self._may_flow.wait()
        wait_s = chunk_wait_s(len(self._targets) + 1)
        self._watched = {peer: [(parcel, wait_s)] for peer, parcel in self._takes.items()}
        with self._running():
            await self._move()

    async def _move(self) -> None:
        async with trio.open_nursery() as outer:
            outer.start_soon(self._watch)
            async with trio.open_nursery() as nursery:
                for peer in self._targets:
                    nursery.start_soon(self._give_to, peer)
                for peer in self._takes:
                    nursery.start_soon(self._pull, peer)
                nursery.start_soon(self._mix)
            outer.cancel_scope.cancel()

    async def serve(self, call: Call[Piece, Piece], first: Piece) -> None:
        """Take a neighbour's vector."""
        async with self._serving(call) as link:
            parcel = self._takes.get(call.peer)
            if parcel is None or self._bulk_link(call.peer, parcel) is not None:
                raise BadMessage("not a neighbour, or one whose vector comes by a transfer")
            link.take(parcel, first)
            await link.pull([parcel])

    def close(self) -> None:
        """End the streams that others opened to us."""
        super().close()
        for parcel in self._takes.values():
            parcel.close()

    def take(self, into: Vector, sent: Vector | None = None) -> None:
        """Put our result into `into`, and what neighbours decoded of ours into `sent`."""
        if sent is not None:
            sent.fill(0)
            if self._weights[self._me] > 0:
                for index, (start, stop) in enumerate(self._parts):
                    data = self._give.chunk(index)
                    self._codec.decode_into(data, sent[start:stop], MEAN_MAX)
        np.copyto(into, self._mixed)
        self._give_back(self._memory)
        self._memory = None

    # -- moving ------------------------------------------------------------------------------

    async def _give_to(self, peer: PeerId) -> None:
        with blaming(peer, self._fault):
            link = self._bulk_link(peer, self._give)
            if link is not None:
                await link.push([self._give])
                return
            async with self._terms.rpc.stream(peer, REDUCE, timeout_s=OPEN_S) as call:
                await CallLink(call, self.prepare, self._traffic).push([self._give])

    async def _pull(self, peer: PeerId) -> None:
        link = self._bulk_link(peer, self._takes[peer])
        if link is not None:
            with blaming(peer, self._fault):
                await link.pull([self._takes[peer]])

    # -- crunching ---------------------------------------------------------------------------

    def _encode(self) -> bytes:
        committing = Committing(self.prepare.shards)
        for index, (start, stop) in enumerate(self._parts):
            if not self._is_raw:
                data = self._codec.encode(self._terms.contribution[start:stop])
                self._give.write(index, data)
            committing.update(self._give.chunk(index))
        self._give.here = len(self._parts)  # nobody waits for it yet
        return committing.digest()

    async def _mix(self) -> None:
        """Sum chunks as soon as every neighbour's are here."""
        hashes = {peer: Committing(self.prepare.shards) for peer in self._takes}
        self._mixed = np.empty(self.prepare.elements, dtype=np.float32)
        is_chunked, done, count = self._terms.aggregator.is_chunked, 0, len(self._parts)
        while done < count:
            for parcel in self._takes.values():
                await parcel.wait(done + 1 if is_chunked else count)
            here = min((parcel.here for parcel in self._takes.values()), default=count)
            upto = min(here, done + BATCH) if is_chunked else count
            culprit = await self._terms.work(partial(self._sum, done, upto, hashes))
            if culprit is not None:
                self._fault(Fault(culprit, "bad"))
                return
            done = upto
        self._complete([self._commitments[member] for member in self.prepare.members])

    def _sum(self, first: int, upto: int, hashes: dict[PeerId, Committing]) -> PeerId | None:
        """Sum chunks; return whose vector is none, or not what it committed to, if one is not."""
        is_last, step = upto == len(self._parts), 1 if self._terms.aggregator.is_chunked else upto
        for peer, parcel in self._takes.items():
            for index in range(first, upto):
                hashes[peer].update(parcel.chunk(index))
            if is_last and hashes[peer].digest() != self._commitments[peer]:
                return peer
        for at in range(first, upto, step):
            start, stop = self._parts[at][0], self._parts[at + step - 1][1]
            vectors: list[Vector] = []
            for peer in self._shares:
                try:
                    vectors.append(self._vector(peer, at, at + step))
                except BadMessage:
                    return peer
            own = self._terms.contribution[start:stop]
            shares = list(self._shares.values())
            mixed = self._terms.aggregator(vectors, shares) if vectors else own
            np.copyto(self._mixed[start:stop], mixed)
        return None

    def _vector(self, peer: PeerId, first: int, upto: int) -> Vector:
        """Decode chunks of a neighbour's vector, or take our own. Raises BadMessage."""
        start, stop = self._parts[first][0], self._parts[upto - 1][1]
        if peer == self._me:
            return self._terms.contribution[start:stop]
        if peer not in self._places:
            size = CHUNK_ELEMENTS if self._terms.aggregator.is_chunked else stop - start
            self._places[peer] = np.empty(size, dtype=np.float32)
        place = self._places[peer][: stop - start]
        for index in range(first, upto):
            at, end = self._parts[index]
            data = self._takes[peer].chunk(index)
            self._codec.decode_into(data, place[at - start : end - start], VALUE_MAX)
        return place
