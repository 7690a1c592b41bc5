"""Threads of gloo's may hold what was broadcast; `settle` waits for them, and not for longer."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shoal.pytorch.ranks import SETTLE_S, Order, Ranks

HOLD_S = 0.2


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    """Yield rank 0 of a real gloo group of one that believes that there is another rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    ranks = Ranks()
    ranks.size = 2
    yield ranks
    dist.destroy_process_group()


def test_settling_waits_for_a_thread_that_still_holds_a_tensor(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[torch.Tensor] = []
    released = threading.Event()

    def release() -> None:
        released.set()
        held.clear()

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        held.append(tensor)
        threading.Timer(HOLD_S, release).start()

    monkeypatch.setattr(dist, "broadcast", broadcast)
    ranks.tell(Order.WAIT)
    assert not released.is_set()
    ranks.settle()
    assert released.is_set()
    assert not held


def test_gloo_lets_go_of_what_it_has_sent(ranks: Ranks) -> None:
    for _ in range(5):
        ranks.tell(Order.WAIT)
        ranks.share_text("text")
    begun = time.monotonic()
    ranks.settle()
    assert time.monotonic() - begun < SETTLE_S / 2


def test_a_tensor_that_is_never_given_back_does_not_hold_up_the_end(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[torch.Tensor] = []
    monkeypatch.setattr("shoal.pytorch.ranks.SETTLE_S", HOLD_S)
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: held.append(tensor))
    ranks.tell(Order.WAIT)
    begun = time.monotonic()
    ranks.settle()
    assert HOLD_S <= time.monotonic() - begun < SETTLE_S


def test_alone_there_is_nothing_to_settle() -> None:
    alone = Ranks()
    alone.tell(Order.WAIT)
    begun = time.monotonic()
    alone.settle()
    assert time.monotonic() - begun < HOLD_S
