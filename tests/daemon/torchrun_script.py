"""Two processes of one machine train one model, under DDP or FSDP2, as one member of a run.

    torchrun --nproc-per-node 2 torchrun_script.py ddp|fsdp

Each writes to the folder in OUT what its model ends with, gathered.

It ends by `os._exit`, as `docs/trainer.md` says of FSDP2 on gloo: gloo's threads outlive
`destroy_process_group` (caches of DTensor keep the mesh) and may still hold tensors of the last
gather. One that wants the GIL for them while Python ends aborts the process.
"""

import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from shoal.pytorch.staging import Staging
from shoal.trainer import Trainer


def make(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 15), torch.nn.Tanh(), torch.nn.Linear(15, 1)
    )  # 15 rows: shards of unequal size
    if kind == "fsdp":
        fully_shard(model[0])
        fully_shard(model)
        return model
    return DistributedDataParallel(model) if kind == "ddp" else model


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: list[int]) -> float:
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.standard_normal((32, 8), dtype=np.float32))
    loss = torch.nn.functional.mse_loss(model(x), x.sum(dim=1, keepdim=True))
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    kind, rank = sys.argv[1], dist.get_rank()
    model = make(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    evaluated: list[float] = []

    def evaluate() -> float:
        with torch.no_grad():
            evaluated.append(float(model(torch.ones(2, 8)).sum()))
        return evaluated[-1]

    options = json.loads(os.environ["OPTIONS"])
    with Trainer(model, optimizer, evaluate=evaluate, checkpoint_s=0.0, **options) as trainer:
        assert trainer.members
        while not trainer.done:
            trainer.step(step(model, optimizer, [rank, trainer.global_step]))
        staging = Staging(model)
        end = {
            "parameters": staging.read(0, staging.elements)().tobytes().hex(),
            "names": [part.name for part in staging.parts],
            "root": trainer.root,
            "member": trainer.member,
            "round": trainer.round,
            "step": trainer.global_step,
            "evaluated": len(evaluated),
            "moments": float(sum(s["step"] for s in optimizer.state.values())),
        }
    Path(os.environ["OUT"], f"{rank}.json").write_text(json.dumps(end))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    assert threading.enumerate() == [threading.main_thread()], "a thread of ours at exit"
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
