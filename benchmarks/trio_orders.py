"""How a child with an event loop answers orders (benchmarks/orders.py)."""

import json
import sys
from collections.abc import Awaitable, Callable

import trio

from benchmarks.orders import Answer, say


async def obey(orders: object) -> None:
    """Answer orders, each by the method of `orders` with its name, until the input ends."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        order = json.loads(line)
        act: Callable[..., Awaitable[Answer]] = getattr(orders, order.pop("order"))
        try:
            say(await act(**order))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})
