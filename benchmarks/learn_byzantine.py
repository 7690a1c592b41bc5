"""Hostile members on Fashion-MNIST: what robust aggregation keeps, and what a plain mean loses.

`python -m benchmarks.learn_byzantine` prints one JSON object a line. Attacks that must see the
others' contributions (ALIE, IPM) are simulated in one process, with the aggregators that shard
owners use; one of four sending -1000 times its gradient also over real daemons. QUICK=1: shorter.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.attacks import ATTACKS
from benchmarks.fashion import HOW, Images, is_here
from benchmarks.learn_swarm import Swarm, swarm
from benchmarks.orders import Child
from benchmarks.report import QUICK, progress, report
from protocols.modelsync.aggregate import aggregator_named
from shoal.learn.averaging import FedAvg
from shoal.learn.strategy import Turn, Vector
from shoal.runs import certificates_of, contributions_of

ROUNDS = 20 if QUICK else 60
EVERY = 5  # local steps between two rounds
GOAL_POINTS = 2.0
ROBUST = "clip:tau=auto"
FACTOR = -1000.0
CASES = (("sign_flip", 4, 1), ("alie", 7, 2), ("ipm", 7, 2))  # attack, members, of them hostile
TRAIN_S = 600.0
VERIFIED_ROUNDS = 15


def simulate(members: int, hostile: int, attack: str, aggregator: str) -> float:
    """Train in one process; accuracy in percent of an honest member at the end.

    Hostile members have the last numbers. Every member makes the same outer step from what the
    aggregator makes of the contributions, as over the swarm.
    """
    names = [f"member-{number}" for number in range(members)]
    honest = names[: members - hostile]
    replicas = {name: Images() for name in honest}
    strategies = {name: FedAvg(every=EVERY) for name in honest}
    combine = aggregator_named(aggregator)
    states = dict[str, Vector]()
    for name in honest:
        strategies[name].prepare(replicas[name].parts, ROUNDS)
        states[name] = strategies[name].first(0, replicas[name].flat())
    for round_ in range(ROUNDS):
        brought = list[Vector]()
        for name in honest:
            for step in range(round_ * EVERY, (round_ + 1) * EVERY):
                replicas[name].step(name, step)
            mine, flat = strategies[name], replicas[name].flat()
            brought.append(mine.contribution(0, round_, states[name], flat).copy())
        brought += [ATTACKS[attack](brought, hostile)] * hostile if hostile else []
        value = combine(brought, [1.0] * members)
        for name in honest:
            out = states[name].copy()
            turn = Turn(round_, value, members, True)
            strategies[name].finish(0, turn, states[name], out)
            states[name] = out
            replicas[name].load(strategies[name].local(0, out, replicas[name].flat()))
    return replicas[honest[0]].accuracy()


def _simulated() -> None:
    clean = dict[int, float]()
    for attack, members, hostile in CASES:
        if members not in clean:
            progress(f"{members} members, all honest")
            clean[members] = simulate(members, 0, "", "mean")
            report(f"learn.fashion_clean_{members}", [clean[members]], "%", better="higher")
        for aggregator, name in ((ROBUST, "clip"), ("mean", "mean")):
            progress(f"{attack} by {hostile} of {members}, {name}")
            lost = clean[members] - simulate(members, hostile, attack, aggregator)
            goal = GOAL_POINTS if name == "clip" else None
            report(f"learn.byzantine_{attack}_{name}", [lost], "points lost", goal=goal)


def _daemons() -> None:
    """Four daemons; the last one's trainer is hostile in two of three runs."""
    accuracy = dict[str, float]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        four = stack.enter_context(swarm(folder, 4))
        trainers = list[Child]()
        for node in four.nodes:
            argv = ["-m", "benchmarks.learn_trainer", str(node.home)]
            trainers.append(stack.enter_context(node.python("trainer", argv)))
        for run, aggregator, factor in (
            ("clean", "mean", 1.0),
            ("clip", ROBUST, FACTOR),
            ("mean", "mean", FACTOR),
        ):
            progress(f"daemons: {run}")
            shape = {"rounds": ROUNDS, "members": 4, "every": EVERY, "aggregator": aggregator}
            for trainer in trainers:
                mine = factor if trainer is trainers[-1] else 1.0
                trainer.tell("fashion", run=f"fashion-{run}", factor=mine, **shape)
            answers = [trainer.wait(TRAIN_S) for trainer in trainers]
            assert len({answer["root"] for answer in answers}) == 1
            accuracy[run] = answers[0]["accuracy"]
        _banned(four, trainers)
    for name, goal in (("clip", GOAL_POINTS), ("mean", None)):
        lost = accuracy["clean"] - accuracy[name]
        report(f"learn.byzantine_daemons_{name}", [lost], "points lost", goal=goal)


def _banned(four: Swarm, trainers: list[Child]) -> None:
    """A verified run of the same four: the round from which on the hostile member is out."""
    progress("daemons: with validators")
    run, liar = "fashion-verified", four.nodes[-1].peer
    shape = {"rounds": VERIFIED_ROUNDS, "members": 4, "every": EVERY, "aggregator": ROBUST}
    for trainer in trainers:
        mine = FACTOR if trainer is trainers[-1] else 1.0
        trainer.tell("fashion", run=run, factor=mine, is_verified=True, **shape)
    for trainer in trainers[:-1]:
        trainer.wait(TRAIN_S)
    client = four.nodes[0].client
    table = {one.peer: one for one in contributions_of(client, run)}
    with_it = [c.round for c in certificates_of(client, run) if liar in c.members]
    is_banned = liar in table and table[liar].banned
    report(
        *("learn.byzantine_banned_after", [max(with_it, default=-1) + 1.0] * is_banned, "rounds"),
        goal=10.0,
        why="" if is_banned else f"not within {VERIFIED_ROUNDS} rounds",
    )
    wrongly = sum(one.banned for peer, one in table.items() if peer != liar)
    report("learn.byzantine_banned_wrongly", [float(wrongly)], "honest members", goal=0.0)


def main() -> None:
    """Measure all of it, if the images are here."""
    torch.set_num_threads(1)
    if not is_here():
        report("learn.byzantine", [], "points lost", why=f"no Fashion-MNIST here; {HOW}")
        return
    _simulated()
    _daemons()


if __name__ == "__main__":
    main()
