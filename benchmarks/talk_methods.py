"""The methods that both ends of `benchmarks.talk` know."""

from wire.codec import CHUNK_FRAME_MAX, Message
from wire.ports import Method


class Blob(Message, frozen=True):
    """Some bytes."""

    data: bytes


ECHO: Method[Blob, Blob] = Method("bench.echo", Blob, Blob)
SWALLOW: Method[Blob, Blob] = Method("bench.swallow", Blob, Blob, CHUNK_FRAME_MAX)
