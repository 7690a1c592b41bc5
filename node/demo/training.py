"""The demo's training: four members, one killed and taken back, all equal in the end."""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node.cli.context import short
from node.demo.narrator import Narrator, check
from node.demo.swarm import DemoFailed, DemoNode, DemoSwarm
from shoal.runs import Metric, Run, certificates_of, get_run, metrics_of

CONFIG = Path(__file__).parents[2] / "configs" / "runs" / "shakespeare.toml"
RUN = "shakespeare"
MEMBERS = "run.min_members=4"  # the first round waits for everybody
KILL_AFTER_ROUND = 3  # the victim dies while the next round is under way
ROUND_WITHIN_S = 90.0  # seconds between two commits; far above what two cores need
STARTED_WITHIN_S = 60.0
COMMIT_WITHIN_S = 10.0  # a round with a dead member, from the first contribution to the commit
SAVING = 50.0  # bytes of per-step float32 averaging over bytes really sent
POLL_S = 0.25


@dataclass
class Training:
    """What the later parts of the demo need of this one."""

    directory: Path
    losses: list[Metric]


def train(swarm: DemoSwarm, narrator: Narrator, victim_name: str) -> Training:
    """Train to the end, with a death and a return on the way. Raises DemoFailed."""
    narrator.head("they train one language model on Shakespeare's plays, averaging every round")
    for node in swarm.nodes:
        _start(node)
    witness, victim = swarm.nodes[0], swarm.node(victim_name)
    _follow(witness, narrator, until=KILL_AFTER_ROUND, said=0)
    victim_id = victim.client.id().peer
    victim.kill()
    narrator.say(f"  kill -9 {victim.name} after round {KILL_AFTER_ROUND}; the others go on")
    without = _follow(witness, narrator, until=KILL_AFTER_ROUND + 1, said=KILL_AFTER_ROUND)
    _check_without(swarm, without, victim, victim_id)
    victim.up()
    _start(victim)
    narrator.say(f"  {victim.name} is started again with its old home; it catches up by itself")
    rounds = get_run(witness.client, RUN).rounds
    _follow(witness, narrator, until=rounds, said=KILL_AFTER_ROUND + 1)
    runs = [_finished(node) for node in swarm.nodes]
    signed = certificates_of(witness.client, RUN)
    back = [c.round + 1 for c in signed if victim_id in c.members and c.round > KILL_AFTER_ROUND]
    check(bool(back), f"{victim.name} takes part again before the end")
    narrator.say(f"  {victim.name} was back in round {min(back)} of {rounds}")
    _check_equal(swarm, runs, narrator)
    _check_bytes(witness, runs[0], narrator)
    return Training(Path(runs[0].directory) / "model", metrics_of(witness.client, RUN))


def _start(node: DemoNode) -> None:
    argv = [
        *(sys.executable, "-P", "-m", "node.cli.main", "--home", str(node.home)),
        *("train", str(CONFIG), "--detach", "--set", MEMBERS),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(os.environ))
    check(done.returncode == 0, f"`shoal train` starts on {node.name}: {done.stderr.strip()}")


def _wait(what: str, ready: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not ready():
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what} did not happen within {within_s:g} s")
        time.sleep(POLL_S)


def _follow(witness: DemoNode, narrator: Narrator, *, until: int, said: int) -> Metric:
    """Print a line for each round that `witness` commits, up to `until`; return the last."""
    last: list[Metric] = []
    for number in range(said + 1, until + 1):
        _wait(
            f"round {number}",
            functools.partial(_metric, witness, number, last),
            ROUND_WITHIN_S if number > 1 else ROUND_WITHIN_S + STARTED_WITHIN_S,
        )
        metric = last[-1]
        eta = "" if metric.eta_s is None else f", {metric.eta_s:3.0f} s left"
        narrator.say(
            f"  round {metric.round:2}  step {metric.step:3}  loss {metric.loss or 0:.3f}"
            f"  held-out {metric.val_loss or 0:.3f}  {metric.peers} members"
            f"  {metric.bytes_out / 1e6:.2f} MB sent, {metric.seconds:.1f} s{eta}"
        )
    return last[-1]


def _metric(node: DemoNode, number: int, found: list[Metric]) -> bool:
    run = get_run(node.client, RUN)
    check(run.state not in ("failed", "stopped"), f"the run at {node.name} goes on: {run.error}")
    found.extend(m for m in metrics_of(node.client, RUN) if m.round == number and m.peers > 0)
    return bool(found) and found[-1].round == number


def _check_without(swarm: DemoSwarm, metric: Metric, victim: DemoNode, victim_id: str) -> None:
    number = metric.round - 1  # a certificate names the round by the averagings before it
    found = [c for c in certificates_of(swarm.nodes[0].client, RUN) if c.round == number]
    check(len(found) == 1, f"round {metric.round} has one certificate")
    certificate = found[0]
    check(victim_id not in certificate.members, "the round was committed without the dead node")
    check(len(certificate.members) == len(swarm.nodes) - 1, "all the others are in that round")
    check(metric.seconds < COMMIT_WITHIN_S, f"that round took under {COMMIT_WITHIN_S:g} s")
    for node in swarm.nodes:
        if node is not victim:
            check(node.client.health().state == "ready", f"{node.name} is alive and well")


def _finished(node: DemoNode) -> Run:
    _wait(
        f"the end of the run at {node.name}",
        lambda: get_run(node.client, RUN).state in ("finished", "failed", "stopped"),
        ROUND_WITHIN_S,
    )
    run = get_run(node.client, RUN)
    check(run.state == "finished", f"the run at {node.name} is finished: {run.state} {run.error}")
    return run


def _check_equal(swarm: DemoSwarm, runs: list[Run], narrator: Narrator) -> None:
    narrator.head("SHA-256 of parameters and outer momentum, as each node has them")
    for node, run in zip(swarm.nodes, runs, strict=True):
        narrator.say(f"  {node.name:<6} {run.root}")
    check(len({run.root for run in runs}) == 1 and bool(runs[0].root), "all nodes are equal")


def _check_bytes(witness: DemoNode, run: Run, narrator: Narrator) -> None:
    """Compare what the sockets carried with a butterfly all-reduce of float32 at every step."""
    last = metrics_of(witness.client, RUN)[-1]
    weights = (Path(run.directory) / "model" / "model.safetensors").stat().st_size
    naive = last.step * 2 * 3 / 4 * weights
    saving = naive / last.wire_out
    narrator.say(
        f"  {witness.name} sent {last.wire_out / 1e6:.1f} MB in all, counted at its sockets;"
        f" averaging every step: {naive / 1e6:.0f} MB, {saving:.0f} times as much"
    )
    check(saving >= SAVING, f"at least {SAVING:g} times less than averaging every step")


def peers_of(swarm: DemoSwarm, narrator: Narrator) -> None:
    """Print each node's own view of its peers, and check that everybody sees everybody."""
    narrator.head("who sees whom, from each node's own view (round trip in ms)")
    names = {node.client.id().peer: node.name for node in swarm.nodes}
    for node in swarm.nodes:
        node.client.wait(peers=len(swarm.nodes) - 1, timeout_s=20.0)
        peers = sorted(node.client.peers(), key=lambda peer: names.get(peer.peer, ""))
        cells = [f"{names.get(p.peer, '?')} {short(p.peer)} {p.rtt_ms or 0:.1f}" for p in peers]
        narrator.say(f"  {node.name:<6} " + "   ".join(cells))
        others = set(names) - {node.client.id().peer}
        check({p.peer for p in peers} == others, f"{node.name} sees the other three")
