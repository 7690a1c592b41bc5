"""Shards: which member averages which elements, and the chunks that they travel in.

First form: equal shards. A later one gives each member a shard sized by its bandwidth; the wire
format already carries the sizes.
"""

from collections.abc import Iterator

CHUNK_ELEMENTS = 256 * 1024  # 1 MiB of float32: large enough to fill a link, small enough to pipe


def equal_shards(elements: int, members: int) -> list[int]:
    """Split `elements` over members; the first ones take the rest."""
    each, rest = divmod(elements, members)
    return [each + (1 if index < rest else 0) for index in range(members)]


def shard_range(shards: list[int], owner: int) -> tuple[int, int]:
    """Return start and stop of the owner's elements."""
    start = sum(shards[:owner])
    return start, start + shards[owner]


def chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a range into chunks. An empty range has none."""
    for at in range(start, stop, CHUNK_ELEMENTS):
        yield at, min(at + CHUNK_ELEMENTS, stop)
