"""Stages that are killed or freeze in the middle of an answer: does it go on, and the same?

`python -m benchmarks.answer_kill` prints one JSON object a line. An entry and four hosts, two of
each half of a model, all real daemons. A trial asks, and at a random token hits a stage that is in
the route: kill -9 of its worker process, of its daemon, of both halves at once, or SIGSTOP. The
pause is the longest time between two tokens. Most trials are with a tiny model, for what fails over
is the same; some are with SmolLM2-135M.
"""

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks import answer_models
from benchmarks.answer_swarm import Asked, Serving, Span, serving, workers_of
from benchmarks.learn_swarm import Node, wait_until
from benchmarks.orders import Failed
from benchmarks.report import QUICK, percentile, progress, report
from protocols.sharding import reference

KILLS, FREEZES, LARGE = (4, 2, 1) if QUICK else (100, 10, 6)
TOKENS = 120  # of an answer
LARGE_TOKENS = 32
LARGE_LAYERS = 30
PROMPT_TOKENS = 24
EDGE = 4  # tokens of an answer before the first and after the last at which it is hit
PAUSE_S = 2.0
FREEZE_S = 3.0
HEAL_S = 10.0
HEALS = 1 if QUICK else 5
BACK_S = 120.0  # for a host to be there again
HALVES: list[Span] = [(0, 2), (0, 2), (2, 4), (2, 4)]  # of the tiny model
KINDS = ("worker", "daemon", "worker", "both")  # what is killed, trial by trial

SUBJECTS = ("rain", "iron", "bread", "ships", "bees", "glass", "salt", "moons")


@dataclass
class Trials:
    """What came of trials of one kind."""

    pauses_s: list[float] = field(default_factory=list[float])
    normal_s: list[float] = field(default_factory=list[float])  # longest gaps of undisturbed ones
    count: int = 0
    finished: int = 0
    same: int = 0
    missed: int = 0  # trials in which no stage was replaced: the hit came too late


@dataclass
class Questions:
    """Prompts of a model, and what it says to them unsharded."""

    folder: Path
    tokens: int
    rng: random.Random

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self._model, self._tokenizer = reference.load(self.folder)

    def next(self) -> tuple[str, str]:
        """Return another prompt and its greedy answer."""
        prompt = self._prompt()
        ids = [int(token) for token in self._tokenizer(prompt)["input_ids"]]
        said = reference.continue_greedily(self._model, ids, self.tokens)
        return prompt, str(self._tokenizer.decode(said, skip_special_tokens=True))

    def _prompt(self) -> str:
        if self.folder == answer_models.tiny():
            return answer_models.words([self.rng.randrange(256) for _ in range(PROMPT_TOKENS)])
        number, subject = self.rng.randrange(1000), self.rng.choice(SUBJECTS)
        return f"Lesson {number}. Today we learn about {subject}: what it is, and why"


def switches(node: Node) -> int:
    """Return how often a host's workers waited for something: it rises with every step."""
    total = 0
    for pid in workers_of(node):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


@dataclass
class Watch:
    """Finds out which hosts an answer goes through, without asking the swarm."""

    nodes: Serving

    def __post_init__(self) -> None:
        self._before = {node.home: switches(node) for node in self.nodes.hosts}

    def active(self) -> dict[Span, Node]:
        """Return the host of each span that has worked the most since."""
        found: dict[Span, tuple[int, Node]] = {}
        for node, span in zip(self.nodes.hosts, self.nodes.spans, strict=True):
            rise = switches(node) - self._before[node.home]
            if span not in found or rise > found[span][0]:
                found[span] = rise, node
        return {span: node for span, (_, node) in found.items()}


def trial(
    nodes: Serving,
    question: tuple[str, str],
    tokens: int,
    rng: random.Random,
    hit: Callable[[dict[Span, Node]], None],
    trials: Trials,
) -> None:
    """Ask, hit at a random token, compare."""
    prompt, expected = question
    moment, watch = rng.randrange(EDGE, tokens - EDGE), Watch(nodes)

    def on_piece(count: int) -> None:
        if count == moment:
            hit(watch.active())

    trials.count += 1
    try:
        asked = nodes.ask(prompt, tokens, on_piece=on_piece)
    except Exception as error:  # a boundary: it is what is counted
        progress(f"token {moment}: NOT FINISHED: {type(error).__name__}: {error}")
        return
    _count(asked, expected, moment, trials)


def _count(asked: Asked, expected: str, moment: int, trials: Trials) -> None:
    trials.finished += 1
    same = asked.text.strip() == expected.strip()
    trials.same += same
    replaced = 0 if asked.trace is None else asked.trace.replaced_hops
    trials.missed += replaced == 0
    if replaced:
        trials.pauses_s.append(asked.longest_gap_s)
    progress(
        f"token {moment}: pause {asked.longest_gap_s:.3f} s, {replaced} replaced"
        f"{'' if same else ', ANOTHER ANSWER'}"
    )


