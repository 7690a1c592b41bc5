"""Whatever bytes come: the server's HTTP, the clients' replies and event streams."""

import msgspec
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from node.control.api import Event
from node.control.http import QUERY_MAX, Connection, Head, HungUp, encode_event
from shoal import api as shapes
from shoal.errors import ApiError, ClientError
from shoal.messages import api_error, decode_reply
from shoal.sse import Parser
from wire.errors import ShoalError

GET = b"GET /v1/status?a=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"


async def read(data: bytes) -> Head | None:
    """What the server understands of these bytes, followed by the client's end."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(data)
    await theirs.send_eof()
    return await Connection(ours).read()


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=50).map(lambda tail: GET[:40] + tail)))
async def test_any_bytes_to_the_server_are_a_request_or_a_refusal(data: bytes) -> None:
    try:
        head = await read(data)
    except (ShoalError, HungUp):
        return
    assert head is None or head.request.path.startswith(("/", "*"))


@pytest.mark.parametrize("length", range(len(GET)))
async def test_every_truncation_of_a_request_is_an_end_or_a_refusal(length: int) -> None:
    try:
        head = await read(GET[:length])
    except (ShoalError, HungUp):
        return
    assert head is None


async def test_a_whole_request_is_read() -> None:
    head = await read(GET)
    assert head is not None
    assert (head.request.method, head.request.path) == ("GET", "/v1/status")
    assert (head.request.query, head.request.body) == ({"a": "1"}, b"abc")
    assert head.headers["host"] == "x"


async def test_too_many_query_parameters_are_refused() -> None:
    query = "&".join(f"a{n}=1" for n in range(QUERY_MAX + 1)).encode()
    with pytest.raises(ShoalError, match="not a request target"):
        await read(b"GET /x?" + query + b" HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_headers_over_the_limit_are_refused() -> None:
    with pytest.raises(ShoalError, match="not an HTTP request"):
        await read(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 100_000 + b"\r\n\r\n")


async def test_garbage_is_refused_in_one_short_line() -> None:
    with pytest.raises(ShoalError, match="not an HTTP request") as caught:
        await read(b"\xff" * 2000 + b"\r\n\r\n")
    assert len(str(caught.value)) <= 120
    assert "curl" in caught.value.hint


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_as_events_give_the_same_whole_or_in_pieces(data: bytes, size: int) -> None:
    pieces = Parser()
    found = [
        event
        for start in range(0, len(data), size)
        for event in pieces.feed(data[start : start + size])
    ]
    assert found == Parser().feed(data)


@given(st.text(st.characters(exclude_characters="\r\n"), max_size=20), st.text(max_size=60))
@example("\ud800", "")
@example("", "a file \udcff that is not UTF-8")
def test_what_the_server_encodes_the_client_reads(name: str, text: str) -> None:
    text = text.replace("\r", "")
    found = Parser().feed(encode_event(Event(text, name)))
    read = name.encode("utf-8", "replace").decode()
    assert found == [shapes.Event(read, text.encode("utf-8", "replace"))]


def test_the_name_of_an_event_is_not_that_of_the_next() -> None:
    data = encode_event(Event("a", "error")) + b": still here\n\n" + encode_event(Event("b"))
    assert Parser().feed(data) == [shapes.Event("error", b"a"), shapes.Event("", b"b")]


@given(st.binary(max_size=200))
def test_any_bytes_as_a_reply(data: bytes) -> None:
    try:
        assert isinstance(decode_reply(data, shapes.Health), shapes.Health)
    except ClientError:
        return


@given(st.binary(max_size=200))
def test_any_bytes_as_an_error(data: bytes) -> None:
    error = api_error(500, data)
    assert isinstance(error, ApiError)
    assert error.exit_code in (1, 2, 4)


def test_errors_of_the_api_keep_code_hint_and_exit_status() -> None:
    data = msgspec.json.encode({"error": {"code": "deadline", "message": "late", "hint": "wait"}})
    error = api_error(504, data)
    assert (str(error), error.code, error.hint, error.exit_code) == ("late", "deadline", "wait", 4)
