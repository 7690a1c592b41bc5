"""Telling whoever started us that we are ready: sd_notify(3), also used by `shoal up --detach`."""

import os
import socket
from contextlib import closing


def notify(state: str) -> None:
    """Send `READY=1` or `STOPPING=1` to $NOTIFY_SOCKET, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as link:
        try:
            link.setblocking(False)
            link.sendto(state.encode(), address)
        except OSError:
            return  # nobody listens any more
