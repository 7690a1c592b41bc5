"""A js-libp2p node as a child process: JSON lines in and out: js/peer.mjs, js/kad_peer.mjs."""

import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import trio

JS = Path(__file__).parent / "js"
INSTALLED = JS / "node_modules" / ".installed"  # made by `make test`
PATIENCE_S = 20.0

if shutil.which("node") is None:
    WHY_NOT = "Node.js is not installed"
elif not INSTALLED.exists():
    WHY_NOT = "js-libp2p is not installed; `make test` does it where npm is"
else:
    WHY_NOT = ""
needs_js = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


class JsError(Exception):
    """The js node said that a command failed."""


class JsPeer:
    """One js node. Commands are methods' names of peer.mjs; events are kept until asked for."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._number = 0
        self._sending = trio.Lock()
        self._answers: dict[int, Any] = {}
        self._changed = trio.Event()
        self.events: list[dict[str, Any]] = []
        self.peer, self.addresses = "", list[str]()

    async def read(self) -> None:
        """Take in what it says, to its end."""
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "event" in said:
                    self.events.append(said)
                else:
                    self._answers[said["id"]] = said
            self._changed.set()
            self._changed = trio.Event()

    async def do(self, name: str, **arguments: Any) -> Any:
        """Run a command; return its value. Raises JsError."""
        self._number += 1
        number = self._number
        assert self._process.stdin is not None
        line = json.dumps({"id": number, "do": name, **arguments}) + "\n"
        async with self._sending:
            await self._process.stdin.send_all(line.encode())
        with trio.fail_after(PATIENCE_S):
            while number not in self._answers:
                await self._changed.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise JsError(answer["error"])
        return answer["value"]

    async def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """Wait for an event with these fields, also one that has come before."""
        with trio.fail_after(PATIENCE_S):
            while True:
                for event in self.events:
                    if event["event"] == name and fields.items() <= event.items():
                        return event
                await self._changed.wait()

    async def until(self, name: str, wanted: object, **arguments: Any) -> None:
        """Ask until a command's answer is, or holds, what is wanted."""
        with trio.fail_after(PATIENCE_S):
            while True:
                value = await self.do(name, **arguments)
                if value == wanted or (isinstance(value, list) and wanted in value):
                    return
                await trio.sleep(0.05)

    async def publish(self, topic: str, data: bytes) -> list[str]:
        """Publish on a topic; return to whom it went."""
        return list(await self.do("publish", topic=topic, data=base64.b64encode(data).decode()))

    def heard(self, topic: str) -> list[bytes]:
        """Return the data of all messages that came on a topic."""
        return [
            base64.b64decode(event["data"])
            for event in self.events
            if event["event"] == "message" and event["topic"] == topic
        ]

    async def hears(self, topic: str, *data: bytes) -> None:
        """Wait for messages on a topic, in any order."""
        with trio.fail_after(PATIENCE_S):
            while not set(data) <= set(self.heard(topic)):
                await self._changed.wait()


@asynccontextmanager
async def js_peer(
    script: str = "peer.mjs",
    *,
    gossip: tuple[str, ...] = (),
    relay: bool = False,
    server: bool = False,
) -> AsyncIterator[JsPeer]:
    """Run a js node for the length of a block. `gossip`: only these versions of GossipSub.

    relay: it serves as a relay. server: it listens, and serves the DHT (kad_peer.mjs).
    """
    options = json.dumps(
        {"relay": relay, "server": server} | ({"gossip": gossip} if gossip else {})
    )
    command = ["node", "--import", str(JS / "node20.mjs"), str(JS / script), options]
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[trio.Process]) -> None:
            await trio.run_process(
                command, stdin=PIPE, stdout=PIPE, cwd=JS, check=False, task_status=task_status
            )

        process: trio.Process = await nursery.start(run)
        js = JsPeer(process)
        nursery.start_soon(js.read)
        ready = await js.event("ready")
        js.peer, js.addresses = ready["peer"], ready["addresses"]
        yield js
        nursery.cancel_scope.cancel()
