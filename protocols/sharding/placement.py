"""Which node computes which layers: contiguous spans over the nodes that offer room. Pure.

First form: even spans, bounded by each node's room. Speed is not looked at yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wire.errors import UsageError
from wire.ids import PeerId


@dataclass(frozen=True)
class Offer:
    """A node that offers to compute up to `blocks` layers."""

    peer: PeerId
    blocks: int


@dataclass(frozen=True)
class Span:
    """Layers [start, end) on one node."""

    peer: PeerId
    start: int
    end: int


def place(n_layers: int, offers: Sequence[Offer], *, nodes: int | None = None) -> list[Span]:
    """Cut the layers into spans, in the order of peer IDs: the same offers give the same spans.

    Every chosen node gets as many layers as the others, unless its room is less. With `nodes`, only
    the ones with the most room are chosen. Raises UsageError if there is not enough room.
    """
    usable = [offer for offer in offers if offer.blocks > 0]
    count = min(nodes or len(usable), n_layers)
    chosen = sorted(usable, key=lambda offer: (-offer.blocks, offer.peer))[:count]
    room = sum(offer.blocks for offer in chosen)
    if room < n_layers:
        raise UsageError(
            f"{len(chosen)} nodes offer room for {room} of the model's {n_layers} layers",
            hint="start more nodes, raise serve.memory_gib on them, or use --nodes with more",
        )
    chosen.sort(key=lambda offer: offer.peer)
    spans: list[Span] = []
    start = 0
    for offer, blocks in zip(chosen, _even(n_layers, [o.blocks for o in chosen]), strict=True):
        spans.append(Span(offer.peer, start, start + blocks))
        start += blocks
    return spans


def _even(total: int, room: list[int]) -> list[int]:
    """Share `total` out, one each in turn, to all that have room left (water filling)."""
    shares = [0] * len(room)
    left = total
    while left:
        open_ = [index for index, most in enumerate(room) if shares[index] < most]
        step = max(1, min([left // len(open_), *(room[i] - shares[i] for i in open_)]))
        for index in open_[: left // step]:
            shares[index] += step
            left -= step
    return shares
