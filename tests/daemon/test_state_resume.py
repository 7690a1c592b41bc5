"""Real daemons, all of them off at once: training goes on from checkpoints, with equal states."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from shoal.errors import ClientError
from shoal.learn.exact import state_root
from shoal.run_client import RunClient, Shape
from shoal.runs import LaneBody, get_run
from tests.daemon.processes import Daemon, daemons

ELEMENTS = 300_000  # a state of two chunks
WAIT_S = 60.0
RUN = "off-and-on"
LANE = LaneBody(contribution=ELEMENTS, state=ELEMENTS, start=0, stop=ELEMENTS)

pytestmark = pytest.mark.slow


class Trainer:
    """What a trainer does, with random numbers instead of learning."""

    def __init__(self, number: int, node: Daemon, min_members: int = 3) -> None:
        self.number = number
        shape = Shape(lanes=[LANE], min_members=min_members, patience_s=5.0)
        self.part = RunClient(RUN, shape, client=node.client)
        self.part.attach()

    @property
    def round(self) -> int:
        return self.part.lanes[0].round

    @property
    def root(self) -> str:
        assert state_root(self.part.state(0)).hex() == self.part.lanes[0].root
        return self.part.lanes[0].root

    def train(self, rounds: int) -> None:
        """Take part until `rounds` are done."""
        part, weight = self.part, 1.0
        while self.round < rounds:
            random = np.random.default_rng((self.number, self.round))
            part.contribution(0)[:] = random.standard_normal(ELEMENTS, dtype=np.float32)
            result = part.submit(0, weight)
            while result.outcome in ("waiting", ""):
                result = part.outcome(0)
            if result.outcome == "behind":
                part.fetch(0, at_least=result.at_least, root=result.root)
                weight = 0.0
            else:
                np.add(part.state(0), part.contribution(0), out=part.spare(0))
                part.advance(0, result.round + 1)
                weight = 1.0

    def end(self) -> None:
        with suppress(ClientError):
            self.part.leave(finished=False)


def together(group: list[Trainer], act: Callable[[Trainer], None]) -> None:
    threads = [threading.Thread(target=act, args=(one,), daemon=True) for one in group]
    for thread in threads:  # (an executor would wait for ever for one that hangs)
        thread.start()
    end = time.monotonic() + WAIT_S + 60.0
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)


def join_all(nodes: list[Daemon]) -> list[Trainer]:
    """Attach all; begin when each knows that all are back: who left is not waited for."""
    with ThreadPoolExecutor(len(nodes)) as threads:
        group = list(threads.map(Trainer, range(len(nodes)), nodes))
    end = time.monotonic() + WAIT_S
    while any(len(get_run(node.client, RUN).members) < len(nodes) for node in nodes):
        assert time.monotonic() < end
        time.sleep(0.05)
    return group


def start(nodes: list[Daemon]) -> None:
    ticket = nodes[0].start().client.ticket()
    for node in nodes[1:]:
        node.start("--join", ticket)
    for node in nodes:
        node.client.wait(peers=len(nodes) - 1, timeout_s=WAIT_S)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Daemon]]:
    with daemons(tmp_path, "ash", "birch", "cedar") as three:
        start(three)
        yield three


def test_after_all_were_stopped_they_go_on_where_they_were(nodes: list[Daemon]) -> None:
    group = join_all(nodes)
    together(group, lambda trainer: trainer.train(3))
    (root,) = {trainer.root for trainer in group}
    together(group, Trainer.end)  # writes the checkpoints
    for node in nodes:
        node.kill()
    start(nodes)
    group = join_all(nodes)
    assert [(t.part.source, t.round, t.root) for t in group] == [("checkpoint", 3, root)] * 3
    together(group, lambda trainer: trainer.train(5))
    assert len({trainer.root for trainer in group}) == 1
    together(group, Trainer.end)


def test_a_daemon_that_is_shut_down_has_written_what_its_trainer_had(tmp_path: Path) -> None:
    with daemons(tmp_path, "ash") as nodes:
        trainer = Trainer(0, nodes[0].start(), min_members=1)
        trainer.train(5)
        root = trainer.root
        nodes[0].client.down()
        assert nodes[0].wait() == 0
        trainer.end()
        again = Trainer(0, nodes[0].start(), min_members=1)
        assert (again.part.source, again.round, again.root) == ("checkpoint", 5, root)
        again.end()


def test_after_a_power_cut_they_go_on_from_the_latest_checkpoint_that_there_is(
    nodes: list[Daemon],
) -> None:
    """The store knows of rounds whose states nobody has any more: those are made again."""
    group = join_all(nodes)
    together(group, lambda trainer: trainer.train(4))
    for node in nodes:
        node.kill()
    for trainer in group:
        trainer.end()
    start(nodes)
    group = join_all(nodes)
    assert {t.part.source for t in group} <= {"checkpoint", "peers"}
    assert max(t.round for t in group) < 4  # written when the run began, and not for a minute
    together(group, lambda trainer: trainer.train(6))
    assert len({trainer.root for trainer in group}) == 1
    together(group, Trainer.end)


def test_who_lost_its_disk_takes_the_state_of_the_others(nodes: list[Daemon]) -> None:
    group = join_all(nodes)
    together(group, lambda trainer: trainer.train(2))
    group[2].end()
    for path in (nodes[2].home / "runs" / RUN / "checkpoint").iterdir():
        path.unlink()
    late = Trainer(2, nodes[2])
    assert (late.part.source, late.round) == ("peers", 2)
    assert late.root == group[0].root
    together([*group[:2], late], Trainer.end)
