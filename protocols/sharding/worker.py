"""The process that computes one stage: `python -m protocols.sharding.worker`.

Holds the weights of layers [start, end) and the KV caches of its sessions, within limits. It talks
to its daemon only, over an inherited socket, and ends with it. Needs torch.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from protocols.sharding import child
from protocols.sharding.sampling import pick
from protocols.sharding.stage import Stage, load_stage
from protocols.sharding.wire import (
    Done,
    Opened,
    Output,
    Sampling,
    Step,
    WorkerAsk,
    WorkerClose,
    WorkerOpen,
    WorkerStep,
    worker_ask_decoder,
)
from wire.errors import BadMessage, Busy, NotFound
from wire.faults import OnFailure

SESSIONS_MAX = 32  # sessions at a time; each is a Python object and a few tensors per layer
TOKENS_MAX = 1 << 15  # tokens reserved by all sessions: 1.3 GB for 30 layers of SmolLM2's heads
PEER_SHARE = 2  # one peer gets a half of either at most, so that others find room beside it
IDLE_S = 300.0  # seconds without a step after which a session's room may go to another


@dataclass
class _Session:
    peer: str
    cache: DynamicCache
    max_tokens: int
    sampling: Sampling
    last_used: float
    position: int = 0


class Worker:
    """Answers the daemon's requests, one at a time."""

    def __init__(
        self, stage: Stage, *, tokens_max: int = TOKENS_MAX, now: Callable[[], float]
    ) -> None:
        self._stage = stage
        self._tokens_max = tokens_max
        self._now = now
        self._sessions: dict[int, _Session] = {}

    def answer(self, request: WorkerAsk) -> Opened | Output | Done:
        """Do what is asked. Raises Busy, NotFound or BadMessage; other sessions are untouched."""
        match request:
            case WorkerOpen():
                return self._open(request)
            case WorkerStep(number, step):
                return self._step(number, step)
            case WorkerClose(number):
                self._sessions.pop(number, None)
                return Done()

    def _open(self, request: WorkerOpen) -> Opened:
        now = self._now()
        for number, session in list(self._sessions.items()):
            if now - session.last_used > IDLE_S:
                del self._sessions[number]
        mine = [s.max_tokens for s in self._sessions.values() if s.peer == request.peer]
        reserved = sum(session.max_tokens for session in self._sessions.values())
        if len(self._sessions) >= SESSIONS_MAX:
            raise Busy(f"all {SESSIONS_MAX} sessions of this stage are in use")
        if reserved + request.max_tokens > self._tokens_max:
            free = self._tokens_max - reserved
            raise Busy(f"room for {free} tokens is left, {request.max_tokens} were asked for")
        if len(mine) >= SESSIONS_MAX // PEER_SHARE:
            raise Busy(f"one peer gets {SESSIONS_MAX // PEER_SHARE} sessions of this stage")
        if sum(mine) + request.max_tokens > self._tokens_max // PEER_SHARE:
            free = self._tokens_max // PEER_SHARE - sum(mine)
            raise Busy(
                f"room for {free} tokens is left to you, {request.max_tokens} were asked for"
            )
        self._sessions[request.session] = _Session(
            request.peer, self._stage.new_cache(), request.max_tokens, request.sampling, now
        )
        return Opened()

    def _step(self, number: int, step: Step) -> Output:
        session = self._sessions.get(number)
        if session is None:
            raise NotFound("the session is not known here (any more)")
        if step.position != session.position:
            raise BadMessage(f"step at {step.position}, the session is at {session.position}")
        inputs = self._inputs(step)
        end = session.position + inputs.shape[1]
        if end > session.max_tokens:
            raise BadMessage(f"step to {end} tokens, {session.max_tokens} were reserved")
        # Then some layers have seen the step, and some have not.
        with OnFailure(lambda: self._sessions.pop(number)):
            result = self._stage.forward(inputs, session.cache, session.position)
        session.position, session.last_used = end, self._now()
        if not self._stage.is_last:
            return Output(end, result.numpy().tobytes(), None)
        return Output(end, b"", pick(result[0], session.sampling, end) if step.sample else None)

    def _inputs(self, step: Step) -> Tensor:
        """Return token ids [1, n] or hidden [1, n, hidden], checked against the model."""
        config = self._stage.config.get_text_config(decoder=True)
        if self._stage.is_first:
            if not step.tokens or max(step.tokens) >= config.vocab_size:
                raise BadMessage(f"no tokens, or one over the vocabulary of {config.vocab_size}")
            return torch.tensor([step.tokens], dtype=torch.long)
        row_bytes = 4 * int(config.hidden_size)
        if not step.hidden or len(step.hidden) % row_bytes:
            raise BadMessage(f"{len(step.hidden)} B are not rows of {row_bytes} B")
        received = torch.frombuffer(bytearray(step.hidden), dtype=torch.float32)
        # Copied: memory of another alignment than the one-process model's rounds differently.
        return received.clone().view(1, -1, int(config.hidden_size))


def main() -> None:
    """Load the stage, then serve the daemon."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="socket to the daemon")
    parser.add_argument("--folder", type=Path, required=True, help="where the parts are")
    parser.add_argument("--start", type=int, required=True)
    parser.add_argument("--end", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1, help="more are slower on small machines")
    options = parser.parse_args()
    daemon = child.Daemon(options.fd)
    torch.set_num_threads(options.threads)
    stage = load_stage(options.folder, options.start, options.end)
    worker = Worker(stage, now=time.monotonic)
    daemon.serve(worker_ask_decoder, worker.answer)


if __name__ == "__main__":
    main()
