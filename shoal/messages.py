"""Requests to bytes and replies to structs: what the two clients share. No I/O."""

import os
from pathlib import Path
from typing import TypeVar, cast

import msgspec

from shoal.errors import ApiError, ClientError

T = TypeVar("T")


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    hint: str = ""


class _ErrorReply(msgspec.Struct):
    error: _ErrorBody


def home_dir(home: str | os.PathLike[str] | None) -> Path:
    """Return the state directory: `home`, else $SHOAL_HOME, else the XDG state directory."""
    if home is not None:
        return Path(home)
    if chosen := os.environ.get("SHOAL_HOME"):
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "shoal"


def socket_path(home: str | os.PathLike[str] | None, socket: str | os.PathLike[str] | None) -> Path:
    """Return the control socket: `socket`, else $SHOAL_SOCKET, else the one in the home."""
    if socket is not None:
        return Path(socket)
    if home is None and (chosen := os.environ.get("SHOAL_SOCKET")):
        return Path(chosen)
    return home_dir(home) / "control.sock"


def encode_body(body: object) -> bytes:
    """Encode a request's JSON body; None is no body. Raises ClientError if it cannot be JSON."""
    try:
        return b"" if body is None else msgspec.json.encode(body)
    except UnicodeEncodeError as error:  # a file's name, for one
        raise ClientError(f"{error.object[:200]!a} is not UTF-8", hint="rename it") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ClientError(f"this cannot be JSON: {error}") from error


def decode_reply(data: bytes, type_: type[T]) -> T:
    """Parse a reply (`bytes`: as it came). Raises ClientError if it is of another version."""
    if type_ is bytes:
        return cast(T, data)
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.DecodeError as error:
        raise ClientError(
            f"the daemon's answer was not understood: {error}",
            hint="is it another version? compare `shoal --version` with `shoal status`",
        ) from error


def api_error(status: int, data: bytes) -> ApiError:
    """Turn an error reply into an exception; bytes that are none get the HTTP status."""
    try:
        error = msgspec.json.decode(data, type=_ErrorReply).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ApiError(f"the daemon answered HTTP {status}", code="http", status=status)
    return ApiError(error.message, code=error.code, status=status, hint=error.hint)
