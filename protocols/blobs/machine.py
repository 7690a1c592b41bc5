"""Which chunk to ask of whom, without I/O.

Chunks are handed out in order; a provider that lacks one is not asked for it again, one that lies
or breaks is not asked for anything again. The driver asks `next_for`, and reports what came.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from wire.ids import PeerId

IN_FLIGHT_MAX = 4  # chunks asked of one provider at a time: 4 MiB cover 40 ms at 100 MB/s
LACKS_MAX = 256  # chunks that one provider may lack: beyond, looking for one it has costs too much


@dataclass
class _Provider:
    asked: set[bytes] = field(default_factory=set[bytes])
    lacks: set[bytes] = field(default_factory=set[bytes])


class Fetch:
    """The state of one fetch. Chunks are unique hashes."""

    def __init__(
        self,
        wanted: Iterable[bytes],
        providers: Iterable[PeerId],
        *,
        in_flight_max: int = IN_FLIGHT_MAX,
    ) -> None:
        self._wanted = dict.fromkeys(wanted)  # not asked of anybody now, in order
        self._providers = {peer: _Provider() for peer in providers}
        self._in_flight_max = in_flight_max

    @property
    def is_done(self) -> bool:
        """Tell whether every chunk has arrived."""
        return not self._wanted and not any(p.asked for p in self._providers.values())

    def has_work_for(self, peer: PeerId) -> bool:
        """Tell whether `next_for` would choose something."""
        return self._choose(peer) is not None

    def next_for(self, peer: PeerId) -> bytes | None:
        """Choose the next chunk to ask a provider for; None if there is none for it now."""
        chunk = self._choose(peer)
        if chunk is not None:
            del self._wanted[chunk]
            self._providers[peer].asked.add(chunk)
        return chunk

    def arrived(self, peer: PeerId, chunk: bytes) -> None:
        """A chunk came from a provider, and is what its hash says."""
        self._providers[peer].asked.remove(chunk)

    def absent(self, peer: PeerId, chunk: bytes) -> None:
        """A provider does not have a chunk. One that lacks many is not asked again at all."""
        provider = self._providers[peer]
        provider.asked.remove(chunk)
        provider.lacks.add(chunk)
        self._wanted[chunk] = None
        if len(provider.lacks) > LACKS_MAX:
            self.lost(peer)

    def lost(self, peer: PeerId) -> None:
        """A provider broke off, or sent something else than it was asked for."""
        provider = self._providers.pop(peer, None)
        if provider is not None:
            self._wanted |= dict.fromkeys(provider.asked)

    def is_useful(self, peer: PeerId) -> bool:
        """Tell whether a provider may still be needed: it lacks not all of what is missing."""
        provider = self._providers.get(peer)
        if provider is None:
            return False
        asked = (chunk for other in self._providers.values() for chunk in other.asked)
        return any(chunk not in provider.lacks for chunk in chain(self._wanted, asked))

    def _choose(self, peer: PeerId) -> bytes | None:
        provider = self._providers.get(peer)
        if provider is None or len(provider.asked) >= self._in_flight_max:
            return None
        return next((chunk for chunk in self._wanted if chunk not in provider.lacks), None)
