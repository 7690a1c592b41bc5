"""Which proofs of faults are on the disk, and in what the replicas differ from that by now."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crdt.replica import Replica
from wire import codec

ProofChange = tuple[bytes, bytes, bytes]  # namespace, chain, proof; no proof: it goes


@dataclass
class KeptProofs:
    """By their digests. `accused`: the namespaces in which something may have changed."""

    digests: dict[bytes, dict[bytes, bytes]] = field(  # by namespace and chain
        default_factory=dict[bytes, dict[bytes, bytes]]
    )
    accused: set[bytes] = field(default_factory=set[bytes])

    def pop_changes(self, replicas: Mapping[bytes, Replica]) -> list[ProofChange]:
        """Return what the next commit writes and takes away."""
        found: list[ProofChange] = []
        accused, self.accused = self.accused, set[bytes]()
        for namespace in accused:
            on_disk, faults = self.digests.get(namespace, {}), replicas[namespace].faults
            for chain, proven in faults.items():
                if on_disk.get(chain) != proven.digest:
                    found.append((namespace, chain, codec.encode(proven.fault)))
            found += [
                (namespace, chain, b"")
                for chain, digest in on_disk.items()
                if digest and chain not in faults
            ]
        return found

    def note(self, changes: Sequence[ProofChange]) -> None:
        """The disk took these."""
        for namespace, chain, proof in changes:
            on_disk = self.digests.setdefault(namespace, {})
            if proof:
                on_disk[chain] = hashlib.sha256(proof).digest()
            else:
                on_disk.pop(chain, None)

    def retry(self, changes: Sequence[ProofChange]) -> None:
        """The disk did not take these."""
        self.accused.update(namespace for namespace, _, _ in changes)
