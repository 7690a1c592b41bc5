"""hivemind as a child that answers orders. Run by the Python of its own environment.

`python -m benchmarks.rivals.hivemind_node PEERS ELEMENTS COMPRESSION [INITIAL_PEER ...]`; its first
line has its address. One averager over libp2p (its own Go daemon, encrypted), with the time-outs
that its Optimizer gives it: 15 s for a chunk, 60 s for an all-reduce.
"""

import logging
import multiprocessing
import os
import sys
import time
from typing import Any

import numpy as np
import torch
from hivemind import DHT, DecentralizedAverager
from hivemind.compression import NoCompression, Uniform8BitQuantization

from benchmarks.orders import Answer, answer_orders, say

MATCHMAKING_S = 5.0  # at most: a full group goes on at once
CHUNK_S, REDUCE_S = 15.0, 60.0  # as hivemind.Optimizer sets them by default
STEP_S = 120.0
COMPRESSIONS = {"float32": NoCompression(), "uniform8": Uniform8BitQuantization()}


class Averager(DecentralizedAverager):
    """The averager itself, which also says when its all-reduce began and how long it took."""

    reduce_s: Any
    began: Any

    async def _aggregate_with_group(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        self.began.value = time.monotonic()
        try:
            return await super()._aggregate_with_group(*args, **kwargs)
        finally:
            self.reduce_s.value = time.perf_counter() - began


class Node:
    """The orders, a method each."""

    def __init__(self, peers: int, elements: int, compression: str, initial: list[str]) -> None:
        self.dht = DHT(
            host_maddrs=["/ip4/127.0.0.1/tcp/0"],
            initial_peers=initial,
            start=True,
            use_relay=False,
            use_auto_relay=False,
        )
        self.tensor = torch.zeros(elements)
        Averager.reduce_s = multiprocessing.Value("d", 0.0)
        Averager.began = multiprocessing.Value("d", 0.0)
        self.averager = Averager(
            [self.tensor],
            self.dht,
            start=True,
            prefix="bench",
            target_group_size=peers,
            min_group_size=2,
            min_matchmaking_time=MATCHMAKING_S,
            request_timeout=1.0,
            compression=COMPRESSIONS[compression],
            next_chunk_timeout=CHUNK_S,
            allreduce_timeout=REDUCE_S,
        )

    def fill(self, seed: int, value: float | None = None) -> Answer:
        """Put numbers into the tensor: normal ones of a seed, or one value everywhere."""
        with self.averager.get_tensors() as tensors:
            if value is None:
                tensors[0].copy_(_normal(seed, tensors[0].numel()))
            else:
                tensors[0].fill_(value)
        return {}

    def step(self, at: float = 0.0) -> Answer:
        """One averaging, begun at a moment of the monotonic clock; the seconds that it took."""
        time.sleep(max(0.0, at - time.monotonic()))
        began = time.perf_counter()
        try:
            group: Any = self.averager.step(timeout=STEP_S, allow_retries=False)
            error = ""
        except Exception as failed:
            group, error = None, f"{type(failed).__name__}: {failed}"
        return {
            "seconds": time.perf_counter() - began,
            "ended": time.monotonic(),
            "reduce_s": Averager.reduce_s.value,
            "group": len(group) if group is not None else 0,
            "failure": error[:200],
        }

    def peek(self) -> Answer:
        """Tell when the last all-reduce began, if it has: on the monotonic clock, 0 if not."""
        return {"began": Averager.began.value}

    def values(self) -> Answer:
        """Distinct values in the tensor with their counts; for tensors of one value a peer."""
        with self.averager.get_tensors() as tensors:
            found, counts = np.unique(tensors[0].numpy().round(4), return_counts=True)
        return {"values": found[:16].tolist(), "counts": counts[:16].tolist()}

    def save(self, path: str) -> Answer:
        """Write the tensor to a file, to be compared."""
        with self.averager.get_tensors() as tensors:
            tensors[0].numpy().tofile(path)
        return {}

    def distance(self, seeds: list[int]) -> Answer:
        """Rms distance of the tensor from the exact mean of the normal tensors of all seeds."""
        with self.averager.get_tensors() as tensors:
            got = tensors[0].double()
        exact = sum(_normal(seed, len(got)).double() for seed in seeds) / len(seeds)
        return {"rms": float((got - exact).square().mean().sqrt())}


def _normal(seed: int, elements: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.standard_normal(elements, dtype=np.float32))


def main(peers: int, elements: int, compression: str, initial: list[str]) -> None:
    """Serve and obey until the input ends."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    node = Node(peers, elements, compression, initial)
    say({"address": str(node.dht.get_visible_maddrs()[0])})
    orders = ("fill", "step", "peek", "values", "save", "distance")
    answer_orders({name: getattr(node, name) for name in orders})
    os._exit(0)  # its own shutdown takes seconds


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
