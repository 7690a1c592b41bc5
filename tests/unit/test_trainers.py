"""Trainers that come and go while their run's state is being loaded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from node.run_records import Records
from node.trainer_part import round_result
from node.trainers import Trainers
from protocols.modelsync.part import Attachment, Outcome
from shoal.errors import ClientError
from shoal.learn.exact import state_root
from shoal.run_client import RunClient, Shape
from shoal.runs import Attach, LaneBody, RoundResult
from shoal.shared import SharedVector
from tests.unit.test_modelsync_driver import SHARDS, SIGNERS, certify, prepare


class Slow:
    """A ModelSync whose members give a quarter of a state, and then nothing."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    async def attach(self, attachment: Attachment) -> None:
        self.runs.append(attachment.run)

    async def join(self, run: str, lane: int, round_: int, target: Any, progress: Any) -> None:
        progress(1, 4)
        await trio.sleep_forever()

    async def leave(self, run: str, *, keep: Any = None) -> None:
        self.runs.remove(run)

    def state_of(self, run: str, lane: int) -> None:
        return None

    def members(self, run: str) -> list[Any]:
        return []

    contributions = members

    def failure_of(self, run: str) -> str:
        return ""

    def waiting_for(self, run: str, lane: int) -> list[Any]:
        return []


async def in_place(work: Callable[[], Any], /) -> Any:
    return work()


def body() -> Attach:
    memory = [SharedVector(4) for _ in range(3)]
    names = [vector.name for vector in memory]
    root = state_root(memory[1].array).hex()
    return Attach(os.getpid(), [LaneBody(4, 4)], names[0], names[1:], [root], rounds=3)


async def test_a_trainer_that_hangs_up_in_a_download_may_come_again(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: object
) -> None:
    sync: Any = Slow()
    records = Records(tmp_path, sync)
    trainers = Trainers(
        records, sync, member=SIGNERS[0].peer, traffic=lambda: (0, 0), off_loop=in_place
    )
    trainers.nursery = nursery
    for _ in range(2):
        scope = trio.CancelScope()

        async def attach(scope: trio.CancelScope = scope) -> None:
            with scope:
                await trainers.attach("run", body())

        nursery.start_soon(attach)
        await trio.sleep(1)
        assert records.view(records.get("run")).loading == 0.25
        scope.cancel()
        await trio.sleep(1)
        run = records.view(records.get("run"))
        assert (run.state, run.loading) == ("failed", None)
        assert "went away" in run.error
        assert sync.runs == []
    nursery.cancel_scope.cancel()


def test_what_a_round_measured_reaches_the_trainer() -> None:
    certificate = certify(prepare(0), SHARDS)
    outcome = Outcome(certificate, bytes_in=1, bytes_out=2, seconds=3.0, rate=4.0)
    result = round_result(1, 0, outcome)
    assert (result.bytes_in, result.bytes_out, result.seconds, result.rate) == (1, 2, 3.0, 4.0)


def test_too_little_shared_memory_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ClientError, match="shared memory"):
        RunClient("run", Shape([LaneBody(4, 4)]))


def test_an_outcome_is_not_taken_twice_when_a_submit_was_lost() -> None:
    class Daemon:
        def call(self, *_: object, **__: object) -> RoundResult:
            return RoundResult("committed", 3)

    daemon: Any = Daemon()
    part = RunClient("run", Shape([LaneBody(4, 4)]), client=daemon)
    part.lanes[0].round = 3
    assert part.outcome(0).round == 3
    part.lanes[0].round = 4
    with pytest.raises(ClientError, match="never began"):
        part.outcome(0)
    part.leave(finished=False)
