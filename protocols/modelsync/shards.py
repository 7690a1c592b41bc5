"""Shards: which member averages which elements, and the chunks that they travel in."""

from collections.abc import Iterator, Sequence

CHUNK_ELEMENTS = 256 * 1024  # 1 MiB of float32: large enough to fill a link, small enough to pipe
SHARD_STEP = 4096  # a shard's elements: codecs' blocks, so that no result depends on the cut
SPREAD = 1.5  # measured rates closer than this are noise
FAST = 60_000_000  # bytes/s; above, it was as much processors as links that were measured


def weighted_shards(elements: int, rates: Sequence[float], owns: Sequence[bool]) -> list[int]:
    """Split `elements` over n members so that the slowest one is done soonest.

    rates: measured bytes/s of each member, 0 if not measured: taken as the median of the others.
    owns: who can own a shard; the others get 0. If nobody can, all must.
    Returns elements in member order, multiples of `SHARD_STEP` but the last that is not 0.

    Member i with shard s_i sends d - s_i elements to owners and s_i to n - 1 members, and receives
    as much: d + (n - 2) s_i each way. The longest of (d + (n - 2) s_i) / rate_i is least when all
    that own something take equally long (water-filling). Equal shards unless rates differ by more
    than `SPREAD`, or all are `FAST`; of two members always: each sends d whatever it owns.
    """
    members = len(rates)
    owners = [i for i in range(members) if owns[i]] or list(range(members))
    shares = dict.fromkeys(owners, 1.0)
    rates = [min(rate, FAST) for rate in rates]
    measured = sorted(rates[i] for i in owners if rates[i] > 0)
    if members > 2 and measured and measured[-1] > SPREAD * measured[0]:
        median = measured[len(measured) // 2]
        shares = _fill({i: rates[i] or median for i in owners}, members)
    return _rounded(elements, members, shares)


def _fill(rates: dict[int, float], members: int) -> dict[int, float]:
    """Return shares: rate_i T - 1 in units of d / (n - 2), without who would get less than 0."""
    left = sorted(rates, key=lambda owner: rates[owner])
    while True:
        longest = (members - 2 + len(left)) / sum(rates[owner] for owner in left)
        if rates[left[0]] * longest > 1:
            return {owner: rates[owner] * longest - 1 for owner in left}
        left.pop(0)


def _rounded(elements: int, members: int, shares: dict[int, float]) -> list[int]:
    """Cut in steps: each owner its share rounded down, those that lost most one step more."""
    steps = -(-elements // SHARD_STEP)
    total = sum(shares.values())
    exact = {owner: steps * share / total for owner, share in shares.items()}
    given = {owner: int(part) for owner, part in exact.items()}
    by_loss = sorted(given, key=lambda owner: (given[owner] - exact[owner], owner))
    for owner in by_loss[: steps - sum(given.values())]:
        given[owner] += 1
    shards = [SHARD_STEP * given.get(member, 0) for member in range(members)]
    last = max((member for member in range(members) if shards[member]), default=0)
    shards[last] -= SHARD_STEP * steps - elements
    return shards


def equal_shards(elements: int, members: int) -> list[int]:
    """Split `elements` over members that all own a shard and have the same rate."""
    return weighted_shards(elements, [0] * members, [True] * members)


def shard_range(shards: list[int], owner: int) -> tuple[int, int]:
    """Return start and stop of the owner's elements."""
    start = sum(shards[:owner])
    return start, start + shards[owner]


def chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a range into chunks. An empty range has none."""
    for at in range(start, stop, CHUNK_ELEMENTS):
        yield at, min(at + CHUNK_ELEMENTS, stop)
