"""The library: models as content. Adds, removes, pins and verifies them; brings their parts here."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import trio

from node.model_files import Blobs
from protocols.sharding.manifest import Manifest, Part
from protocols.sharding.records import ModelRecord
from shoal import library as shapes
from wire.ids import PeerId
from wire.ports import Clock, Store


class Library:
    """Which models there are, and their parts on this node.

    `add`, `pin` and `verify` yield progress; close the generator to cancel the work.
    """

    def __init__(
        self, folder: Path, *, store: Store, blobs: Blobs, peer: PeerId, clock: Clock
    ) -> None:
        raise NotImplementedError

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch manifests and what is pinned, throw away what nothing needs, until cancelled."""

    def log_path(self, name: str) -> Path:
        """Return where the children of a model write what they say."""
        raise NotImplementedError

    def records(self) -> dict[str, ModelRecord]:
        """Return the models that the swarm knows, by name."""
        raise NotImplementedError

    def record(self, name: str) -> ModelRecord:
        """Return one. Raises NotFound."""
        raise NotImplementedError

    def manifest_here(self, record: ModelRecord) -> Manifest | None:
        """Return a model's manifest if it has been fetched before; asks nobody."""
        raise NotImplementedError

    async def manifest(self, record: ModelRecord) -> Manifest:
        """Return a model's manifest, fetched if need be. Raises ShoalError."""
        raise NotImplementedError

    async def bring(
        self, record: ModelRecord, parts: list[Part], progress: Callable[[int], object]
    ) -> Path:
        """Have these parts in the model's folder, from whoever has them; return the folder.

        progress: told the bytes that are here. Use them within `using`, or they may be swept.
        Raises Refused if the disk has no room, NotFound, PeerUnreachable, BadMessage.
        """
        raise NotImplementedError

    @contextmanager
    def using(self, record: ModelRecord, start: int, end: int) -> Generator[None]:
        """Keep the parts of blocks [start, end) here meanwhile (and a while longer)."""
        raise NotImplementedError

    async def change(
        self,
        name: str,
        *,
        hosted: bool | None = None,
        nodes: int | None = None,
        replicas: int | None = None,
    ) -> ModelRecord:
        """Tell the swarm to host a model, or not to any more. Raises NotFound."""
        raise NotImplementedError

    async def add(self, request: shapes.AddModel) -> AsyncGenerator[shapes.LibraryProgress]:
        """Split a model, make blobs of its parts, pin them here, and tell the swarm.

        A name that another model has is taken: UsageError says by whom.
        """
        raise NotImplementedError
        yield

    async def views(self) -> list[shapes.KnownModel]:
        """Return all models that the swarm knows or that are pinned here, by name."""
        raise NotImplementedError

    async def view(self, name: str) -> shapes.ModelDetail:
        """Return one with its parts and hosts. Raises NotFound."""
        raise NotImplementedError

    async def remove(self, name: str, *, force: bool = False) -> shapes.Removed:
        """Make the swarm forget a model. Raises NotFound, or Refused while it is hosted."""
        raise NotImplementedError

    async def pin(self, name: str, request: shapes.PinModel) -> AsyncGenerator[shapes.LibraryProgress]:
        """Fetch parts and keep them: the swarm cannot lose them while this node lives."""
        raise NotImplementedError
        yield

    async def unpin(self, name: str) -> shapes.KnownModel:
        """Let the parts go when nothing here uses them. Raises NotFound."""
        raise NotImplementedError

    async def verify(self, name: str) -> AsyncGenerator[shapes.LibraryProgress]:
        """Hash the parts that are here; repair bad ones from other nodes."""
        raise NotImplementedError
        yield
