"""What waits to be sent to one peer: bounded; control goes first, the oldest payload goes lost.

Pure. Control (meshes, announcements, subscriptions) is small and its loss would confuse both
machines, so it is never dropped: a peer that lets more than `CONTROL_BYTES` of it wait takes
nothing at all, and loses its stream.
"""

from dataclasses import dataclass, field

import msgspec

from protocols.channels import wire
from protocols.channels.wire import FRAME_MAX, MESSAGES_MAX
from wire import frames

PAYLOADS_MAX = 1024  # messages; a burst of 1 KB messages, or 16 of the largest
PAYLOAD_BYTES = 2 * 1024 * 1024  # and bytes
CONTROL_BYTES = 512 * 1024  # some minutes of heartbeats
BATCH_BYTES = FRAME_MAX // 2  # of payload in one frame; one that is bigger still goes


@dataclass
class SendQueue:
    """Bodies of messages (each an RPC of its own, and their concatenation is one too)."""

    dropped: int = 0
    sent: int = 0
    _control: list[bytes] = field(default_factory=list[bytes])
    _control_bytes: int = 0
    _payloads: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])  # oldest first
    _payload_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self._control or self._payloads)

    @property
    def is_half_full(self) -> bool:
        """Whether a publisher had better wait."""
        return self._payload_bytes > PAYLOAD_BYTES // 2 or len(self._payloads) > PAYLOADS_MAX // 2

    @property
    def has_batch(self) -> bool:
        """Whether a whole frame is waiting: there is nothing to wait for."""
        return self._payload_bytes >= BATCH_BYTES

    def put_control(self, frame: bytes) -> bool:
        """Add a whole frame of control; False if the peer has let too much of it wait."""
        self._control.append(frame)
        self._control_bytes += len(frame)
        return self._control_bytes <= CONTROL_BYTES

    def put_payload(self, name: bytes, body: bytes) -> None:
        """Add a message, dropping the oldest until it fits."""
        self.forget(name)
        self._payloads[name] = body
        self._payload_bytes += len(body)
        while len(self._payloads) > PAYLOADS_MAX or self._payload_bytes > PAYLOAD_BYTES:
            self.forget(next(iter(self._payloads)))
            self.dropped += 1

    def forget(self, name: bytes) -> None:
        """Do not send a message after all: the peer has it."""
        body = self._payloads.pop(name, None)
        if body is not None:
            self._payload_bytes -= len(body)

    def take(self) -> bytes:
        """Remove and return what goes out in the next write: all control, then one batch."""
        parts, self._control, self._control_bytes = self._control, [], 0
        batch, size_bytes = list[bytes](), 0
        while self._payloads and len(batch) < MESSAGES_MAX:
            name, body = next(iter(self._payloads.items()))
            size_bytes += len(body)
            if batch and size_bytes > BATCH_BYTES:
                break
            batch.append(body)
            self.forget(name)
        if batch:
            self.sent += len(batch)
            parts.append(frames.pack(b"".join(batch)))
        return b"".join(parts)


def split(rpc: wire.Rpc) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return an RPC's control part as a frame (b"" if there is none), and each message alone."""
    bodies = [(item.id, wire.encode(wire.Rpc(messages=(item,)))) for item in rpc.messages]
    rest = wire.encode(msgspec.structs.replace(rpc, messages=()) if bodies else rpc)
    return frames.pack(rest) if rest else b"", bodies
