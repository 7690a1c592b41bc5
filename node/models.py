"""Served models on this node: hosts spans, brings models into service, answers prompts.

Wires the store, blobs, RPC and membership to `protocols.sharding`: the library (what models are
here), hosting (which spans we compute), answers, and audits of others.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

import structlog
import trio

from node.config import ServeOptions
from node.model_answers import Answering, Answers, Options, Prompt, Served
from node.model_audits import Audits
from node.model_host import Hosting
from node.model_library import Library
from node.model_offer import Offering
from node.model_views import Views
from node.model_wishes import Wish
from protocols.sharding.manifest import Manifest, parts_of_front
from protocols.sharding.records import NAMESPACE, ModelRecord, is_name, manifest_key, read
from protocols.sharding.route import Candidate
from protocols.sharding.service import StageService
from shoal import models as shapes
from wire.errors import NotFound
from wire.ids import PeerId, Signer
from wire.ports import Clock, Rpc, Store

PROGRESS_INTERVAL_S = 0.5  # between two looks at the stages while a model comes into service

_log = structlog.get_logger("models")


class MemberView(Protocol):
    """What models need to know of a member of the swarm."""

    @property
    def peer(self) -> PeerId:
        """Its peer ID."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it is there now."""
        ...

    @property
    def connected(self) -> bool:
        """Whether we hold a connection to it."""
        ...

    @property
    def offers(self) -> Mapping[str, object]:
        """What it offers: {"serve": bool, "memory_gib": number, "room_gib", "speed"}."""
        ...


class Models:
    """The part of the daemon that serves models. Public parts: `library`, `stages`, `audits`."""

    def __init__(
        self,
        *,
        folder: Path,
        store: Store,
        blobs: object,
        rpc: Rpc,
        signer: Signer,
        members: Callable[[], list[MemberView]],
        clock: Clock,
        options: ServeOptions,
        rtt_s: Callable[[PeerId], float | None],
    ) -> None:
        """`rtt_s` is the measured round trip to a connected peer, None if there is none."""
        raise NotImplementedError  # (interface first; grows within the hour)

    def offers(self) -> dict[str, object]:
        """Return what this node's membership says it offers."""
        raise NotImplementedError

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host spans, answer prompts and audit until cancelled."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Say farewell: no new sessions, and our leases are taken back."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Return the names of the models that the swarm knows."""
        raise NotImplementedError

    def views(self) -> list[shapes.Model]:
        """Return every known model, by name."""
        raise NotImplementedError

    def view(self, name: str) -> shapes.Model:
        """Return one known model. Raises NotFound."""
        raise NotImplementedError

    def choose(self, name: str) -> str:
        """Return the name of the model that is meant; "" is the only one. Raises NotFound."""
        raise NotImplementedError

    def candidates(self, name: str) -> list[Candidate]:
        """Return the spans that are ready now, as routing sees them, with delays and penalties."""
        raise NotImplementedError

    async def serve(self, request: shapes.ServeRequest) -> AsyncGenerator[shapes.ServeProgress]:
        """Add a model that the swarm shall host; yield progress until a route through it exists."""
        raise NotImplementedError
        yield

    async def unserve(self, name: str) -> None:
        """Take a model out of service: its hosts see it and end their workers."""
        raise NotImplementedError

    async def host(self, name: str, wish: Wish) -> None:
        """Host a span of a model here from now on, also after a restart. Raises NotFound."""
        raise NotImplementedError

    async def unhost(self, name: str) -> None:
        """Host nothing of a model here any more, also if the swarm asks. Raises NotFound."""
        raise NotImplementedError

    async def answer(self, name: str, prompt: Prompt, options: Options) -> Answering:
        """Begin to answer a prompt with a model. Raises ShoalError."""
        raise NotImplementedError