def kill(nodes: Serving, active: dict[Span, Node], what: str, rng: random.Random) -> list[Node]:
    """kill -9 of one stage's worker or daemon, or of all stages' workers; return who was hit."""
    victims = list(active.values()) if what == "both" else [rng.choice(list(active.values()))]
    for node in victims:
        if what == "daemon":
            os.kill(node.pid, signal.SIGKILL)
        else:
            for pid in workers_of(node):
                os.kill(pid, signal.SIGKILL)
    return victims


def kills(nodes: Serving, questions: Questions, count: int, kinds: tuple[str, ...]) -> Trials:
    """Do so many trials with kill -9."""
    rng, trials = questions.rng, Trials()
    for number in range(count):
        what, victims = kinds[number % len(kinds)], list[Node]()
        progress(f"kill {number + 1} of {count}: {what}")

        def hit(active: dict[Span, Node], what: str = what, hit: list[Node] = victims) -> None:
            hit += kill(nodes, active, what, rng)

        trial(nodes, questions.next(), questions.tokens, rng, hit, trials)
        for node in victims:
            if what == "daemon":
                node.kill()
                nodes.restart(node)
        wait_until(
            "the hosts are back",
            lambda: all(workers_of(node) for node in nodes.hosts),
            within_s=BACK_S,
        )
        nodes.await_hosts()
    return trials


def freezes(nodes: Serving, questions: Questions, count: int) -> Trials:
    """Do so many trials with SIGSTOP: of a daemon with its workers, or of a worker alone."""
    rng, trials = questions.rng, Trials()
    for number in range(count):
        pids = list[int]()

        def hit(active: dict[Span, Node], number: int = number, pids: list[int] = pids) -> None:
            victim = rng.choice(list(active.values()))
            pids += workers_of(victim)
            if number % 2 == 0:
                pids.insert(0, victim.pid)
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)

        progress(f"freeze {number + 1} of {count}: {'worker' if number % 2 else 'daemon'}")
        try:
            trial(nodes, questions.next(), questions.tokens, rng, hit, trials)
        finally:
            for pid in pids:
                Node.send(pid, signal.SIGCONT)
        wait_until(
            "the hosts are back",
            lambda: all(workers_of(node) for node in nodes.hosts),
            within_s=BACK_S,
        )
        nodes.await_hosts()
    return trials


def heal(folder: Path) -> None:
    """Kill one of two hosts that share a model; report when the other computes all of it."""
    times = list[float]()
    for number in range(HEALS):
        spans: list[Span] = [(0, 2), (2, 4)]
        home = folder / f"heal-{number}"
        with serving(home, answer_models.tiny(), spans, pinned=False) as nodes:
            victim, heir = nodes.hosts[number % 2], nodes.hosts[1 - number % 2]
            os.kill(victim.pid, signal.SIGKILL)
            began = time.monotonic()
            wait_until(
                "another host has the blocks",
                partial(nodes.has_all, heir),
                within_s=BACK_S,
            )
            times.append(time.monotonic() - began)
            progress(f"healed in {times[-1]:.1f} s")
    report("answer.heal", times, "s", goal=HEAL_S)


def tell(name: str, trials: Trials, goal_s: float) -> None:
    """Report trials of one kind, as figures whose names begin with `name`."""
    of = f"% of {trials.count} trials"
    for what, number in (("finished", trials.finished), ("same", trials.same)):
        share = 100 * number / trials.count
        report(f"{name}_{what}", [share], of, better="higher", goal=100.0)
    pauses = trials.pauses_s
    why = "" if pauses else "no trial hit a stage"
    report(f"{name}_pause", pauses, "s", goal=goal_s, why=why)
    worst = [max(pauses)] if pauses else []
    report(f"{name}_pause_worst", worst, "s", goal=goal_s, why=why)
    if pauses:
        progress(f"{name}: p90 {percentile(pauses, 0.9):.3f} s; {trials.missed} were not hit")


def _measure(folder: Path, model: Path, name: str, tokens: int, counts: tuple[int, int]) -> None:
    scale = 1 if model == answer_models.tiny() else LARGE_LAYERS / 4
    halves = [(int(scale * start), int(scale * end)) for start, end in HALVES]
    questions = Questions(model, tokens, random.Random(1))
    with serving(folder, model, halves) as nodes:
        prompt, expected = questions.next()
        calm = nodes.ask(prompt, tokens)
        if calm.text.strip() != expected.strip():
            raise Failed("the sharded answer is another one, without any fault")
        progress(f"undisturbed: {calm.rate:.1f} tokens/s, longest gap {calm.longest_gap_s:.3f} s")
        tell(f"answer.kill{name}", kills(nodes, questions, counts[0], KINDS), PAUSE_S)
        if counts[1]:
            tell(f"answer.freeze{name}", freezes(nodes, questions, counts[1]), FREEZE_S)


def main() -> None:
    """Measure all of it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        heal(Path(folder))
        _measure(Path(folder) / "tiny", answer_models.tiny(), "", TOKENS, (KILLS, FREEZES))
        large = (LARGE, 0)
        _measure(Path(folder) / "large", answer_models.smollm2(), "_smollm2", LARGE_TOKENS, large)


if __name__ == "__main__":
    main()
