"""What a fetch has done so far, for whoever shows it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wire.ids import PeerId


@dataclass
class Share:
    """What one provider has brought. `note` says why it was given up; "" is active."""

    got_bytes: int = 0
    note: str = ""
    is_active: bool = False


@dataclass
class Transfer:
    """The progress of one fetch, of a file or of a tree."""

    size_bytes: int = 0  # 0 until the manifest is here
    done_bytes: int = 0  # what was here before counts
    fetched_bytes: int = 0
    files: int = 1
    shares: dict[PeerId, Share] = field(default_factory=dict[PeerId, Share])
    began_s: float = field(default_factory=time.monotonic)

    def share(self, peer: PeerId) -> Share:
        """Return the part of one provider."""
        return self.shares.setdefault(peer, Share())


Report = Callable[[Transfer], None]  # called when something has changed: must not block


@dataclass
class Counters:
    """Totals since the start."""

    bytes_in: int = 0  # that arrived and were kept
    bytes_out: int = 0  # that were sent
    bytes_wasted: int = 0  # that arrived and were not needed any more
    corrupt_chunks: int = 0  # that were not what they should be
    providers_dropped: int = 0  # for lies or silence
    fetches: int = 0
    fetches_failed: int = 0

    def add_failed_fetch(self) -> None:
        """Count a fetch that failed."""
        self.fetches_failed += 1
