"""Who trains on what: one data set dealt to the members of a run, anew whenever they change.

    deal = shoal.Deal(len(dataset), seed=0)
    sampler = DealSampler(deal, trainer)
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, sampler=sampler)

A round's deal is a seeded shuffle of all indices, cut into one piece for each member, in the order
of their peer IDs. Members who know of the same members hold disjoint pieces; who has just come or
gone is known from the next round on, and what it had, or what was its, is dealt to the others then.
Pieces of one round differ by at most one index; together they are all of them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class Deal:
    """`length` indices, shuffled by `seed`. `pass_rounds`: rounds that one shuffle lasts.

    With more than one, a round gets its part of the shuffle, so that a pass goes over all of the
    data once, as long as members do not change.
    """

    def __init__(self, length: int, *, seed: int = 0, pass_rounds: int = 1) -> None:
        if length < 1 or pass_rounds < 1:
            raise ValueError(f"nothing to deal: {length} indices, {pass_rounds} rounds a pass")
        self.length, self.seed, self.pass_rounds = length, seed, pass_rounds

    def indices(self, members: Sequence[str], me: str, round_: int) -> Indices:
        """Return what member `me` trains on in a round, shuffled: int64.

        Raises ValueError if `me` is not one of the members.
        """
        ordered = sorted(set(members))
        if me not in ordered:
            raise ValueError(f"{me[:64]!r} is not one of the {len(ordered)} members")
        number, part = divmod(round_, self.pass_rounds)
        dealt = np.array_split(self._shuffled(number), self.pass_rounds)[part]
        return np.array_split(dealt, len(ordered))[ordered.index(me)]

    def _shuffled(self, number: int) -> Indices:
        """The order of one pass: alike on every machine, for numpy fixes what PCG64 itself yields
        (not what its Generator makes of it).
        """
        key = hashlib.sha256(f"shoal/deal/1\0{self.seed}\0{number}".encode()).digest()
        ranks = np.random.PCG64(int.from_bytes(key)).random_raw(self.length)
        return np.argsort(ranks, kind="stable").astype(np.int64, copy=False)


class Standing(Protocol):
    """What a sampler asks of a trainer (`shoal.Trainer`)."""

    @property
    def member(self) -> str:
        """Our peer ID."""
        ...

    @property
    def members(self) -> list[str]:
        """Who made the last round."""
        ...

    @property
    def round(self) -> int:
        """Rounds so far."""
        ...


class DealSampler:
    """A sampler for `torch.utils.data.DataLoader`: our piece, again and again, until the run ends.

    It looks at the trainer before each index: when a round has ended, the next index is of the new
    deal. Workers of a loader fetch some batches ahead, so these are still of the old one. `share`:
    (rank, size) inside a `torchrun`, each rank taking every size-th index.
    """

    def __init__(self, deal: Deal, trainer: Standing, *, share: tuple[int, int] = (0, 1)) -> None:
        self._deal, self._trainer, self._share = deal, trainer, share

    def __iter__(self) -> Iterator[int]:
        """Yield indices without an end: a training loop stops when the trainer is done."""
        rank, size = self._share
        while True:
            at = self._trainer.round
            members = {*self._trainer.members, self._trainer.member}
            ours = self._deal.indices(sorted(members), self._trainer.member, at)[rank::size]
            if len(ours) == 0:  # more members than data: any index is better than none
                ours = self._deal.indices([self._trainer.member], self._trainer.member, at)
            for index in ours.tolist():
                yield index
                if self._trainer.round != at:
                    break

    def __len__(self) -> int:
        """Return how many indices a member has in a round, about."""
        members = max(1, len(self._trainer.members))
        return max(1, self._deal.length // self._deal.pass_rounds // members // self._share[1])
