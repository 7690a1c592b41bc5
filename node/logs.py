"""The daemon's log: structlog events to stderr, a rotated file, and the last lines in memory.

The lines in memory feed `shoal logs` through the control API. Libraries that log through the
standard library (libp2p) come in at WARNING and above, by our format; their handlers are removed.
"""

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog
import trio

from node.broadcast import Broadcast
from shoal.api import LogLine

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["logfmt", "json"]

LINES_MAX = 1000  # lines kept in memory: what a person scrolls back over
LINE_MAX_CHARS = 8192  # characters of one line; a traceback fits, a runaway repr does not
FILE_MAX_BYTES = 8 * 1024 * 1024  # the file is moved to daemon.log.1 over this; so at most twice it
_LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_OURS = ("node", "protocols", "dht", "crdt", "wire", "shoal")


def level_number(level: str) -> int:
    """Return the rank of a level's name; unknown names rank as info."""
    return _LEVELS.get(level, 20)


class LogBook:
    """Where rendered lines go. Safe to use from any thread."""

    def __init__(self, path: Path | None, *, stream: TextIO | None) -> None:
        self.lines: deque[LogLine] = deque(maxlen=LINES_MAX)
        self.fresh = Broadcast[LogLine]()
        self._path = path
        self._stream = stream
        self._file: int | None = None
        self._lock = threading.Lock()
        self._number = 0
        self._trio: trio.lowlevel.TrioToken | None = None

    def attach(self) -> None:
        """From now on readers of `fresh` get new lines; call it inside trio."""
        self._trio = trio.lowlevel.current_trio_token()

    def detach(self) -> None:
        """Trio is about to end."""
        self._trio = None

    def write(self, level: str, text: str) -> None:
        """Take one rendered line. A full disk or a closed terminal never raises here."""
        # Half a surrogate pair (a file name that is not UTF-8) would end every reader's stream.
        data = text[:LINE_MAX_CHARS].encode("utf-8", "replace")
        with self._lock:
            self._number += 1
            line = LogLine(self._number, level, data.decode())
            self.lines.append(line)
            if self._stream is not None:
                try:
                    self._stream.write(line.line + "\n")
                    self._stream.flush()
                except (OSError, ValueError):
                    self._stream = None
            self._append(data + b"\n")
        if self._trio is not None:
            try:
                self._trio.run_sync_soon(self.fresh.send, line)
            except trio.RunFinishedError:
                self._trio = None

    def _append(self, data: bytes) -> None:
        if self._path is None:
            return
        try:
            if self._file is not None and os.fstat(self._file).st_size > FILE_MAX_BYTES:
                os.close(self._file)
                self._file = None
                self._path.replace(self._path.with_name(self._path.name + ".1"))
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
            os.write(self._file, data)
        except OSError:
            return  # no space, no log; the daemon goes on

    # What structlog calls, by the name of the level.
    def debug(self, text: str) -> None:
        """Take a line of level debug."""
        self.write("debug", text)

    def info(self, text: str) -> None:
        """Take a line of level info."""
        self.write("info", text)

    def warning(self, text: str) -> None:
        """Take a line of level warning."""
        self.write("warning", text)

    def error(self, text: str) -> None:
        """Take a line of level error."""
        self.write("error", text)

    msg = info
    warn = warning
    critical = exception = fatal = error


class _FromLibraries(logging.Handler):
    """Hands records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record of a library."""
        log = structlog.get_logger()
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        error = {"exc_info": record.exc_info} if record.exc_info else {}
        log.log(min(record.levelno, 40), text[:LINE_MAX_CHARS], source=record.name, **error)


def open_logs(
    path: Path | None,
    *,
    level: Level = "info",
    format_: Format = "logfmt",
    stream: TextIO | None = sys.stderr,
) -> LogBook:
    """Send all logging of this process to a new book and return it."""
    book = LogBook(path, stream=stream)
    as_json = structlog.processors.JSONRenderer(default=str)
    as_logfmt = structlog.processors.LogfmtRenderer(
        key_order=["timestamp", "level", "event"], bool_as_flag=False
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _plain_values,
            as_json if format_ == "json" else as_logfmt,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level_number(level)),
        logger_factory=lambda *_: book,
        cache_logger_on_first_use=False,
    )
    tame_libraries(level)
    return book


def tame_libraries(level: Level) -> None:
    """Remove all handlers of the standard library's logging and put ours in their place.

    Ours log at `level`, everybody else's libraries at WARNING. libp2p sets up its own when it is
    imported: call this again after that.
    """
    root = logging.getLogger()
    root.handlers[:] = [_FromLibraries()]
    root.setLevel(logging.WARNING)
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name in _OURS:
        logging.getLogger(name).setLevel(level_number(level))


def _plain_values(_: object, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """Make every value one that both renderers write on one line."""
    plain = (str, int, float, bool, type(None))
    return {k.replace(" ", "_"): v if isinstance(v, plain) else str(v) for k, v in event.items()}
