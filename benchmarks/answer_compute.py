# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false
# (transformers is annotated in part)
"""A child that computes a model without a daemon: whole, cut in one process, or one end of a pair.

`python -m benchmarks.answer_compute MODEL PARTS`: orders are JSON lines (orders.py). The pair is
what a split costs at least: two processes, blocking sockets, float32 rows one way and a token back.
One thread, as in a worker. Every loop ignores the end token and picks greedily.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.orders import Answer, answer_orders, say
from protocols.sharding import reference
from protocols.sharding.caches import StageCache
from protocols.sharding.stage import Stage, load_stage

LENGTH_BYTES = 4  # of a frame's head: how many rows

Advance = Callable[[Tensor], int]  # ids [1, n] -> the greedy token behind them


class Computer:
    """Holds models, and runs them when it is told to."""

    def __init__(self, model: Path, parts: Path) -> None:
        self._source, self._parts = model, parts
        self._whole: Any = None
        self._stages = list[Stage]()
        self._link: socket.socket | None = None

    def whole(self) -> Answer:
        """Load the unsharded model."""
        self._whole, _ = reference.load(self._source)
        return self.memory()

    def load(self, spans: list[tuple[int, int]]) -> Answer:
        """Load stages, from the parts that workers have."""
        self._stages = [load_stage(self._parts, start, end) for start, end in spans]
        return self.memory()

    def memory(self) -> Answer:
        """What this process holds."""
        return {"resident_bytes": resident_bytes()}

    def listen(self) -> Answer:
        """Be the second of the pair; `serve` takes the first."""
        self._link = socket.create_server(("127.0.0.1", 0))
        return {"port": self._link.getsockname()[1]}

    def connect(self, port: int) -> Answer:
        """Be the first of the pair."""
        self._link = _undelayed(socket.create_connection(("127.0.0.1", port)))
        return {}

    def serve(self) -> Answer:
        """Answer steps of one session, until the other closes it."""
        assert self._link is not None
        listening, [stage] = self._link, self._stages
        link = _undelayed(listening.accept()[0])
        cache = stage.new_cache()
        with link:
            while head := _exactly(link, LENGTH_BYTES):
                count, size = int.from_bytes(head), stage.hidden_size
                data = bytearray(_exactly(link, 4 * count * size))
                rows = torch.frombuffer(data, dtype=torch.float32).reshape(1, count, size)
                token = _greedy(_forward(stage, rows, cache)[1])
                link.sendall(token.to_bytes(8))
        return {}

    def decode(self, how: str, prompt: list[int], tokens: int) -> Answer:
        """Continue a prompt; `how`: whole, split (all stages here), or pair."""
        advance = {"whole": self._by_whole, "split": self._by_stages, "pair": self._by_pair}[how]()
        inputs = torch.tensor([prompt])
        said, at = list[int](), list[float]()
        while len(said) < tokens:
            said.append(advance(inputs))
            at.append(time.perf_counter())
            inputs = torch.tensor([[said[-1]]])
        if how == "pair" and self._link is not None:
            self._link.close()
        return {"tokens": said, "at": at}

    def _by_whole(self) -> Advance:
        model = self._whole
        cache = DynamicCache(config=model.config)

        def advance(inputs: Tensor) -> int:
            with torch.inference_mode():
                output = model(
                    input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            return _greedy(output.logits[:, -1])

        return advance

    def _by_stages(self) -> Advance:
        caches = [stage.new_cache() for stage in self._stages]

        def advance(inputs: Tensor) -> int:
            value, logits = inputs, None
            for stage, cache in zip(self._stages, caches, strict=True):
                value, logits = _forward(stage, value, cache)
            return _greedy(logits)

        return advance

    def _by_pair(self) -> Advance:
        assert self._link is not None
        link, [stage] = self._link, self._stages
        cache = stage.new_cache()

        def advance(inputs: Tensor) -> int:
            rows, _ = _forward(stage, inputs, cache)
            link.sendall(inputs.shape[1].to_bytes(LENGTH_BYTES) + rows.numpy().tobytes())
            return int.from_bytes(_exactly(link, 8))

        return advance


def resident_bytes(pid: int | str = "self") -> int:
    """Return the memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _forward(stage: Stage, value: Tensor, cache: StageCache) -> tuple[Tensor, Tensor | None]:
    """One step: hidden states, and after the last block the logits of the last row."""
    result = stage.forward(value, cache, logits=int(stage.end == stage.n_layers))
    return result.hidden, result.logits


def _greedy(logits: Tensor | None) -> int:
    assert logits is not None
    return int(logits.reshape(-1, logits.shape[-1])[-1].argmax())


def _undelayed(link: socket.socket) -> socket.socket:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def _exactly(link: socket.socket, size: int) -> bytes:
    """Read so many bytes; none at the end."""
    data = bytearray()
    while len(data) < size:
        piece = link.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)


def main(model: str, parts: str) -> None:
    """Obey until the input ends."""
    torch.set_num_threads(1)
    computer = Computer(Path(model), Path(parts))
    say({})
    names = ("whole", "load", "memory", "listen", "connect", "serve", "decode")
    answer_orders({name: getattr(computer, name) for name in names})


if __name__ == "__main__":
    main(*sys.argv[1:])
