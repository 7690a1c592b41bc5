"""The routing table."""

from dataclasses import dataclass

from wire.ids import PeerId


@dataclass(frozen=True)
class Contact:
    """A peer that answered."""

    peer: PeerId
    addrs: tuple[str, ...]
