"""Who belongs to a run: leases of members, and farewells of those that left."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from protocols.modelsync.part import Attachment, Census
from protocols.modelsync.registry import BOUND, MemberLease, Registry
from wire.errors import UsageError
from wire.ids import PeerId

LEASE_TTL_S = 15.0  # seconds without renewal until a member is not waited for any more
FAREWELL_TTL_S = 24 * 3600.0  # seconds that a farewell is kept: longer than a round may take
OTHERS_MAX = 32  # connected peers without a lease that are told that we are ready


@dataclass(frozen=True)
class Members:
    """The members of runs by their leases. `peers`: whom this node is connected to."""

    registry: Registry
    me: PeerId
    peers: Callable[[], list[PeerId]]

    def live(self, run: str) -> dict[PeerId, MemberLease]:
        """Members that have not left."""
        return {p: lease for p, lease in self.registry.leases(run).items() if not lease.left}

    def check(self, attachment: Attachment) -> None:
        """Raise UsageError if most other members of the run have another shape."""
        live = self.live(attachment.run)
        others = [lease.shape for peer, lease in live.items() if peer != self.me]
        unlike = [shape for shape in others if shape != attachment.shape]
        if 2 * len(unlike) > len(others):
            raise UsageError(
                f"run {attachment.run} has {unlike[0]}; not {attachment.shape}",
                hint="give the run another --name, or use the settings of its members",
            )

    def census(self, run: str, lane: int) -> Census:
        """Who belongs to a lane. Who left bound is in neither list until its round is known."""
        leases = self.registry.leases(run)
        left = {peer: lease.round_of(lane) for peer, lease in leases.items() if lease.left}
        lost = partial(self.registry.is_given_up, run, lane)
        return Census(
            live=[peer for peer, lease in leases.items() if not lease.left],
            left={peer: at for peer, at in left.items() if at != BOUND and not lost(peer, at)},
            others=self.peers()[:OTHERS_MAX],
        )

    async def renew(self, attachment: Attachment, at: list[int]) -> None:
        """Write our own lease. `at`: the round that each lane has next."""
        lease = MemberLease(
            at=at,
            elements=attachment.shape.elements,
            codec=attachment.codec,
            rounds=attachment.rounds,
            settings=attachment.terms,
        )
        await self.registry.put_lease(attachment.run, lease, LEASE_TTL_S)

    async def farewell(self, run: str, at: list[int]) -> None:
        """Say goodbye: nobody waits for us, or counts on us."""
        await self.registry.put_lease(run, MemberLease(at=at, left=True), FAREWELL_TTL_S)
