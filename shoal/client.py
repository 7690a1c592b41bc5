"""The synchronous client of a running daemon: what the command line and plain scripts use.

HTTP/1.1 over the control socket with the standard library: importing it costs 60 ms, trio and
torch stay out. One connection a call, so a client may be used from several threads.
"""

import http.client
import os
import socket
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload
from urllib.parse import quote

from shoal import api, blob_api
from shoal.blob_api import (
    BLOB_TIMEOUT_S,
    add_body,
    blob_path,
    blob_pieces,
    get_body,
    get_path,
    last_blob,
)
from shoal.channels import Channel, Message, Publish, Published, Subscribe
from shoal.errors import DaemonUnreachable, HungUp, TimedOut
from shoal.messages import api_error, decode_reply, encode_body, socket_path
from shoal.reach import NetCheck
from shoal.rpc_api import RpcMethod
from shoal.sse import Parser

if TYPE_CHECKING:
    from shoal.dht import Dht
    from shoal.rpc import RpcCall, Serving
    from shoal.store import Store

T = TypeVar("T")

CALL_TIMEOUT_S = 30.0  # seconds for a reply; what may take longer says so in its call
CONNECT_TIMEOUT_S = 5.0  # seconds; a unix socket connects at once or never
_TIMEVAL = struct.Struct("ll")  # seconds, microseconds: socket(7)
READ_BYTES = 64 * 1024  # bytes asked of the socket at a time


def connect_unix(path: Path, *, timeout_s: float) -> socket.socket:
    """Connect to a unix socket, also when its path is over the kernel's 107 bytes."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A full queue of the daemon shows as EAGAIN at once if the socket has a timeout of Python's;
    # one of the kernel's makes connect wait for a place.
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(timeout_s), 0))
    folder = -1
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        link.connect(f"/proc/self/fd/{folder}/{path.name}")
        link.settimeout(timeout_s)
    except PermissionError as error:
        link.close()
        raise DaemonUnreachable(
            f"no permission to use {path}", hint="run it as the user who started the daemon"
        ) from error
    except OSError as error:
        link.close()
        raise DaemonUnreachable(f"no daemon answers on {path}") from error
    finally:
        if folder >= 0:
            os.close(folder)
    return link


class _UnixConnection(http.client.HTTPConnection):
    """The standard library's HTTP client on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CONNECT_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = connect_unix(self._path, timeout_s=CONNECT_TIMEOUT_S)


