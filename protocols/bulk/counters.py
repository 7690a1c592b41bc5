"""What bulk counts. `node/metrics.py` gives the numbers names."""

from dataclasses import dataclass


@dataclass
class BulkCounters:
    """Totals since the start, and what is there now. Bytes are those that arrived, counted once."""

    sent: int = 0  # transfers that the other side had in full
    received: int = 0
    failed: int = 0  # either direction, whatever the reason
    bytes_out: int = 0
    bytes_in: int = 0
    ended_wire_in: int = 0  # at the sockets of lanes that are over (Pool.wire_bytes adds the rest)
    ended_wire_out: int = 0
    lanes: int = 0  # now
    lanes_made: int = 0
    lane_faults: int = 0  # lanes that ended by bytes that the peer cannot have sealed
    hellos_refused: int = 0
    fallbacks: int = 0  # transfers of which a part went through the call

    def add_failed(self) -> None:
        """Count a transfer that failed."""
        self.failed += 1
