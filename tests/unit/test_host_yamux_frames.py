"""Yamux frames: as the specification has them, in any pieces, and nothing else."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.host import yamux_frames
from node.host.yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    FrameReader,
)
from wire.errors import BadMessage


def frame(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    """A frame written from the specification, not with our own code."""
    return struct.pack(">BBHII", 0, kind, flags, stream, length) + body


def test_a_conversation_is_read_as_it_was_meant() -> None:
    conversation = (
        frame(WINDOW_UPDATE, SYN, 1, 0)
        + frame(DATA, 0, 1, 5, b"hello")
        + frame(WINDOW_UPDATE, ACK, 2, 4096)
        + frame(DATA, FIN, 1, 3, b"bye")
        + frame(DATA, SYN | FIN, 3, 0)
        + frame(PING, SYN, 0, 77)
        + frame(PING, ACK, 0, 78)
        + frame(WINDOW_UPDATE, RST, 2, 0)
        + frame(GO_AWAY, 0, 0, 1)
    )
    said = list(FrameReader().feed(conversation))
    assert said == [
        yamux_frames.Opened(1),
        yamux_frames.Data(1, memoryview(b"hello")),
        yamux_frames.Credit(2, 4096),
        yamux_frames.Data(1, memoryview(b"bye")),
        yamux_frames.Finished(1),
        yamux_frames.Opened(3),
        yamux_frames.Finished(3),
        yamux_frames.Pinged(77),
        yamux_frames.Nothing(),
        yamux_frames.Reset(2),
        yamux_frames.GoneAway(1),
    ]


@pytest.mark.parametrize(
    "bad", [b"\x01" + bytes(11), b"\x00\x04" + bytes(10), b"\x00\x00" + bytes(10)]
)
def test_what_is_not_yamux_is_refused(bad: bytes) -> None:
    with pytest.raises(BadMessage):
        list(FrameReader().feed(bad))


def read_all(pieces: list[bytes]) -> tuple[list[object], bool]:
    reader, said = FrameReader(), list[object]()
    try:
        for piece in pieces:
            for event in reader.feed(piece):
                last = said[-1] if said else None
                if (
                    isinstance(event, yamux_frames.Data)
                    and isinstance(last, yamux_frames.Data)
                    and last.stream == event.stream
                ):
                    whole = memoryview(bytes(last.data) + event.data)
                    said[-1] = yamux_frames.Data(event.stream, whole)
                else:
                    said.append(event)
    except BadMessage:
        return said, False
    return said, True


frames_or_noise = st.lists(
    st.builds(
        lambda kind, flags, stream, body: frame(kind, flags, stream, len(body), body),
        st.integers(0, 3),
        st.integers(0, 15),
        st.integers(0, 4),
        st.binary(max_size=20),
    )
    | st.binary(max_size=30),
    max_size=6,
).map(b"".join)


@given(frames_or_noise, st.lists(st.integers(0, 100), max_size=8))
def test_any_bytes_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    whole, whole_is_good = read_all([data])
    cut, cut_is_good = read_all(pieces)
    assert whole_is_good == cut_is_good
    assert not whole_is_good or whole == cut
