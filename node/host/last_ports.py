"""The ports that the system chose at the last start (HOME/ports.json), taken again if free.

So that addresses that others remember, tickets and a router's forwarding survive a restart, even
when the whole swarm restarts at once.
"""

import logging
import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

FILE_MAX_BYTES = 4096  # a few listening addresses
_Ports = dict[str, Annotated[int, Meta(ge=1, le=65535)]]
log = logging.getLogger(__name__)


def read_ports(path: Path) -> dict[str, int]:
    """Return the port of each listening multiaddr at the last start; {} if that is not known."""
    try:
        return msgspec.json.decode(path.read_bytes()[: FILE_MAX_BYTES + 1], type=_Ports)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("ports.unreadable path=%s %s", path, error)
        return {}


def write_ports(path: Path, ports: dict[str, int]) -> None:
    """Remember them. A full disk is only reported."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(msgspec.json.encode(ports))
        temporary.replace(path)
    except OSError as error:
        log.warning("ports.not_saved path=%s %s", path, error)
