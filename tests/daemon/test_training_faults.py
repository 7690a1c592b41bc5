"""Real daemons and trainers that die or freeze in the middle of a round.

The whole matrix is simulated (tests/sim/test_fault_matrix.py); these are its main cells with
processes, sockets and shared memory.
"""

import signal
import time
from collections.abc import Iterator

import pytest

from benchmarks.learn_swarm import Node, Swarm, everybody, step, swarm, wait_until
from benchmarks.orders import Answer
from protocols.modelsync.ballots import order_of
from shoal.runs import certificates_of, get_run
from wire.ids import PeerId

SIZE, ELEMENTS = 4, 2_000_000
PATIENCE_S = 60.0  # for anything: other work shares the machine with this
COMMIT_S = 10.0  # what a fault may cost, many times the goal: benchmarks/learn_faults.py has that
HEAD_START_S = 0.03  # into the round, before the fault


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with swarm(tmp_path_factory.mktemp("faults"), SIZE) as made:
        yield made


def begin(four: Swarm, run: str) -> None:
    """Attach all, and have one round: it makes the electorate."""
    four.attach(run, ELEMENTS)
    everybody(four.children, "fill", value=1.0)
    assert {answer["members"] for answer in step(four.children)} == {SIZE}


def proposer(four: Swarm, run: str, round_: int) -> Node:
    return min(four.nodes, key=lambda node: order_of(run, 0, round_, 0, node.peer))


def strike(four: Swarm, victim: Node, *pids: int, number: int) -> list[Answer]:
    """Begin a round, send a signal in the middle of it, return how it ended for the others."""
    others = [node for node in four.nodes if node is not victim]
    for value, node in enumerate(four.nodes):
        node.child.ask("fill", value=float(value))
    at = time.monotonic() + 0.1
    for node in four.nodes:
        node.child.tell("step", at=at)
    time.sleep(at + HEAD_START_S - time.monotonic())
    for pid in pids:
        Node.send(pid, number)
    struck = time.monotonic()
    answers = [node.child.wait(PATIENCE_S) for node in others]
    assert {answer["outcome"] for answer in answers} == {"committed"}
    assert len({answer["root"] for answer in answers}) == 1
    assert max(answer["ended"] for answer in answers) - struck < COMMIT_S
    return answers


def check_mean(four: Swarm, run: str, victim: Node, round_: int) -> None:
    """The survivors hold the exact mean of what the certificate's contributors brought."""
    others = [node for node in four.nodes if node is not victim]
    client = others[0].client
    wait_until(
        "the certificate is in the store",
        lambda: any(c.round == round_ for c in certificates_of(client, run)),
    )
    certificate = next(c for c in certificates_of(client, run) if c.round == round_)
    values = {node.peer: float(value) for value, node in enumerate(four.nodes)}
    brought = [values[PeerId(peer)] for peer in certificate.contributors]
    assert victim.peer not in certificate.members or len(brought) == SIZE
    for node in others:
        mean = node.child.ask("mean")
        assert mean["is_even"]
        assert mean["first"] == pytest.approx(sum(brought) / len(brought), rel=1e-6)


def test_the_proposer_is_killed_with_its_trainer_and_comes_back(four: Swarm) -> None:
    begin(four, "proposer")
    victim = proposer(four, "proposer", 1)
    strike(four, victim, victim.pid, victim.child.pid, number=signal.SIGKILL)
    victim.kill()
    check_mean(four, "proposer", victim, 1)
    four.restart(victim)
    back = victim.child.ask("attach", run="proposer", elements=ELEMENTS, min_members=SIZE)
    assert back["round"] == 2
    others = [node.child for node in four.nodes if node is not victim]
    victim.child.tell("step", weight=0.0, is_new=True)
    answers = everybody(others, "step")
    answers.append(victim.child.wait(PATIENCE_S))
    assert len({answer["root"] for answer in answers}) == 1
    four.leave()


def test_a_member_is_frozen_and_catches_up_when_it_thaws(four: Swarm) -> None:
    begin(four, "frost")
    victim = next(n for n in four.nodes if n is not proposer(four, "frost", 1))
    try:
        strike(four, victim, victim.pid, victim.child.pid, number=signal.SIGSTOP)
        check_mean(four, "frost", victim, 1)
    finally:
        for pid in (victim.pid, victim.child.pid):
            Node.send(pid, signal.SIGCONT)
    victim.child.wait(PATIENCE_S)
    wait_until(
        "all are at one round",
        lambda: len({child.ask("hash")["round"] for child in four.children}) == 1,
        within_s=PATIENCE_S,
    )
    assert len({child.ask("hash")["root"] for child in four.children}) == 1
    four.leave()


def test_a_trainer_is_killed_and_its_daemon_lives(four: Swarm) -> None:
    begin(four, "trainer")
    victim = four.nodes[0]
    strike(four, victim, victim.child.pid, number=signal.SIGKILL)
    wait_until(
        "the daemon tells",
        lambda: get_run(victim.client, "trainer").state in ("failed", "stopped"),
        within_s=PATIENCE_S,
    )
    victim.train()
    assert all(node.client.status() for node in four.nodes)
