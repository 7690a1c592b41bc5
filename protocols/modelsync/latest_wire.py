"""Wire messages of modelsync about states: who holds which, and its bytes for who joins late."""

from protocols.modelsync.wire import Ask, Certificate, Data, Elements, Hash, Round
from wire.codec import CHUNK_FRAME_MAX, Message
from wire.ports import Method


class Latest(Message, frozen=True):
    """The state before `round`, its hash, and the certificate of the round that led to it."""

    round: Round
    root: Hash
    elements: Elements  # of the state
    certificate: Certificate | None = None


class StatePart(Message, frozen=True):
    """First `latest` alone, then bytes of the state, raw float32."""

    latest: Latest | None
    data: Data


LATEST = Method("modelsync.latest", Ask, Latest)
STATE = Method("modelsync.state", Ask, StatePart, CHUNK_FRAME_MAX)
