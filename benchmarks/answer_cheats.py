"""Stages that cheat and stages that do not, recomputed as audits do: who is caught, how soon.

`python -m benchmarks.answer_cheats` prints one JSON object a line. SmolLM2-135M over Shakespeare,
both halves, by the worker's own code: one that is audited takes a prompt and then single rows,
alone or batched with other sessions; who recomputes takes all rows in one step. A figure of steps
is how many rows of a session have to be recomputed until what is claimed cannot be honest work.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import answer_models
from benchmarks.answer_codec import plays
from benchmarks.answer_decode import spans_of
from benchmarks.cheats import CHEATS
from benchmarks.report import QUICK, progress, report
from protocols.sharding import codecs, reference, worker_wire
from protocols.sharding.commitments import Commitment, read
from protocols.sharding.receipts import differs
from protocols.sharding.rows import ids_to_rows, row_bytes
from protocols.sharding.stage import Stage, load_stage
from protocols.sharding.wire import Sampling, Step
from protocols.sharding.worker import Worker
from protocols.sharding.worker_wire import WorkerClose, WorkerOpen, WorkerProofs, WorkerStep

DTYPE = "float32"
PROMPT = 24  # rows of the first step
ROWS = 96  # of an honest session
TOGETHER = 8  # honest sessions at once, of different lengths
HONEST_STEPS = 400 if QUICK else 10_000  # single rows, both halves together
CHEAT_ROWS = 20  # of a session of a cheat: so many are recomputed at most
CHEAT_PROMPT = 4  # of them, the first step
TRIALS = 2 if QUICK else 10  # of each cheat, with other texts, on either half


@dataclass
class Half:
    """A half of the model, and texts as it is given them: each the rows of `ROWS` positions."""

    stage: Stage
    texts: list[bytes]

    @property
    def row_bytes(self) -> int:
        """Of one position."""
        return row_bytes(self.takes, self.stage.hidden_size)

    @property
    def takes(self) -> str:
        """The codec of its input."""
        return "ids" if self.stage.start == 0 else DTYPE

    @property
    def gives(self) -> str:
        """The codec of its output."""
        return "picks" if self.stage.end == self.stage.n_layers else DTYPE


class Host:
    """A worker with sessions that go through one half."""

    def __init__(self, half: Half, stage: Stage, *, batches: bool = False) -> None:
        self._half, self._worker, self._number = half, Worker(stage, batches=batches), 0

    def run(self, texts: list[bytes], rows: int, prompt: int) -> list[Commitment]:
        """Run sessions together, each a prompt and then single rows; return what they claim."""
        tickets = [self._open(rows) for _ in texts]
        for at in (0, *range(prompt, rows)):
            end = prompt if at == 0 else at + 1
            for ticket, text in zip(tickets, texts, strict=True):
                self._step(ticket, text, at, end)
            self._turns()
        return [self._claim(ticket) for ticket in tickets]

    def _open(self, rows: int) -> int:
        self._number += 1
        half, stage = self._half, self._half.stage
        span, how = (stage.start, stage.end), (half.takes, half.gives)
        opened = WorkerOpen(self._number, *span, rows, Sampling(), *how)
        self._taken(self._worker.take(0, opened))
        return self._number

    def _step(self, ticket: int, text: bytes, at: int, end: int) -> None:
        size, picks = self._half.row_bytes, int(self._half.gives == "picks")
        step = Step(end, at, text[at * size : end * size], picks)
        self._taken(self._worker.take(0, WorkerStep(ticket, step)))

    def _claim(self, ticket: int) -> Commitment:
        self._taken(self._worker.take(0, WorkerProofs(ticket)))
        [said] = self._turns()
        assert isinstance(said, worker_wire.ProofsReply)
        self._taken(self._worker.take(0, WorkerClose(ticket)))
        return read(said.base, said.position, said.outputs, ids=False)

    def _turns(self) -> list[object]:
        said = list[object]()
        while not self._worker.idle:
            said += [answer for _, answer in self._worker.turn()]
        return self._taken([(0, one) for one in said])

    def _taken(self, answers: list[tuple[int, object]]) -> list[object]:
        for _, answer in answers:
            assert not isinstance(answer, worker_wire.Failure), answer
        return [answer for _, answer in answers]


def parts() -> Path:
    """Return the folder of the model's parts."""
    return answer_models.parts(answer_models.smollm2())


def halves() -> list[Half]:
    """Load both halves, and give them texts: the second what the first makes of its own."""
    first, second = (load_stage(parts(), *span) for span in spans_of(2))
    _, tokenizer = reference.load(answer_models.smollm2())
    ids = list[int]()
    for play in plays()[:8]:
        ids += [int(token) for token in tokenizer(play[:20_000])["input_ids"]]
    found = Half(first, []), Half(second, [])
    for at in range(0, (len(ids) // ROWS) * ROWS, ROWS)[:64]:
        some = ids[at : at + ROWS]
        hidden = first.forward(torch.tensor([some]), first.new_cache()).hidden
        found[0].texts.append(ids_to_rows(some))
        found[1].texts.append(codecs.encode(DTYPE, hidden[0]))
    return list(found)


def _honest(half: Half, steps: int, rng: random.Random) -> Generator[bool]:
    """Yield whether each honest session passes, until so many single rows have been computed."""
    batched, alone = Host(half, half.stage, batches=True), Host(half, half.stage)
    while steps > 0:
        count = rng.choice((1, TOGETHER, TOGETHER))
        texts = rng.sample(half.texts, count)
        claims = (batched if count > 1 else alone).run(texts, ROWS, PROMPT)
        for text, claim in zip(texts, claims, strict=True):
            [ours] = alone.run([text], ROWS, ROWS)
            steps -= ROWS - PROMPT
            yield differs(ours, claim, DTYPE) is None


def _caught_after(half: Half, spoilt: Stage, text: bytes) -> int:
    """Return of how many rows the recomputation shows the cheat; too many if of none."""
    honest, liar = Host(half, half.stage), Host(half, spoilt)
    for rows in range(CHEAT_PROMPT, CHEAT_ROWS + 1):
        [claim] = liar.run([text], rows, CHEAT_PROMPT)
        [ours] = honest.run([text], rows, rows)
        if differs(ours, claim, DTYPE) is not None:
            return rows
    return CHEAT_ROWS + 1


def main() -> None:
    """Count false alarms, and what each cheat gets away with."""
    torch.set_num_threads(1)
    rng, both = random.Random(5), halves()
    alarms, steps = 0, 0
    for half in both:
        for is_clear in _honest(half, HONEST_STEPS // 2, rng):
            steps += ROWS - PROMPT
            alarms += not is_clear
        progress(f"{steps} honest steps, {alarms} false alarms")
    report("answer.honest_alarms", [float(alarms)], f"in {steps} honest steps", goal=0.0)
    for name, cheat in CHEATS.items():
        found = list[float]()
        for half in both:
            spoilt = load_stage(parts(), half.stage.start, half.stage.end)
            cheat(spoilt)
            texts = rng.sample(half.texts, TRIALS)
            found += [float(_caught_after(half, spoilt, text)) for text in texts]
        progress(f"{name}: {found}")
        why = "" if max(found) <= CHEAT_ROWS else f"{sum(f > CHEAT_ROWS for f in found)} got away"
        report(f"answer.cheat_{name}", [max(found)], "steps", goal=float(CHEAT_ROWS), why=why)


if __name__ == "__main__":
    main()
