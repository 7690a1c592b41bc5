"""The processes of one `torchrun`: rank 0 speaks to the daemon, the others do what it says.

Inside DDP or FSDP2 the steps of all processes go together, so everybody knows when something is
due; what it is, only rank 0 knows. It says so by broadcasts of four numbers, and parameters follow
as broadcasts of their own. Nothing is pickled. Alone, all of this does nothing.

A thread of gloo's lets go of a tensor some time after the broadcast returned, and takes the GIL
for that. If Python ends meanwhile, CPython stops it inside a C++ destructor, and the process
aborts: "terminate called without an active exception". FSDP2's caches keep the group, and so its
threads, beyond `destroy_process_group`. Hence `settle`, before a user's script may end.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# torch.distributed is only partly annotated.

import sys
import time
from enum import IntEnum

import numpy as np
import torch
import torch.distributed as dist

from shoal.learn.strategy import Vector

TEXT_BYTES_MAX = 4096  # of a folder, or of the peer IDs of 64 members
PIECE_ELEMENTS = 1 << 24  # 64 MiB at a time: what a broadcast needs on the device at most
SETTLE_S = 2.0  # seconds; a thread that has not run for so long will not run soon
REFERENCES = 2  # as sys.getrefcount has it: from a list, and its own argument


class Order(IntEnum):
    """What rank 0 says."""

    JOINED = 0  # whether optimizers go back to what a checkpoint has; then two texts
    READ = 1  # start, stop: take part in gathering
    WRITE = 2  # start, elements: receive them and set them
    EVALUATE = 3
    WAIT = 4  # still here: the network's round takes long
    DONE = 5  # next step that something is due, rounds, global step offset
    SAVE = 6
    FAILED = 7


class Ranks:
    """The default process group, if there is one; `is_first` is true for who speaks."""

    def __init__(self) -> None:
        is_together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.size = dist.get_world_size() if is_together else 1
        self.rank = dist.get_rank() if is_together else 0
        is_cpu = not is_together or "gloo" in str(dist.get_backend())
        self._device = torch.device("cpu" if is_cpu else f"cuda:{torch.cuda.current_device()}")
        self._lent: list[torch.Tensor] = []  # what gloo's threads may still hold

    @property
    def is_first(self) -> bool:
        """True for the process that speaks to the daemon; true if there is only one."""
        return self.rank == 0

    def tell(self, order: Order, *numbers: int) -> None:
        """Rank 0: say what all have to do."""
        if self.size > 1:
            line = torch.tensor([order, *numbers, 0, 0, 0][:4], dtype=torch.int64)
            self._broadcast(line.to(self._device))

    def hear(self) -> tuple[Order, int, int, int]:
        """Others: wait for what rank 0 says."""
        line = torch.zeros(4, dtype=torch.int64, device=self._device)
        self._broadcast(line)
        order, first, second, third = (int(number) for number in line.tolist())
        return Order(order), first, second, third

    def share(self, values: Vector) -> None:
        """Rank 0 sends `values` to all; the others' `values` are overwritten."""
        if self.size == 1:
            return
        for start in range(0, len(values), PIECE_ELEMENTS):
            here = torch.from_numpy(values[start : start + PIECE_ELEMENTS])
            there = here.to(self._device)
            self._broadcast(there)
            if not self.is_first:
                here.copy_(there)

    def share_text(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        data = np.zeros(TEXT_BYTES_MAX, dtype=np.uint8)
        encoded = text.encode()[:TEXT_BYTES_MAX]
        data[: len(encoded)] = np.frombuffer(encoded, dtype=np.uint8)
        numbers = data.astype(np.float32)
        self.share(numbers)
        return numbers.astype(np.uint8).tobytes().rstrip(b"\0").decode()

    def settle(self) -> None:
        """Wait until gloo's threads have let go of what was broadcast."""
        deadline = time.monotonic() + SETTLE_S
        while self._held() and time.monotonic() < deadline:
            time.sleep(0.001)
        self._lent = []

    def _broadcast(self, tensor: torch.Tensor) -> None:
        dist.broadcast(tensor, src=0)
        if self._device.type == "cpu":
            self._lent = [*self._held(), tensor]

    def _held(self) -> list[torch.Tensor]:
        """Return the tensors that others than our list refer to.

        C++ holds a reference to the Python object, all its own together: it gives that back with
        the GIL, so when it is seen to be gone the thread is through. We keep the object, as else
        that thread would free it, which takes the GIL again.
        """
        lent = self._lent
        return [lent[i] for i in range(len(lent)) if sys.getrefcount(lent[i]) > REFERENCES]
