"""Errors of everything below node/: whose fault it is, and who must act.

The control API and the CLI turn them into `{"error": {"code", "message", "hint"}}` and exit codes.
`shoal/` has errors of its own (it imports nothing of ours); `node/` maps one to the other.
"""


class ShoalError(Exception):
    """Base class. `hint` tells a person what to do; `exit_code` is the CLI's status."""

    code: str = "failed"
    hint: str = ""
    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class UsageError(ShoalError):
    """The caller's fault: a bad flag, ticket or configuration."""

    code = "usage"
    exit_code = 2


class NotFound(ShoalError):
    """What was asked for does not exist here."""

    code = "not_found"


class Busy(ShoalError):
    """There is no room for more now; in `retry_after_s` seconds there may be, if that is known."""

    code = "busy"
    retry_after_s: float | None = None

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class PeerError(ShoalError):
    """A remote broke the protocol: score it, never crash."""

    code = "peer_fault"


class BadMessage(PeerError):
    """Its bytes are not a message, or are over a limit."""

    code = "bad_message"


class PeerUnreachable(ShoalError):
    """No connection to the peer could be made, or it broke."""

    code = "unreachable"


class DeadlineExceeded(ShoalError):
    """The peer did not answer in time."""

    code = "deadline"
    exit_code = 4


class RemoteError(ShoalError):
    """The peer answered with an error; `code` is the one it sent."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


# Errors that mean the same at the caller as at the server, whose handler raised them. Others would
# lie: a `PeerUnreachable` of the server is about somebody else than the peer that we called.
_ARRIVE_TYPED: tuple[type[ShoalError], ...] = (UsageError, NotFound, Busy)
_typed: dict[str, type[RemoteError]] = {
    kind.code: type(f"Remote{kind.__name__}", (RemoteError, kind), {}) for kind in _ARRIVE_TYPED
}


def typed_error(code: str, message: str, *, retry_after_s: float | None = None) -> RemoteError:
    """Return what a peer's error is here: a RemoteError, and also the NotFound, Busy or
    UsageError that the peer raised.
    """
    error = _typed.get(code, RemoteError)(code, message)
    if isinstance(error, Busy):
        error.retry_after_s = retry_after_s
    return error
