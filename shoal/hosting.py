"""What this node hosts of models, for scripts and for the CLI: `shoal host` and `shoal unhost`."""

from urllib.parse import quote

import msgspec

from shoal.client import Client
from shoal.models import Model


class HostRequest(msgspec.Struct, frozen=True):
    """Host blocks [start, end) of a model here; `end` 0: those that the swarm needs most.

    `memory_bytes`: within so much, its share for sessions included; 0: what the node offers.
    """

    start: int = 0
    end: int = 0
    memory_bytes: int = 0


def host(
    client: Client, name: str, *, start: int = 0, end: int = 0, memory_bytes: int = 0
) -> Model:
    """Host a part of a model on this node from now on, also after a restart."""
    body = HostRequest(start, end, memory_bytes)
    return client.call("PUT", _path(name), body, reply=Model)


def unhost(client: Client, name: str) -> Model:
    """Host nothing of a model on this node any more, also if the swarm asks for it."""
    return client.call("DELETE", _path(name), reply=Model)


def _path(name: str) -> str:
    return f"/v1/served/{quote(name, safe='')}/host"
