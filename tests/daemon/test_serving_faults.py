"""Real daemons whose stages die or freeze in the middle of an answer: it goes on, and the same.

An entry and four hosts, two of each half of a tiny model; the simulated matrix of such faults is in
tests/sim/test_sharding_failover.py, a hundred random ones are `make soak-answer`.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import answer_models
from benchmarks.answer_kill import Questions, Watch
from benchmarks.answer_swarm import NAME, Asked, Serving, Span, serving, workers_of
from benchmarks.learn_swarm import Node, wait_until
from shoal import models
from shoal.audits import audits
from tests.daemon.processes import run

TOKENS = 60
HIT_AT = 20  # tokens into the answer
HALVES: list[Span] = [(0, 2), (0, 2), (2, 4), (2, 4)]
BACK_S = 90.0  # for a host to be there again; other work shares the machine with this
FROZEN_S = 10.0  # a frozen peer is noticed in 2.5 s on a free machine
HEALED_S = 30.0  # 10 s on a free one

Active = dict[Span, Node]


@pytest.fixture(scope="module")
def questions() -> Questions:
    return Questions(answer_models.tiny(), TOKENS, random.Random(3))


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    with serving(folder, answer_models.tiny(), HALVES) as made:
        yield made


def answer_with_a_fault(
    nodes: Serving, questions: Questions, fault: Callable[[Active], None], *, replaced: int = 1
) -> Asked:
    """Ask, let something happen to the stages at work, compare with the unsharded answer."""
    prompt, expected = questions.next()
    watch = Watch(nodes)

    def on_piece(count: int) -> None:
        if count == HIT_AT:
            fault(watch.active())

    asked = nodes.ask(prompt, TOKENS, on_piece=on_piece)
    assert asked.text.strip() == expected
    assert asked.trace is not None
    assert asked.trace.replaced_hops >= replaced
    return asked


def await_hosts(nodes: Serving) -> None:
    wait_until(
        "every host has its worker again",
        lambda: all(workers_of(node) for node in nodes.hosts),
        within_s=BACK_S,
    )
    nodes.await_hosts()


def kill_workers(node: Node) -> None:
    for pid in workers_of(node):
        os.kill(pid, signal.SIGKILL)


def test_an_honest_answer_passes_its_audit_and_everybody_hears_of_it(five: Serving) -> None:
    command = ("model", "audit", NAME, "--now", "--json")
    done = run(five.entry.home, *command, timeout_s=BACK_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # One of each half, and another if a busy one was replaced on the way.
    assert {(stage["start"], stage["end"]) for stage in found} == set(HALVES)
    assert all((s["state"], len(s["auditors"])) == ("passed", 1) for s in found)
    assert all(stage["peer"] not in stage["auditors"] for stage in found)
    peers = {stage["peer"] for stage in found}
    other, me = five.hosts[0].client, five.entry.client.id().peer
    wait_until(
        "it is told", lambda: len(audits(other, NAME).audited) == len(peers), within_s=BACK_S
    )
    rows = audits(other, NAME).audited
    assert {row.peer for row in rows} == peers
    assert all((row.passed_by, row.failed_by) == ([me], []) for row in rows)


def test_a_daemon_is_killed_in_mid_answer(five: Serving, questions: Questions) -> None:
    killed = list[Node]()

    def fault(active: Active) -> None:
        killed.append(active[2, 4])
        os.kill(active[2, 4].pid, signal.SIGKILL)

    answer_with_a_fault(five, questions, fault)
    [victim] = killed
    victim.kill()
    wait_until("its workers die with it", lambda: not workers_of(victim), within_s=BACK_S)
    five.restart(victim)
    await_hosts(five)  # it hosts what it was told to, also after a restart


def test_both_stages_workers_are_killed_at_once(five: Serving, questions: Questions) -> None:
    def fault(active: Active) -> None:
        for node in active.values():
            kill_workers(node)

    answer_with_a_fault(five, questions, fault, replaced=2)
    await_hosts(five)  # their daemons start them again


def test_a_daemon_freezes_in_mid_answer(five: Serving, questions: Questions) -> None:
    frozen = list[int]()

    def fault(active: Active) -> None:
        frozen.extend([active[0, 2].pid, *workers_of(active[0, 2])])
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)

    try:
        asked = answer_with_a_fault(five, questions, fault)
    finally:
        for pid in frozen:
            Node.send(pid, signal.SIGCONT)
    assert asked.longest_gap_s < FROZEN_S
    await_hosts(five)


def test_blocks_without_a_replica_are_taken_by_a_node_with_room(
    tmp_path: Path, questions: Questions
) -> None:
    with serving(tmp_path, answer_models.tiny(), [(0, 2), (2, 4)], pinned=False) as nodes:
        killed = list[tuple[Node, float]]()

        def fault(active: Active) -> None:
            node = next(iter(active.values()))
            os.kill(node.pid, signal.SIGKILL)
            killed.append((node, time.monotonic()))

        answer_with_a_fault(nodes, questions, fault)  # it waits for the new host
        [(victim, at)] = killed
        wait_until("the model is whole again", lambda: nodes.model().ready, within_s=HEALED_S)
        assert time.monotonic() - at < HEALED_S
        gone = victim.peer
        there = {stage.peer for stage in nodes.model().stages if stage.state == "ready"}
        assert there - {gone}
        assert any(model.name == NAME for model in models.models(nodes.entry.client))
