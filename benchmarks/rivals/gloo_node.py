"""gloo (torch.distributed) as a child that answers orders. Run by the Python of its environment.

`python -m benchmarks.rivals.gloo_node RANK PEERS PORT ELEMENTS`. Nothing in it is encrypted, and a
process that dies ends the group: it is the limit for speed, not a rival.
"""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from benchmarks.orders import Answer, answer_orders, say

GROUP_S = 60


def main(rank: int, peers: int, port: int, elements: int) -> None:
    """Join the group, then obey until the input ends."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, peers, rank == 0, timeout=timedelta(seconds=GROUP_S))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=peers)
    tensor = torch.empty(elements)

    def step(at: float = 0.0) -> Answer:
        tensor.fill_(rank)
        time.sleep(max(0.0, at - time.monotonic()))
        began = time.perf_counter()
        dist.all_reduce(tensor)
        tensor.div_(peers)
        assert float(tensor[-1]) == sum(range(peers)) / peers
        return {"seconds": time.perf_counter() - began, "ended": time.monotonic()}

    say({})
    answer_orders({"step": step})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
