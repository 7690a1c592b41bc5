"""Shoal for scripts: `shoal.connect()` is a typed client of the running daemon.

What is named here is the public API. The asynchronous client (trio), averaging (numpy) and the
trainer (torch) are imported when they are first used, so that `import shoal` stays cheap.
"""

import importlib
from typing import TYPE_CHECKING

from shoal import errors
from shoal.client import Client, connect
from shoal.errors import ApiError, ClientError, DaemonUnreachable, TimedOut
from shoal.rpc_api import RpcError
from shoal.run_options import run_options

if TYPE_CHECKING:
    from shoal.async_client import AsyncClient, connect_async
    from shoal.deal import Deal, DealSampler
    from shoal.rounds import join
    from shoal.run_client import RunClient
    from shoal.trainer import Trainer

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "DaemonUnreachable",
    "Deal",
    "DealSampler",
    "RpcError",
    "RunClient",
    "TimedOut",
    "Trainer",
    "connect",
    "connect_async",
    "errors",
    "join",
    "run_options",
]

_LATER = {
    "AsyncClient": "shoal.async_client",
    "connect_async": "shoal.async_client",
    "Deal": "shoal.deal",
    "DealSampler": "shoal.deal",
    "RunClient": "shoal.run_client",
    "Trainer": "shoal.trainer",
    "join": "shoal.rounds",
}


def __getattr__(name: str) -> object:
    """Import the heavier parts when they are asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
