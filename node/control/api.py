"""What a control route is: the request it gets, what it may return, and the table of all routes.

Area files (core, runs, models, openai) add their routes to one `Api`; the server in `server.py`
answers them on the unix socket and, if configured, on a loopback port. No I/O here.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import unquote

import msgspec
import trio

from wire.errors import NotFound, ShoalError, UsageError

T = TypeVar("T")

BUSY_RETRY_S = 1  # seconds; what Retry-After says: a round or a generation takes about that long

STATUS = {
    "usage": 400,
    "unauthorised": 401,
    "forbidden": 403,
    "not_allowed": 403,
    "not_found": 404,
    "unknown_method": 404,
    "method": 405,
    "request_timeout": 408,
    "too_large": 413,
    "wrong_proof": 422,
    "refused": 409,
    "busy": 429,
    "unreachable": 502,
    "peer_fault": 502,
    "bad_message": 502,
    "hop_lost": 502,
    "worker_gone": 502,
    "no_route": 503,
    "unhealthy": 503,
    "unavailable": 503,
    "clock": 503,
    "deadline": 504,
    "disk": 507,
    "quota": 507,
    "store_full": 507,
    "store_failed": 507,
}


class MethodNotAllowed(ShoalError):
    """The path exists, but not with this method."""

    code = "method"
    exit_code = 2


@dataclass(frozen=True)
class Request:
    """One request. `params` come from the path, `query` from behind the question mark."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict[str, str])
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    def read(self, type_: type[T]) -> T:
        """Parse the JSON body. UsageError names the path of what is wrong."""
        try:
            return msgspec.json.decode(self.body or b"{}", type=type_)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise UsageError(f"request body: {error}") from error

    def number(
        self, name: str, default: float, *, least: float = 0.0, most: float = 86_400.0
    ) -> float:
        """Read a number from the query, within bounds."""
        text = self.query.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError as error:
            raise UsageError(f"query {name}={text[:32]!r} is not a number") from error
        if not least <= value <= most:  # also refuses NaN
            raise UsageError(f"query {name}={text[:32]} is not in [{least:g}, {most:g}]")
        return value


@dataclass(frozen=True)
class Event:
    """One server-sent event. `data` is anything msgspec encodes; a str is sent as it is."""

    data: object
    name: str = ""


@dataclass(frozen=True)
class Events:
    """A reply that goes on: each event, or those of a list together, is sent when it is yielded."""

    source: AsyncIterator[Event | list[Event]]


@dataclass(frozen=True)
class Raw:
    """A reply in some other content type than JSON, with headers of its own."""

    body: bytes
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Upgrade:
    """The connection goes over to another protocol; `run` has it until it returns.

    `run` gets the stream and the bytes that the client has sent ahead.
    """

    protocol: str
    run: Callable[[trio.abc.Stream, bytes], Awaitable[None]]


Reply = msgspec.Struct | list[msgspec.Struct] | Events | Raw | None
# Covariant in practice: a handler may return list[PeerRow], which is no list[msgspec.Struct].
Handler = Callable[[Request], Awaitable[object]]


@dataclass(frozen=True)
class Route:
    """One declared route: what the OpenAPI document says and what the server calls."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type | None
    reply: object
    events: bool
    segments: tuple[str, ...]

    def match(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        """Return the path's parameters if `segments` fit this route."""
        if len(segments) != len(self.segments):
            return None
        params: dict[str, str] = {}
        for mine, given in zip(self.segments, segments, strict=True):
            if mine.startswith("{"):
                params[mine[1:-1]] = unquote(given)
            elif mine != given:
                return None
        return params


class Api:
    """The table of routes. A literal segment wins over a `{parameter}` in the same place."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        summary: str,
        body: type | None = None,
        reply: object = None,
        events: bool = False,
    ) -> None:
        """Declare a route such as `/v1/runs/{run}/round`.

        `body` and `reply` are the types of the JSON documents (for the OpenAPI document; the
        handler reads the body itself with `request.read`). `events` says that it answers with a
        stream of server-sent events, each holding a `reply`.
        """
        route = Route(method, path, handler, summary, body, reply, events, _segments(path))
        taken = any(r.method == method and r.path == path for r in self.routes)
        assert not taken, f"{method} {path} is declared twice"
        self.routes.append(route)
        self.routes.sort(key=lambda r: [s.startswith("{") for s in r.segments])

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Return the route and its path parameters. Raises NotFound or MethodNotAllowed."""
        segments = _segments(path)
        allowed: list[str] = []
        for route in self.routes:
            params = route.match(segments)
            if params is None:
                continue
            if route.method == method:
                return route, params
            allowed.append(route.method)
        if allowed:
            raise MethodNotAllowed(f"{method} is not allowed here; {', '.join(allowed)} is")
        raise NotFound(f"no route {path[:64]!r}", hint="GET /v1/openapi.json lists all routes")


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.strip("/").split("/"))


def status_of(code: str) -> int:
    """Return the HTTP status of an error code."""
    return STATUS.get(code, 500)


class ErrorBody(msgspec.Struct, frozen=True):
    """What is said about one error."""

    code: str
    message: str
    hint: str = ""


class ErrorReply(msgspec.Struct, frozen=True):
    """The one shape of all errors: `{"error": {"code", "message", "hint"}}`."""

    error: ErrorBody


def error_reply(error: ShoalError) -> ErrorReply:
    """Say an error in the API's shape."""
    return ErrorReply(ErrorBody(error.code, str(error), error.hint))
