"""Checking proofs of the store: for the routes, and for the command line without a daemon."""

import time

from crdt import reading
from crdt.proof import verify
from crdt.spaces import owner_of
from node.control.store_views import StoreViews
from shoal import store_api as shapes
from wire.errors import BadMessage, ShoalError
from wire.ids import PeerId


class WrongProof(ShoalError):
    """A document that does not prove what it says."""

    code = "wrong_proof"


def verdict(document: bytes, namespace_id: bytes, root: bytes | None) -> shapes.Verdict:
    """Check a document by a namespace's ID; return what it shows. Blocking: up to 0.5 s.

    Raises WrongProof.
    """
    try:
        found = verify(namespace_id, document, root=root, now_ms=time.time_ns() // 1_000_000)
        name = found.genesis.name
        shown = None if found.view is None else reading.shown(name, found.view)
    except BadMessage as error:
        raise WrongProof(f"the proof is wrong: {error}") from error
    return shapes.Verdict(
        namespace=namespace_id.hex(),
        name=name,
        owner=owner_of(found.genesis),
        key=found.key,
        item=None if shown is None else StoreViews(_nameless).item(shown),
        root=found.root.hex(),
        attester=found.attester,
        attested_ms=found.attested_ms,
        proven=list(found.proven),
        not_proven=list(found.not_proven),
    )


def _nameless(_: PeerId) -> str:
    return ""
