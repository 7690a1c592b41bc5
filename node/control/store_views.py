"""What the store tells its users, as the JSON of the control routes."""

from collections.abc import Callable

from crdt.clock import wall_of
from crdt.entry import KINDS
from crdt.shown import GrantInfo, LogLine, NamespaceInfo, Shown, SyncReport
from shoal import store_api as shapes
from shoal.rpc_api import to_json
from wire.errors import ShoalError
from wire.ids import PeerId


class StoreViews:
    """Shapes with members' names in them."""

    def __init__(self, name_of: Callable[[PeerId], str]) -> None:
        self._name_of = name_of

    def item(self, shown: Shown) -> shapes.StoreItem:
        """Return what a key shows."""
        blob = shown.blob
        return shapes.StoreItem(
            namespace=shown.namespace,
            key=shown.key,
            kind=shown.kind,
            value=to_json(shown.value),
            author=shown.author,
            name=self._name_of(shown.author),
            hlc=shown.hlc,
            written_ms=wall_of(shown.hlc),
            expires_ms=shown.expires_ms,
            cid="" if blob is None else blob.cid,
            blob_bytes=0 if blob is None else blob.size,
            entries=shown.entries,
        )

    def line(self, line: LogLine) -> shapes.StoreLine:
        """Return one entry."""
        return shapes.StoreLine(
            id=line.id.hex(),
            author=line.author,
            name=self._name_of(line.author),
            instance=line.instance.hex(),
            seq=line.seq,
            hlc=line.hlc,
            written_ms=wall_of(line.hlc),
            kind=line.kind,
            key=line.key,
            element=to_json(line.element),
            value=to_json(line.value),
            cid="" if line.blob is None else line.blob.cid,
            blob_bytes=0 if line.blob is None else line.blob.size,
            entry_bytes=line.size,
            expires_ms=line.expires_ms,
            counts=line.counts,
            deleted=line.is_tombstone,
        )

    def namespace(self, info: NamespaceInfo) -> shapes.Namespace:
        """Return a namespace."""
        return shapes.Namespace(
            id=info.id.hex(),
            name=info.name,
            owner=info.owner or "",
            owner_name=self._name_of(info.owner) if info.owner else "",
            write=info.write,
            clock_bound_s=info.rules.max_skew_ms / 1000,
            author_entries=info.rules.author_entries,
            keep_s=info.rules.gc_ms / 1000,
            entries=info.entries,
            size_bytes=info.size,
            authors=info.authors,
            faults=info.faults,
            root=info.root.hex(),
            built_in=info.is_built_in,
        )

    def grant(self, info: GrantInfo) -> shapes.Grant:
        """Return a grant."""
        return shapes.Grant(
            id=info.id.hex(),
            issuer=info.issuer,
            issuer_name=self._name_of(info.issuer),
            subject=info.subject,
            subject_name=self._name_of(info.subject),
            prefix=info.prefix,
            kinds=[name for number, name in KINDS.items() if info.kinds >> number & 1],
            from_ms=info.not_before_ms,
            until_ms=info.not_after_ms,
            depth=info.depth,
            revoked=info.is_revoked,
            above="" if info.above is None else info.above.hex(),
        )

    def synced(self, peer: PeerId, report: SyncReport | ShoalError) -> shapes.Synced:
        """Return what a sync did, or why it failed."""
        name = self._name_of(peer)
        if isinstance(report, ShoalError):
            return shapes.Synced(peer, name, error=str(report) or report.code)
        return shapes.Synced(
            peer,
            name,
            report.round_trips,
            report.entries_in,
            report.entries_out,
            report.overhead_bytes,
        )
