"""Signals: the first drains the daemon, a second one ends it at once. Nothing hangs for ever."""

import os
import signal
import threading
import time

import structlog
import trio

from node.parts import Life

_log = structlog.get_logger("daemon")


async def heed_signals(life: Life) -> None:
    """The first signal drains; a second one ends the process at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        seen = 0
        async for number in signals:
            seen += 1
            if seen > 1 or life.state == "starting":
                _log.warning("stopped at once", signal=signal.Signals(number).name)
                os._exit(128 + number)
            _log.info("stopping", signal=signal.Signals(number).name)
            life.stop()


def exit_after(seconds: float) -> None:
    """End the process after so long even if the event loop hangs."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=end, name="drain-deadline", daemon=True).start()
