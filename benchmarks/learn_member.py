"""A trainer as a child that answers orders: what `shoal.Trainer` does, with numbers for a model.

`python -m benchmarks.learn_member HOME`: it speaks to the daemon of that state directory through
`shoal.run_client`, as every trainer does. Times are taken here, from the call that submits a
contribution to the moment when the mean is in the shared memory.
"""

import hashlib
import sys
import time
from typing import Any

import numpy as np

import shoal
from benchmarks.orders import Answer, answer_orders, say
from shoal.learn.exact import state_root
from shoal.run_client import RunClient, Shape
from shoal.runs import LaneBody

STATE = 4096  # elements that replicas keep: what is timed is averaging, not the hash of a model
WAIT_S = 60.0


def normal(seed: int, elements: int) -> Any:
    """Normal numbers, float32, as the rivals have them."""
    return np.random.default_rng(seed).standard_normal(elements, dtype=np.float32)


class Member:
    """The orders, a method each."""

    def __init__(self, home: str) -> None:
        self.client = shoal.connect(home)
        self.part: RunClient | None = None
        self.weight = 1.0

    @property
    def run(self) -> RunClient:
        """The run that we take part in."""
        assert self.part is not None, "attached"
        return self.part

    def attach(self, run: str, elements: int, *, state: int = STATE, **shape: Any) -> Answer:
        """Join a run; the state begins as zeros."""
        began = time.perf_counter()
        self.part = RunClient(
            run, Shape(lanes=[LaneBody(elements, state)], **shape), client=self.client
        )
        self.part.attach()
        return {
            "member": self.part.member,
            "round": self.part.lanes[0].round,
            "source": self.part.source,
            "seconds": time.perf_counter() - began,
        }

    def fill(self, seed: int | None = None, value: float = 0.0) -> Answer:
        """Put a contribution into the exchange buffer: normal numbers, or one value."""
        buffer = self.run.contribution(0)
        buffer[:] = value if seed is None else normal(seed, len(buffer))
        return {}

    def step(
        self, at: float = 0.0, weight: float = 1.0, is_new: bool = False, patience_s: float = WAIT_S
    ) -> Answer:
        """One round, begun at a moment of the monotonic clock; the seconds that it took."""
        part = self.run
        time.sleep(max(0.0, at - time.monotonic()))
        began, until = time.perf_counter(), time.monotonic() + patience_s
        result = part.submit(0, weight, is_new=is_new, wait_s=5.0)
        while result.outcome == "waiting":
            if time.monotonic() > until:
                return {"outcome": "waiting", "seconds": time.perf_counter() - began}
            result = part.outcome(0, wait_s=5.0)
        seconds, ended = time.perf_counter() - began, time.monotonic()
        answer = {
            "outcome": result.outcome,
            "seconds": seconds,
            "ended": ended,
            "round": result.round,
            "attempt": result.attempt,
            "members": len(result.members),
            "bytes_in": result.bytes_in,
            "bytes_out": result.bytes_out,
        }
        if result.outcome == "committed":
            mean, spare = part.contribution(0), part.spare(0)
            spare[: len(mean)] = mean[: len(spare)]
            part.advance(0, result.round + 1)
            answer["root"] = part.lanes[0].root
        else:
            part.fetch(0, at_least=result.at_least, root=result.root)
        return answer

    def steps(self, count: int, pause_s: float = 0.0, **options: Any) -> Answer:
        """So many rounds one after the other; the time of each from the end of the one before."""
        ends = [time.monotonic()]
        for _ in range(count):
            time.sleep(pause_s)
            self.fill(value=1.0)
            ends.append(self.step(**options)["ended"])
        return {"ends": ends}

    def mean(self) -> Answer:
        """Hash, first value and distinct values of what is in the exchange buffer."""
        buffer = self.run.contribution(0)
        return {
            "sha256": hashlib.sha256(buffer.data).hexdigest(),
            "first": float(buffer[0]),
            "is_even": bool((buffer == buffer[0]).all()),
        }

    def error(self, seeds: list[int]) -> Answer:
        """Rms distance of the exchange buffer from the exact mean of normal contributions."""
        buffer = self.run.contribution(0)
        exact = sum(normal(seed, len(buffer)).astype(np.float64) for seed in seeds) / len(seeds)
        return {"rms": float(np.sqrt(np.mean((buffer - exact) ** 2)))}

    def hash(self) -> Answer:
        """The root of the state that we hold."""
        return {"root": state_root(self.run.state(0)).hex(), "round": self.run.lanes[0].round}

    def leave(self, finished: bool = False) -> Answer:
        """Leave the run."""
        self.run.leave(finished=finished)
        return {}


def main(home: str) -> None:
    """Obey until the input ends."""
    member = Member(home)
    say({})
    names = ("attach", "fill", "step", "steps", "mean", "error", "hash", "leave")
    answer_orders({name: getattr(member, name) for name in names})


if __name__ == "__main__":
    main(sys.argv[1])
