"""What ends the processes of a lab whose own process was killed.

Started with a pipe as its input: each line is the inode of a network namespace. When the pipe ends
(the lab closed it, or died) every process in those namespaces is killed. The namespaces themselves
go by themselves (see namespaces.py).
"""

import os
import signal
import sys
import time

TRIES = 50  # a process that forks while it is being killed leaves a child for the next try
PAUSE_S = 0.05


def inside(inodes: set[int]) -> list[int]:
    """Return the processes in these namespaces."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}/ns/net").st_ino in inodes:
                found.append(int(entry))
        except OSError:  # it has just ended
            continue
    return found


def reap(inodes: set[int]) -> None:
    """Kill all processes in these namespaces, and return when none is left."""
    for _ in range(TRIES):
        pids = inside(inodes)
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    reap({int(line) for line in sys.stdin})
