"""Errors that the client raises. The command line turns `exit_code` into its status."""

_EXIT_CODES = {"usage": 2, "deadline": 4}  # by error code of the control API; anything else is 1


class ClientError(Exception):
    """Base class: what failed, its stable `code`, and what a person can do (`hint`)."""

    code: str = "failed"
    hint: str = ""
    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class DaemonUnreachable(ClientError):
    """No daemon answers on the control socket."""

    code = "no_daemon"
    hint = "start it with `shoal up`, or name it with --home DIR or --socket PATH"
    exit_code = 3


class UsageError(ClientError):
    """What was asked for cannot be."""

    code = "usage"
    exit_code = 2


class HungUp(ClientError):
    """The daemon stopped, or was killed, before its answer was complete."""

    hint = "`shoal status` shows whether it runs, `shoal logs` may say why it stopped"


class TimedOut(ClientError):
    """The daemon did not answer in time."""

    code = "deadline"
    exit_code = 4


class ApiError(ClientError):
    """The daemon answered with an error; `code` is its code, `status` the HTTP status."""

    def __init__(self, message: str, *, code: str, status: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.status = status
        self.exit_code = _EXIT_CODES.get(code, 1)
