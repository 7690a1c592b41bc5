"""The control server: routes on the unix socket and, if configured, on a loopback port.

Who may ask is decided by a guard per listener: the peer's uid on the socket, web.py on the port.
"""

import os
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from node.control.api import (
    BUSY_RETRY_S,
    Api,
    ErrorBody,
    ErrorReply,
    Event,
    Events,
    Raw,
    Upgrade,
    error_reply,
    status_of,
)
from node.control.http import Connection, Head, HungUp
from node.control.web import Forbidden, Keys, check_web
from wire.errors import Busy, DeadlineExceeded, ShoalError, UsageError
from wire.faults import root_cause

CONNECTIONS_MAX = 128  # both listeners; when all are taken, the longest idle one gives way
DRAIN_S = 0.5  # seconds for replies and streams in progress when the daemon stops
BACKLOG = 512  # connections not yet accepted: a burst of clients, not an error
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
_log = structlog.get_logger("control")

Guard = Callable[[Head], None]  # raises ShoalError to refuse


@dataclass(eq=False)
class _Client:
    scope: trio.CancelScope
    idle: bool = True


class ControlServer:
    """Answers the routes of one `Api` until cancelled."""

    def __init__(self, api: Api, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self._api = api
        self._connections_max = connections_max
        self._clients: dict[_Client, None] = {}  # in order: idle the longest first
        self._replying = 0
        self._quiet = trio.Event()

    async def serve_unix(
        self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on a unix socket, mode 0600, for this user and root only."""
        listener = open_unix(path)
        try:
            task_status.started()
            await self._listen(listener, _same_user, _let_pass)
        finally:
            _remove(path)

    async def serve_tcp(
        self,
        host: str,
        port: int,
        keys: Keys,
        *,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on a loopback port; `started` gets the port (which was chosen if 0 was asked)."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        link = trio.socket.socket(family, socket.SOCK_STREAM)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            await link.bind((host, port))
            link.listen(BACKLOG)
        except OSError as error:
            link.close()
            raise UsageError(
                f"http.listen: cannot listen on {host}:{port}: {error.strerror}",
                hint="choose another port, or 0",
            ) from error
        bound: int = link.getsockname()[1]
        task_status.started(bound)
        guard = partial(check_web, keys=keys, port=bound)
        await self._listen(trio.SocketListener(link), lambda _: None, guard)

    async def drain(self) -> None:
        """Wait a moment for replies and streams in progress; the daemon is about to stop."""
        with trio.move_on_after(DRAIN_S):
            while self._replying:
                self._quiet = trio.Event()
                await self._quiet.wait()

    async def _listen(
        self,
        listener: trio.SocketListener,
        admit: Callable[[trio.SocketStream], None],
        guard: Guard,
    ) -> None:
        async def serve(stream: trio.SocketStream) -> None:
            await self._serve(stream, admit, guard)

        await trio.serve_listeners(serve, [listener])

    async def _serve(
        self, stream: trio.SocketStream, admit: Callable[[trio.SocketStream], None], guard: Guard
    ) -> None:
        link = Connection(stream)
        client = _Client(trio.CancelScope())
        try:
            with client.scope:
                try:
                    admit(stream)
                    self._take_in(client)
                except ShoalError as error:
                    await _refuse(link, error)
                    return
                while await self._turn(link, client, guard):
                    pass
        except HungUp:
            return
        finally:
            self._clients.pop(client, None)
            await trio.aclose_forcefully(stream)

    def _take_in(self, client: _Client) -> None:
        if len(self._clients) >= self._connections_max:
            idle = next((other for other in self._clients if other.idle), None)
            if idle is None:
                raise Busy(f"{len(self._clients)} clients are being served", hint="try again soon")
            self._clients.pop(idle)
            idle.scope.cancel()
        self._clients[client] = None

    async def _turn(self, link: Connection, client: _Client, guard: Guard) -> bool:
        """Serve one request; False when the connection is over."""
        try:
            head = await link.read()
        except ShoalError as error:
            await _refuse(link, error)
            return False
        if head is None:
            return False
        client.idle = False
        keep = await self._answer(link, head, guard)
        client.idle = True
        self._clients.pop(client, None)
        self._clients[client] = None  # idle since now: last in the order
        return keep and link.reuse()

    async def _answer(self, link: Connection, head: Head, guard: Guard) -> bool:
        """Run the handler and send what it returns; stop both when the client goes away."""
        keep = False
        upgrade: Upgrade | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await link.hear_hangup()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                upgrade = await self._reply(link, head, guard)
                keep = upgrade is None
            except HungUp:
                keep = False
            nursery.cancel_scope.cancel()
        if upgrade is not None:  # only now: `watch` has let go of the stream
            await _switch(link, upgrade)
        return keep

    async def _reply(self, link: Connection, head: Head, guard: Guard) -> Upgrade | None:
        """Send the reply, unless it is a change of protocol."""
        self._replying += 1
        try:
            result = await self._handle(head, guard)
            if isinstance(result, Upgrade):
                return result
            if isinstance(result, Events):
                await link.stream(result, _last_event)
            else:
                await _send(link, result)
            return None
        finally:
            self._replying -= 1
            if not self._replying:
                self._quiet.set()

    async def _handle(self, head: Head, guard: Guard) -> object:
        try:
            guard(head)
            route, params = self._api.find(head.request.method, head.request.path)
            return await route.handler(replace(head.request, params=params))
        except Exception as error:
            return _said(error)


def _said(error: Exception) -> ErrorReply:
    """Turn whatever a handler raised into the one shape; a bug is logged and told as such."""
    cause = root_cause(error)  # a nursery of the handler may have wrapped it
    if isinstance(cause, trio.TooSlowError):
        cause = DeadlineExceeded("the work took too long")
    if isinstance(cause, ShoalError):
        return error_reply(cause)
    _log.error("control.bug", exc_info=error)
    return ErrorReply(ErrorBody("internal", f"a bug: {error!r}"[:500], "`shoal logs` has more"))


def _last_event(error: Exception) -> Event:
    return Event(_said(error), name="error")


async def _send(link: Connection, result: object) -> None:
    match result:
        case Raw():
            await link.reply_raw(result)
        case ErrorReply(error):
            await _send_error(link, result, status_of(error.code), {})
        case None:
            await link.reply(204, b"", {})
        case _:
            body = msgspec.json.encode(result)
            await link.reply(200, body, {"Content-Type": "application/json"})


async def _switch(link: Connection, upgrade: Upgrade) -> None:
    """Run the other protocol to its end; the connection goes with it."""
    try:
        stream, ahead = await link.switch(upgrade.protocol)
        await upgrade.run(stream, ahead)
    except UsageError as error:
        await _refuse(link, error)
    except HungUp:
        return
    except Exception as error:  # a boundary: one client's connection
        _log.error("control.bug", exc_info=error)


async def _send_error(
    link: Connection, reply: ErrorReply, status: int, headers: dict[str, str]
) -> None:
    fields = {"Content-Type": "application/json", **headers}
    if status == 429:
        fields["Retry-After"] = str(BUSY_RETRY_S)
    if status == 401:
        fields["WWW-Authenticate"] = "Bearer"
    await link.reply(status, msgspec.json.encode(reply), fields)


async def _refuse(link: Connection, error: ShoalError) -> None:
    """Say why and let the client read it; the connection ends here."""
    await _send_error(link, error_reply(error), status_of(error.code), {"Connection": "close"})
    await link.linger()


def open_unix(path: Path) -> trio.SocketListener:
    """Listen on a unix socket, mode 0600, also when its path is over the kernel's 107 bytes.

    The socket of a daemon that was killed is replaced: the caller holds the directory's lock.
    """
    try:
        mode = path.lstat().st_mode
        if not (stat.S_ISSOCK(mode) or stat.S_ISLNK(mode)):
            raise UsageError(f"{path} is in the way: it is not a socket", hint=f"move {path} away")
        path.unlink()
    except FileNotFoundError:
        pass
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        link.bind(f"/proc/self/fd/{folder}/{path.name}")
        path.chmod(0o600)  # before listen: until then nobody can connect
        link.listen(BACKLOG)
    except OSError as error:
        link.close()
        raise UsageError(f"cannot open the control socket {path}: {error.strerror}") from error
    finally:
        os.close(folder)
    return trio.SocketListener(trio.socket.from_stdlib_socket(link))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _same_user(stream: trio.SocketStream) -> None:
    packed = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    check_uid(_UCRED.unpack(packed)[1])


def check_uid(uid: int) -> None:
    """Let in this process's own user and root. Raises Forbidden."""
    if uid not in (os.getuid(), 0):
        raise Forbidden(f"user {uid} may not use the daemon of user {os.getuid()}")


def _let_pass(_: Head) -> None:
    """The socket's file mode and `_same_user` have decided already."""
