"""What a member says of its reachability in its lease: `offers["reach"]`."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from node.reach.family import State

KEY = "reach"  # in the offers of a member lease
PLACES_MAX = 65_535  # that a relay may say are free; ours has 128


class ReachOffer(msgspec.Struct, frozen=True):
    """Unknown fields are left to newer versions. It is free of trust: whoever lies is found out
    by the first who asks.
    """

    state: State = "unknown"
    relay: Annotated[int, Meta(ge=0, le=PLACES_MAX)] = 0  # free reservations


def read_offer(offers: Mapping[str, object]) -> ReachOffer | None:
    """Return what a member offers; None if it says nothing, or no sense."""
    try:
        return msgspec.convert(offers.get(KEY), ReachOffer)
    except msgspec.ValidationError:
        return None