class Client:
    """A typed view of one daemon. Raises ClientError and its subclasses, nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @overload
    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        reply: type[T],
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> T: ...
    @overload
    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        reply: None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None: ...
    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        reply: type[T] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> T | None:
        """One request, one answer. `body` is JSON-encoded; the answer is parsed as `reply`."""
        with closing(_UnixConnection(self.path)) as link:
            try:
                response = _request(link, method, path, body, timeout_s)
                data = response.read()
            except TimeoutError as error:
                raise TimedOut(f"the daemon did not answer within {timeout_s:g} s") from error
            except (OSError, http.client.HTTPException) as error:
                raise HungUp("the daemon hung up") from error
            if response.status >= 400:
                raise api_error(response.status, data)
            return None if reply is None else decode_reply(data, reply)

    def events(
        self, method: str, path: str, body: object = None, *, timeout_s: float | None = None
    ) -> Generator[api.Event]:
        """Yield server-sent events until the daemon ends the stream.

        `timeout_s` bounds the silence between two events; the daemon says something every 15 s.
        An `error` event is raised as ApiError.
        """
        with closing(_UnixConnection(self.path)) as link:
            try:
                with closing(_request(link, method, path, body, timeout_s)) as response:
                    if response.status >= 400:
                        raise api_error(response.status, response.read())
                    parser = Parser()
                    while data := response.read1(READ_BYTES):
                        for event in parser.feed(data):
                            if event.name == "error":
                                raise api_error(500, event.data)
                            yield event
            except TimeoutError as error:
                raise TimedOut(f"the daemon was silent for {timeout_s:g} s") from error
            except (OSError, http.client.HTTPException) as error:
                raise HungUp("the daemon hung up") from error

    def status(self) -> api.Status:
        """Return the daemon at a glance."""
        return self.call("GET", "/v1/status", reply=api.Status)

    def id(self) -> api.Identity:
        """Return the node's peer ID, name and addresses."""
        return self.call("GET", "/v1/id", reply=api.Identity)

    def peers(self) -> list[api.Peer]:
        """Return the connected peers, nearest first."""
        return self.call("GET", "/v1/peers", reply=list[api.Peer])

    def netcheck(self) -> NetCheck:
        """Return how this node is reached, with checks that say what to do."""
        return self.call("GET", "/v1/netcheck", reply=NetCheck)

    def members(self) -> list[api.Member]:
        """Return the swarm's members, connected or not."""
        return self.call("GET", "/v1/members", reply=list[api.Member])

    def ping(
        self,
        peer: str,
        *,
        count: int = 4,
        interval_s: float = 1.0,
        timeout_s: float = 5.0,
        until_direct: bool = False,
    ) -> Iterator[api.Pong]:
        """Ping a peer (its ID, a prefix of it, or its name); yield one answer each.

        until_direct: end with the first answer that came directly.
        """
        request = api.PingRequest(peer, count, interval_s, timeout_s, until_direct)
        for event in self.events("POST", "/v1/ping", request, timeout_s=CALL_TIMEOUT_S):
            yield decode_reply(event.data, api.Pong)

    def wait(self, *, peers: int, timeout_s: float = CALL_TIMEOUT_S) -> api.Waited:
        """Wait until at least so many peers are connected. Raises with code "deadline" if not."""
        path = f"/v1/wait?peers={peers}&timeout={timeout_s:g}"
        return self.call("GET", path, reply=api.Waited, timeout_s=timeout_s + CALL_TIMEOUT_S)

    def ticket(self) -> str:
        """Return the string with which another machine joins this swarm. It is a secret."""
        return self.call("GET", "/v1/ticket", reply=api.Ticket).ticket

    def rpc(
        self, peer: str, method: str, value: object = None, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """Call a method that a program of a peer serves: one value there, one back.

        peer: its name, ID or a unique part of it. value: None, bool, int, float, str, bytes, and
        lists and dicts of them, 4 MiB at most. Raises ApiError with the code of what went wrong:
        the function's own (`shoal.RpcError`), "program_error", "unknown_method", "unavailable",
        "busy", "deadline", "unreachable".
        """
        from shoal import rpc  # only programs that call each other need it; it imports this

        return rpc.call(self.path, peer, method, value, timeout_s=timeout_s)

    def rpc_stream(
        self,
        peer: str,
        method: str,
        values: Iterable[object] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> "RpcCall":
        """Call a method with any number of values each way; use the call in a `with` block.

        `values` are sent by a thread, then that side is finished; without them use `send` and
        `finish`. Iterate over the call for the answers. `timeout_s` bounds all of it.
        """
        from shoal import rpc  # only programs that call each other need it; it imports this

        return rpc.stream(self.path, peer, method, values, timeout_s)

    def rpc_methods(self, peer: str = "") -> list[RpcMethod]:
        """Return what the programs of a peer serve, or those of this node."""
        path = f"/v1/rpc/methods?peer={quote(peer, safe='')}"
        return self.call("GET", path, reply=list[RpcMethod])

    def serve(
        self,
        functions: Mapping[str, Callable[[Any], Any]] | None = None,
        *,
        streams: Mapping[str, Callable[["RpcCall"], None]] | None = None,
        places: int = 8,
    ) -> "Serving":
        """Let peers call functions of this program, `places` calls at a time, each in a thread.

        A function of `functions` gets the caller's value and returns the answer, or yields a
        stream of them. One of `streams` gets the call, to receive and send as it likes. What they
        raise reaches the caller. Returns once they can be called; `wait()` then serves for ever.
        """
        from shoal import rpc  # only programs that call each other need it; it imports this

        return rpc.Serving(self.path, functions or {}, streams or {}, places)

    def logs(self, *, follow: bool = False, level: str = "debug") -> Iterator[api.LogLine]:
        """Yield the daemon's last log lines, then, with `follow`, the new ones."""
        path = f"/v1/logs?follow={int(follow)}&level={level}"
        for event in self.events("GET", path, timeout_s=CALL_TIMEOUT_S):
            yield decode_reply(event.data, api.LogLine)

    def config(self) -> list[api.Setting]:
        """Return every option's value and origin."""
        return self.call("GET", "/v1/config", reply=list[api.Setting])

    def health(self) -> api.Health:
        """Return how the daemon works; raises with code "unhealthy" while it is not ready."""
        return self.call("GET", "/v1/health", reply=api.Health)

    def publish(self, topic: str, data: bytes) -> Published:
        """Publish on a topic; what is over 64 KiB goes as a blob. Returns when it is on its way."""
        return self.call("POST", "/v1/channels/publish", Publish(topic, data), reply=Published)

    def subscribe(
        self,
        topic: str,
        *,
        last: int | None = None,
        since_s: float | None = None,
        authors: list[str] | None = None,
    ) -> Generator[Message]:
        """Yield the messages of a topic, until the daemon stops or the generator is closed.

        last, since_s: begin with that much of the past, as far as somebody has kept it.
        """
        body = Subscribe(topic, last, since_s, authors or [])
        for event in self.events("POST", "/v1/channels/subscribe", body, timeout_s=CALL_TIMEOUT_S):
            if event.name != "ready":
                yield decode_reply(event.data, Message)

    def channels(self) -> list[Channel]:
        """Return the topics that the daemon is subscribed to."""
        return self.call("GET", "/v1/channels", reply=list[Channel])

    def add(
        self, path: str | os.PathLike[str], *, mode: str = "copy", name: str = "", pin: bool = True
    ) -> blob_api.Blob:
        """Add a file or a folder as a blob; `blob_api.AddBlob` tells the modes."""
        body = add_body(path, mode, name, pin=pin)
        return last_blob(self.blob_events("/v1/blobs", body))

    def get(
        self,
        cid: str,
        path: str | os.PathLike[str] | None = None,
        *,
        peers: Sequence[str] = (),
        pin: bool = False,
    ) -> blob_api.Blob:
        """Fetch a blob, and write it to `path` if given. What has arrived stays if it fails."""
        body = get_body(path, peers, pin=pin)
        return last_blob(self.blob_events(get_path(cid), body))

    def blob_events(self, path: str, body: object = None) -> Iterator[blob_api.BlobProgress]:
        """Post a request about blobs; yield its progress, the last one with the result."""
        for event in self.events("POST", path, body, timeout_s=CALL_TIMEOUT_S):
            yield decode_reply(event.data, blob_api.BlobProgress)

    def read(
        self, cid: str, start: int = 0, stop: int | None = None, *, peers: Sequence[str] = ()
    ) -> bytes:
        """Return bytes `start` to `stop` (or the end) of a file; fetches only what holds them."""
        pieces = list[bytes]()
        for path, wanted in blob_pieces(cid, start, stop, peers):
            pieces.append(self.call("GET", path, reply=bytes, timeout_s=BLOB_TIMEOUT_S))
            if len(pieces[-1]) < wanted:
                break
        return b"".join(pieces)

    def blobs(self) -> blob_api.BlobList:
        """Return the blobs here, and how full it is."""
        return self.call("GET", "/v1/blobs", reply=blob_api.BlobList)

    def blob(self, cid: str) -> blob_api.BlobDetail:
        """Return one blob, and of a folder the files."""
        return self.call("GET", blob_path(cid), reply=blob_api.BlobDetail)

    def pin(self, cid: str, *, pinned: bool = True) -> blob_api.Blob:
        """Pin a blob, so that it is never collected; or let it go, see `unpin`."""
        body = blob_api.PinBlob(pinned)
        return self.call("POST", f"{blob_path(cid)}/pin", body, reply=blob_api.Blob)

    def unpin(self, cid: str) -> blob_api.Blob:
        """Let a blob go when there is no room."""
        return self.pin(cid, pinned=False)

    def rm(self, cid: str) -> blob_api.Collected:
        """Throw a blob away, pinned or not."""
        return self.call("DELETE", blob_path(cid), reply=blob_api.Collected)

    def gc(self) -> blob_api.Collected:
        """Throw away every blob that is not pinned nor in use."""
        return self.call("POST", "/v1/blobs/gc", reply=blob_api.Collected, timeout_s=BLOB_TIMEOUT_S)

    def verify(self) -> list[blob_api.Blob]:
        """Hash all blobs; return those that were wrong, and are not whole here any more."""
        last: list[blob_api.Blob] = []
        for progress in self.blob_events("/v1/blobs/verify"):
            last = progress.decayed
        return last

    @property
    def store(self) -> "Store":
        """The store that the swarm agrees on."""
        from shoal.store import Store  # only who uses it needs it

        return Store(self)

    @property
    def dht(self) -> "Dht":
        """Finding peers, providers and small values."""
        from shoal.dht import Dht  # only who uses it needs it

        return Dht(self)

    def down(self) -> None:
        """Ask the daemon to drain and stop; it answers before it does."""
        self.call("POST", "/v1/down")


def _request(
    link: _UnixConnection, method: str, path: str, body: object, timeout_s: float | None
) -> http.client.HTTPResponse:
    link.connect()
    link.sock.settimeout(timeout_s)
    data = encode_body(body)
    headers = {"Content-Type": "application/json"} if data else {}
    link.request(method, path, data or None, {**headers, "Connection": "close"})
    return link.getresponse()


def connect(
    home: str | os.PathLike[str] | None = None, socket: str | os.PathLike[str] | None = None
) -> Client:
    """Return a client of the daemon of a state directory (by default the user's own).

    `socket` names the control socket itself. $SHOAL_HOME and $SHOAL_SOCKET count as in the CLI.
    Nothing is sent yet: a daemon that is not there shows as DaemonUnreachable at the first call.
    """
    return Client(socket_path(home, socket))
