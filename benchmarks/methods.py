"""The RPC methods that all nodes of the benchmarks know."""

from wire.codec import CHUNK_FRAME_MAX, Message
from wire.ports import Method


class Blob(Message, frozen=True):
    """Some bytes."""

    data: bytes


class Size(Message, frozen=True):
    """How many bytes: wanted, or taken."""

    size: int


ECHO: Method[Blob, Blob] = Method("bench.echo", Blob, Blob)
SWALLOW: Method[Blob, Size] = Method("bench.swallow", Blob, Size, CHUNK_FRAME_MAX)
FETCH: Method[Size, Blob] = Method("bench.fetch", Size, Blob, CHUNK_FRAME_MAX)
SWALLOW_STREAM: Method[Blob, Size] = Method("bench.swallow_stream", Blob, Size, CHUNK_FRAME_MAX)
RECEIVE: Method[Size, Size] = Method("bench.receive", Size, Size)
