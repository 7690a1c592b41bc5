"""Orders to a child process: one JSON object a line each way, over its standard input and output.

Every system that is measured, ours or a rival, is two such children: the same orders, the same
payloads, and an order that hangs ends in a time-out here instead of stopping the run. Only the
standard library, for rivals live in environments of their own.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

START_S = 60.0  # for the first line of a child: imports, on a machine that has other work
LINE_MAX = 1 << 20  # bytes read at a time

Answer = dict[str, Any]
Order = Callable[..., Answer]


class Failed(Exception):
    """A child did not do what it was told: it hung, died, or says why it could not."""


class Child:
    """A process that answers orders; several may be starting at the same time.

    Use it in a `with` block: it is killed at the end, also when Ctrl-C ends the block.
    """

    def __init__(
        self,
        name: str,
        argv: list[str],
        *,
        environment: dict[str, str] | None = None,
        has_children: bool = False,
    ) -> None:
        """has_children: it has a process group of its own, which is killed with it."""
        self.name, self._has_children = name, has_children
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if has_children else None,
            env={**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"},
            start_new_session=has_children,
        )
        self._buffer = b""

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @cached_property
    def hello(self) -> Answer:
        """The first line that it prints, once it is ready. Raises Failed."""
        return self._line(START_S)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def ask(self, order: str, *, timeout_s: float = 60.0, **arguments: object) -> Answer:
        """Give an order and wait for its answer. A child that failed is dead from then on."""
        self.tell(order, **arguments)
        return self.wait(timeout_s)

    def tell(self, order: str, **arguments: object) -> None:
        """Give an order; `wait` returns its answer."""
        assert self.hello is not None, "it has started"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"order": order, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"{self.name} is dead") from None

    def wait(self, timeout_s: float = 60.0) -> Answer:
        """Return the answer to the last order."""
        try:
            answer = self._line(timeout_s)
        except Failed:
            self.kill()
            raise
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer

    def finish(self, timeout_s: float = 10.0) -> None:
        """End its input and let it end by itself; kill it if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self.kill()

    def signal(self, number: int) -> None:
        """Send a signal to it, and to its children where it has a group of its own."""
        with suppress(ProcessLookupError):
            if self._has_children:
                os.killpg(self.pid, number)
            else:
                self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once; nothing happens if it has ended."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what it did not read
                    pipe.close()

    def _line(self, timeout_s: float) -> Answer:
        output = self._process.stdout
        assert output is not None
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(timeout_s):
                    raise Failed(f"{self.name} hangs: no answer for {timeout_s:g} s")
                data = os.read(output.fileno(), LINE_MAX)
                if not data:
                    raise Failed(f"{self.name} died")
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: Answer = json.loads(line)
        return answer


def say(line: Answer) -> None:
    """What a child does to answer, and to say hello."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def answer_orders(orders: dict[str, Order]) -> None:
    """What a child without an event loop does until its input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            say(orders[order.pop("order")](**order))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})
