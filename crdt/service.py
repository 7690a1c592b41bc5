"""The store as a service: reads from memory, writes through the disk, spreads what is new.

New entries go out at once on the namespace's channel; `crdt.sync` repairs the rest, peer by peer.
What is readable here is on the disk here.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from crdt import drafts
from crdt.authority import RULE_KEYS
from crdt.batch import NotAllowed, StoreFull
from crdt.clock import HLC_MAX
from crdt.entry import (
    ELEMENT_MAX,
    GRANT,
    REVOKE,
    VALUE_MAX,
    BlobRef,
    Record,
    foreign_owner,
)
from crdt.hall import Hall
from crdt.live import Channel
from crdt.namespace import Genesis, Grant, Revoke, Rules, Write
from crdt.own import Build, Draft
from crdt.pins import Blobs, Pins
from crdt.reader import StoreReader
from crdt.replica import Replica
from crdt.shown import NamespaceInfo, Shown, SyncReport
from crdt.spaces import DIRECTORY, OWNER_SPACES_MAX, SPACES_MAX, directory_key
from wire import codec
from wire.errors import Busy, NotFound, ShoalError, UsageError
from wire.ids import PeerId, Signer, public_key_of
from wire.ports import Clock, Item, Network, OffLoop

T = TypeVar("T", Genesis, Grant)
SYNC_INTERVAL_S = 30.0  # between syncs with a random peer; 1 round trip when nothing differs
SYNC_ALL_AT_ONCE = 8  # syncs that `sync_all` leads at a time
_REFUSED = {
    GRANT: "no grant lets this node hand that on: no more than it has, with a smaller depth",
    REVOKE: "a grant is revoked by the namespace's owner, or by who has the one it is under",
}
SALT_BYTES = 16


class StoreService(StoreReader):
    """Implements `wire.ports.Store`. `node` wires `rpc.answer("crdt.sync", store.answer)`."""

    def __init__(
        self,
        network: Network,
        channel: Channel,
        clock: Clock,
        signer: Signer,
        path: Path | str,
        *,
        peers: Callable[[], list[PeerId]],
        salt: bytes = b"",
        blobs: Blobs | None = None,
        sync_interval_s: float = SYNC_INTERVAL_S,
        off_loop: OffLoop | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`peers` lists who is connected now; `salt` tells the built-in namespaces of one swarm
        from those of another. `off_loop` is for simulators: no threads there.
        """
        self._blobs, self._peers, self._rng = blobs, peers, rng or random.Random()
        self._author = public_key_of(signer.peer)
        self._pins = Pins(self._author, blobs)
        hall = Hall(
            network,
            channel,
            clock,
            signer,
            path,
            peers=peers,
            salt=salt,
            interval_s=sync_interval_s,
            off_loop=off_loop,
            rng=self._rng,
            pins=self._pins,
        )
        super().__init__(hall, clock, signer)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the file, start to sync; ready (`started`) when reads and writes work.

        Raises StoreCorrupt or StoreFailed if the file cannot be opened.
        """
        await self._hall.run(task_status=task_status)

    # --- writing -------------------------------------------------------------------------------
    # All raise UsageError (a limit, or somebody else's key), NotAllowed, StoreFull, StoreFailed,
    # ClockError; what they wrote is durable when they return, and then spreads.

    async def put(
        self, namespace: str, key: str, value: object, *, ttl_s: float | None = None
    ) -> Item:
        """Write a register; `ttl_s` makes it a lease that dies."""
        raw = self._encoded(key, value, VALUE_MAX)
        expires_ms = self._expiry(ttl_s)
        record = await self._write(namespace, key, drafts.put(raw, expires_ms=expires_ms))
        assert record is not None, "a put always writes"
        return Item(key, value, self._signer.peer, record.hlc, expires_ms)

    async def put_bytes(
        self, namespace: str, key: str, data: bytes, *, ttl_s: float | None = None
    ) -> Shown:
        """Write a large value: a blob, which we keep for as long as the entry is ours and held."""
        if self._blobs is None:
            raise UsageError("this node has no blobs")
        self._hall.spaces.find(namespace)
        cid = str(await self._blobs.put_bytes(data, name=key[:64], pin=True))
        return await self.put_blob(namespace, key, cid, len(data), ttl_s=ttl_s)

    async def put_blob(
        self, namespace: str, key: str, cid: str, size_bytes: int, *, ttl_s: float | None = None
    ) -> Shown:
        """Write a value that rests in a blob which is pinned here; it is let go with the entry, or
        at once if there is none.
        """
        with self._pins.writing(cid):
            ref = BlobRef(cid, size_bytes)
            build = drafts.put(None, blob=ref, expires_ms=self._expiry(ttl_s))
            record = await self._write(namespace, key, build)
        return self._shown(namespace, key, record)

    async def put_multi(self, namespace: str, key: str, value: object) -> Shown:
        """Write a multi-value register: it replaces the values seen here, and no others."""
        raw = self._encoded(key, value, VALUE_MAX)
        return self._shown(
            namespace, key, await self._write(namespace, key, drafts.put_multi(raw, self._author))
        )

    async def increment(self, namespace: str, key: str, by: int = 1) -> int:
        """Count up, or down; returns the total as this node knows it."""
        if abs(by) > HLC_MAX:
            raise UsageError(f"{by} is too large to count")
        await self._write(namespace, key, drafts.increment(by))
        view = self._hall.spaces.find(namespace).view(key, self._clock.wall_ms())
        return view.total if view is not None else 0

    async def add(
        self, namespace: str, key: str, element: object, value: object | None = None
    ) -> Shown:
        """Add an element to a set; with a value, set a sub-key of a map."""
        raw = self._encoded(key, element, ELEMENT_MAX, "element")
        mapped = self._encoded(key, value, VALUE_MAX) if value is not None else None
        return self._shown(
            namespace, key, await self._write(namespace, key, drafts.add(raw, mapped))
        )

    async def remove(self, namespace: str, key: str, element: object) -> bool:
        """Take an element out, as far as its adds are known here; false if there is none."""
        raw = self._encoded(key, element, ELEMENT_MAX, "element")
        build = drafts.remove(raw, self._author)
        return await self._write(namespace, key, build) is not None

    async def delete(self, namespace: str, key: str) -> None:
        """Write a tombstone, if there is something to delete."""
        await self._write(namespace, key, drafts.delete())

    async def create_namespace(
        self, name: str, *, write: Write = "open", rules: Rules | None = None
    ) -> NamespaceInfo:
        """Begin a namespace of our own, and list it: every member replicates it."""
        owned = [one for one in self._hall.spaces if one.genesis.owner == self._author]
        if any(one.genesis.name == name for one in owned):
            raise UsageError(f"you have a namespace {name!r} already")
        if len(owned) >= OWNER_SPACES_MAX:
            raise UsageError(f"a member has at most {OWNER_SPACES_MAX} namespaces")
        if len(self._hall.spaces.replicas) >= SPACES_MAX:
            raise StoreFull(f"this node replicates {SPACES_MAX} namespaces, and no more")
        genesis = _checked(
            Genesis(1, name, self._author, write, self._rng.randbytes(SALT_BYTES), rules or Rules())
        )
        if self._hall.spaces.is_reserved(name):
            raise UsageError(f"{name!r} is built in")
        await self.put(DIRECTORY, directory_key(genesis), codec.encode(genesis))
        return self._info(self._hall.spaces.find(genesis.id.hex()))

    async def grant(
        self,
        namespace: str,
        subject: PeerId,
        *,
        prefix: str = "",
        kinds: int = 0,
        not_before_ms: int = 0,
        not_after_ms: int = 0,
        depth: int = 0,
    ) -> bytes:
        """Let a peer write in a namespace whose writers are listed; returns the grant's ID.

        Who hands on what was granted leaves open what is to be as in that.
        """
        replica = self._listed(namespace)
        grant = _checked(
            Grant(public_key_of(subject), prefix, kinds, not_before_ms, not_after_ms, depth)
        )
        if replica.genesis.owner != self._author:
            grant = replica.authority.narrowed(self._author, grant, self._clock.wall_ms())
        build = self._rule(GRANT, codec.encode(grant))
        record = await self._write(namespace, RULE_KEYS[GRANT], build, for_grant=grant)
        assert record is not None, "a rule always writes"
        return record.id

    async def revoke(self, namespace: str, grant_id: bytes, *, is_discarded: bool = False) -> bytes:
        """Take a grant back, from now on: what is held here that was written under it still counts,
        of its subject's latest 64 chains (`GRANT_CHAINS_MAX`); or, discarded, none of it.

        Raises NotFound.
        """
        replica = self._listed(namespace)
        grants = {record.id: grant for record, grant in replica.authority.grants()}
        if grant_id not in grants:
            raise NotFound(f"no grant {grant_id.hex()[:16]} in {namespace!r}")
        kept = () if is_discarded else replica.authority.dots_under(grant_id)
        build = self._rule(REVOKE, codec.encode(Revoke(grant_id, kept)))
        record = await self._write(namespace, RULE_KEYS[REVOKE], build, for_revoked=grant_id)
        assert record is not None, "a rule always writes"
        return record.id

    # --- peers and the file --------------------------------------------------------------------

    async def answer(self, peer: PeerId, message: bytes) -> bytes:
        """Answer one request of a peer's sync. Raises BadMessage; Busy while the file is read: what
        is not here yet would seem to be deleted, to a peer that was away.
        """
        if not self._hall.is_loaded:
            raise Busy("the store is starting")
        return await self._hall.syncer.answer(peer, message)

    def peer_up(self, peer: PeerId) -> None:
        """A connection to a peer is there: sync with it soon."""
        self._hall.syncer.peer_up(peer)

    async def sync_with(self, peer: PeerId) -> SyncReport:
        """Exchange what either side lacks. Raises PeerUnreachable, DeadlineExceeded, PeerError."""
        return await self._hall.syncer.sync_with(peer)

    async def sync_all(self) -> dict[PeerId, SyncReport | ShoalError]:
        """Sync with everybody who is connected; says of each what moved, or why not."""
        results: dict[PeerId, SyncReport | ShoalError] = {}
        limit = trio.CapacityLimiter(SYNC_ALL_AT_ONCE)

        async def sync(peer: PeerId) -> None:
            async with limit:
                try:
                    results[peer] = await self.sync_with(peer)
                except ShoalError as error:
                    results[peer] = error

        async with trio.open_nursery() as nursery:
            for peer in self._peers():
                nursery.start_soon(sync, peer)
        return results

    async def snapshot(self, path: Path) -> None:
        """Write a consistent copy of the file, which can take its place later. StoreFailed."""
        await self._hall.snapshot(path)

    # --- inside --------------------------------------------------------------------------------

    async def _write(
        self,
        namespace: str,
        key: str,
        build: Build,
        *,
        for_grant: Grant | None = None,
        for_revoked: bytes | None = None,
    ) -> Record | None:
        replica = self._hall.spaces.find(namespace)
        if stranger := foreign_owner(key, self._author):
            raise UsageError(
                f"{key!r} belongs to {stranger!r}: this node may not write it",
                hint="a key with a segment @PEER is written by that peer only",
            )
        if replica.genesis.write == "list" and replica.genesis.owner != self._author:
            build = self._granted(replica, key, build, for_grant, for_revoked)
        return await self._hall.writer.write(replica.id, key, build)

    def _granted(
        self,
        replica: Replica,
        key: str,
        build: Build,
        for_grant: Grant | None,
        for_revoked: bytes | None,
    ) -> Build:
        """Name the grant that allows an entry. The draft raises NotAllowed if there is none."""

        def with_grant(held: Sequence[Record], chain: bytes) -> Draft | None:
            draft = build(held, chain)
            if draft is None:
                return None
            now_ms = self._clock.wall_ms()
            grant = replica.authority.grant_for(
                self._author,
                draft.kind,
                key,
                now_ms,
                grant=for_grant,
                revoked=for_revoked,
            )
            if grant is None:
                raise NotAllowed(_REFUSED.get(draft.kind, f"no grant lets this node write {key!r}"))
            return draft.under(grant)

        return with_grant

    def _rule(self, kind: int, value: bytes) -> Build:
        draft = Draft(kind, value=value)
        return lambda held, chain: draft

    def _listed(self, namespace: str) -> Replica:
        replica = self._hall.spaces.find(namespace)
        if replica.genesis.write != "list":
            raise UsageError(
                f"{namespace!r} is {replica.genesis.write!r}: only a list of writers has grants",
                hint="create one with `shoal store ns create NAME --write list`",
            )
        return replica

    def _encoded(self, key: str, value: object, limit: int, what: str = "value") -> bytes:
        try:
            raw = codec.encode(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"the store cannot take the {what} of {key!r}: {error}") from error
        if len(raw) > limit:
            raise UsageError(
                f"the {what} of {key!r} takes {len(raw)} bytes, the limit is {limit}",
                hint="put it into a blob and store its CID",
            )
        return raw

    def _expiry(self, ttl_s: float | None) -> int:
        if ttl_s is None:
            return 0
        if not 0 < ttl_s * 1000 < HLC_MAX // 2:
            raise UsageError(f"a lease of {ttl_s} s")
        return self._clock.wall_ms() + max(1, round(ttl_s * 1000))

    def _shown(self, namespace: str, key: str, record: Record | None) -> Shown:
        found = self.show(namespace, key)
        if found is None or record is None:  # somebody deleted it meanwhile
            raise NotFound(f"{key!r} was deleted meanwhile")
        return found


def _checked(message: T) -> T:
    """Hold our own message to the bounds of its type. Raises UsageError."""
    try:
        return msgspec.msgpack.decode(codec.encode(message), type=type(message))
    except msgspec.ValidationError as error:
        raise UsageError(f"not possible: {error}") from error
