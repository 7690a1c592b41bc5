"""The lifeline of a child process: it ends when its daemon does, also after kill -9.

The daemon holds the writing end of a pipe and writes nothing; its death closes the pipe. (The
kernel's PR_SET_PDEATHSIG watches the thread that forked, and trio forks in passing threads.)
"""

import os
import signal
import threading

ENVIRONMENT_KEY = "SHOAL_LIFELINE_FD"


def watch() -> bool:
    """Watch the lifeline in a daemon thread. False if this process was not given one."""
    text = os.environ.pop(ENVIRONMENT_KEY, "")  # not for our own children: they have no such fd
    if not text.isdigit():
        return False
    fd = int(text)
    try:
        os.set_inheritable(fd, False)
    except OSError:
        return False  # the variable came down from a parent that kept the pipe to itself
    threading.Thread(target=_wait_for_end, args=(fd,), name="lifeline", daemon=True).start()
    return True


def _wait_for_end(fd: int) -> None:
    while os.read(fd, 1):
        pass
    if os.getpgrp() == os.getpid():  # we lead a group of our own: take its members along
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
