"""What the store says of models: their records, who computes what, who should have the parts."""

from collections import Counter

import msgspec

from protocols.sharding.records import (
    NAMESPACE,
    ModelRecord,
    StageRecord,
    is_name,
    manifest_key,
    read,
    read_stage,
    to_value,
)
from wire.errors import NotFound, UsageError
from wire.ids import PeerId
from wire.ports import Store

MODELS_MAX = 512  # records that are looked at: any member can write them
LEASES_PER_PEER = 16  # of one model that count: the cost of routing is the square of their number
PROVIDERS_MAX = 8  # as a record has room for
TAKEN_HINT = "--name gives it another name, `shoal model rm` frees this one"
HAVING = ("loading", "ready", "draining")  # states in which a host has all parts of its span


class Catalogue:
    """The namespace `models`, as this node sees it."""

    def __init__(self, store: Store, peer: PeerId) -> None:
        self._store, self._peer = store, peer

    def records(self) -> dict[str, ModelRecord]:
        """Return the models that the swarm knows, by name."""
        found: dict[str, ModelRecord] = {}
        for item in self._store.scan(NAMESPACE):
            name, _, kind = item.key.partition("/")
            record = read(item, ModelRecord) if kind == "manifest" and is_name(name) else None
            if record is not None and len(found) < MODELS_MAX:
                found[name] = record
        return found

    def find(self, name: str) -> ModelRecord | None:
        """Return one, if there is one."""
        if not is_name(name):
            return None
        return read(self._store.get(NAMESPACE, manifest_key(name)), ModelRecord)

    def record(self, name: str) -> ModelRecord:
        """Return one. Raises NotFound."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"there is no model {name[:64]!r}", hint="`shoal model ls` lists them")
        return found

    def leases(self, name: str, model: str) -> list[tuple[PeerId, StageRecord]]:
        """Return what nodes say of their spans of a model."""
        found: list[tuple[PeerId, StageRecord]] = []
        counts = Counter[PeerId]()
        for item in self._store.scan(NAMESPACE, f"{name}/stage/"):
            stage = read_stage(name, item)
            if stage is None or stage[1].model != model:
                continue
            counts[stage[0]] += 1
            if counts[stage[0]] <= LEASES_PER_PEER:
                found.append(stage)
        return found

    def providers(self, model: str, named: list[str]) -> list[PeerId]:
        """Return who should have parts of a model: those named, and who computes it."""
        hosts: list[PeerId] = []
        for item in self._store.scan(NAMESPACE):
            name, _, rest = item.key.partition("/")
            stage = read_stage(name, item) if rest.startswith("stage/") else None
            if stage is not None and stage[1].model == model and stage[1].state in HAVING:
                hosts.append(stage[0])
        found = dict.fromkeys([*(PeerId(peer) for peer in named), *hosts])
        return [peer for peer in found if peer != self._peer]

    def taken(self, name: str, model: str) -> str:
        """Return by whom a name is taken for another model; "" if it is not.

        Nobody of us takes a name away (the store itself would let the last writer win).
        """
        before = self.find(name)
        if before is None or before.model == model:
            return ""
        item = self._store.get(NAMESPACE, manifest_key(name))
        by = "this node" if item is None or item.author == self._peer else item.author
        return f"the name {name} is taken by a model of {by}"

    async def publish(self, name: str, record: ModelRecord) -> ModelRecord:
        """Write a new model's record; return what was written. Raises UsageError if it is taken.

        Who adds the same model again becomes one more provider.
        """
        if taken := self.taken(name, record.model):
            raise UsageError(taken, hint=TAKEN_HINT)
        before = self.find(name)
        if before is not None:
            record = msgspec.structs.replace(
                record if record.hosted else before,
                providers=with_provider(before.providers, self._peer),
                created_ms=before.created_ms,
            )
        return await self._put(name, record)

    async def change(
        self,
        name: str,
        *,
        hosted: bool | None = None,
        nodes: int | None = None,
        replicas: int | None = None,
    ) -> ModelRecord:
        """Tell the swarm to host a model, or not to any more. Raises NotFound, UsageError."""
        record = self.record(name)
        record = msgspec.structs.replace(
            record,
            hosted=record.hosted if hosted is None else hosted,
            nodes=record.nodes if nodes is None else nodes,
            replicas=record.replicas if replicas is None else replicas,
        )
        return await self._put(name, record)

    async def provide(self, name: str, model: str, *, is_provider: bool) -> None:
        """Say that this node keeps all of a model, or that it does not any more."""
        record = self.find(name)
        if record is None or record.model != model:
            return
        others = [peer for peer in record.providers if peer != self._peer]
        providers = with_provider(others, self._peer) if is_provider else others
        if set(providers) != set(record.providers):
            await self._put(name, msgspec.structs.replace(record, providers=providers))

    async def _put(self, name: str, record: ModelRecord) -> ModelRecord:
        """Write a record. Raises UsageError for one that nobody would read."""
        value = to_value(record)
        try:
            msgspec.convert(value, ModelRecord)
        except msgspec.ValidationError as error:
            raise UsageError(f"model {name}: {error}") from error
        await self._store.put(NAMESPACE, manifest_key(name), value)
        return record

    async def delete(self, name: str) -> None:
        """Make the swarm forget a model."""
        if self._store.get(NAMESPACE, manifest_key(name)) is not None:
            await self._store.delete(NAMESPACE, manifest_key(name))


def with_provider(peers: list[str], peer: str) -> list[str]:
    """Return a record's providers with one more, if there is room: others find it in the DHT."""
    return list(dict.fromkeys([*peers, peer]))[:PROVIDERS_MAX]
