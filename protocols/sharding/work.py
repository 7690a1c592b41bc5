"""One session of a worker: from the rows of a step to those that come out. Needs torch."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from protocols.sharding.caches import StageCache
from protocols.sharding.codecs import decode, encode
from protocols.sharding.proofs import Prover
from protocols.sharding.rows import row_bytes, rows_to_ids
from protocols.sharding.sampling import allows, pick
from protocols.sharding.stage import DTYPES, Stage
from protocols.sharding.wire import Pick, Step
from protocols.sharding.worker_wire import (
    Checked,
    Output,
    ProofsReply,
    WorkerCheck,
    WorkerOpen,
    WorkerProofs,
    WorkerStep,
)
from wire.errors import BadMessage

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Asked = WorkerStep | WorkerCheck | WorkerProofs  # in order, behind the steps that came before


@dataclass(eq=False)
class Session:
    """Its cache, what it proves, and what waits for it: (number of the request, request)."""

    opened: WorkerOpen
    stage: Stage
    cache: StageCache
    waiting: deque[tuple[int, Asked]] = field(default_factory=deque[tuple[int, Asked]])

    def __post_init__(self) -> None:
        base = self.cache.position
        self._inputs, self._outputs = Prover(base), Prover(base)
        self._picks: dict[int, int] = {}
        self.picks_tokens = self.opened.gives == "picks"

    @property
    def next_rows(self) -> int:
        """How many rows the step has that waits first."""
        ask = self.waiting[0][1]
        if isinstance(ask, WorkerProofs):
            return 0
        return len(ask.step.rows) // row_bytes(self.opened.takes, self.stage.hidden_size)

    @property
    def next_decodes(self) -> bool:
        """Whether the step that waits first is a row of an answer, or a draft: all are picked."""
        ask = self.waiting[0][1]
        return isinstance(ask, WorkerStep) and self.next_rows in (1, ask.step.picks)

    def prepare(self, step: Step) -> Tensor:
        """Return the inputs, checked: token ids [n] or float32 hidden [n, hidden].

        The cache ends where they begin. Raises BadMessage, NotFound (rows that are needed are not
        kept); then nothing has changed.
        """
        if step.position > self.cache.position:
            raise BadMessage(f"step at {step.position}, the session is at {self.cache.position}")
        if self.opened.takes == "ids":
            ids, size = rows_to_ids(step.rows), self.stage.vocab_size
            if not ids or max(ids) >= size:
                raise BadMessage(f"no tokens, or one over the vocabulary of {size}")
            inputs = torch.tensor(ids)
        else:
            inputs = decode(self.opened.takes, step.rows, self.stage.hidden_size)
        end = step.position + len(inputs)
        if end > self.opened.max_tokens:
            raise BadMessage(f"step to {end} tokens, {self.opened.max_tokens} were reserved")
        if step.picks > len(inputs):
            raise BadMessage(f"{step.picks} picks of {len(inputs)} rows")
        if step.position < self.cache.position:
            self.cache.truncate(step.position)
            kept = {at: token for at, token in self._picks.items() if at <= step.position}
            self._picks = kept
        return inputs

    def finish(self, step: Step, inputs: Tensor, hidden: Tensor, logits: Tensor | None) -> Output:
        """Encode, pick and prove. hidden: [n, hidden]; logits: [step.picks or more, vocabulary]."""
        end = step.position + len(inputs)
        rows, picks = b"", list[Pick]()
        if self.picks_tokens:
            picks = self._pick(step.picks, end, logits)
        else:
            rows = encode(self.opened.gives, hidden)
        self._prove(step, inputs, hidden, rows)
        return Output(step.number, end, rows, picks)

    def check(
        self,
        step: Step,
        inputs: Tensor,
        hidden: Tensor,
        logits: Tensor | None,
        claimed: list[tuple[int, int]],
    ) -> Checked:
        """Return which claimed picks the logits of these rows do not allow. logits [n, vocabulary].

        A pick for a position before these rows is not allowed either.
        """
        self._prove(step, inputs, hidden, b"")
        if logits is None:
            raise BadMessage("only the last stage picks")
        wrong, dtype = list[int](), DTYPE_NAMES[self.stage.dtype]
        for position, token in claimed:
            row = position - 1 - step.position
            fits = 0 <= row < len(logits) and allows(
                logits[row], self.opened.sampling, position, token, dtype
            )
            wrong += [] if fits else [position]
        return Checked(wrong)

    def proofs(self) -> ProofsReply:
        """Return what the receipt needs."""
        inputs, outputs, picks = self._inputs, self._outputs, sorted(self._picks.items())
        place = self.cache.position
        return ProofsReply(inputs.base, place, inputs.proofs(), outputs.proofs(), picks)

    def _pick(self, count: int, end: int, logits: Tensor | None) -> list[Pick]:
        if not count:
            return []
        assert logits is not None
        places = range(end - count + 1, end + 1)
        sampling = self.opened.sampling
        picks = [
            pick(row, sampling, place) for row, place in zip(logits[-count:], places, strict=True)
        ]
        self._picks.update((place, one.token) for place, one in zip(places, picks, strict=True))
        return picks

    def _prove(self, step: Step, inputs: Tensor, hidden: Tensor, rows: bytes) -> None:
        """Both ends of a link commit to what its bytes decode to, the last stage to what its head
        is given: picks alone would hide much.
        """
        opened, place = self.opened, step.position
        self._inputs.add(place, step.rows, None if opened.takes == "ids" else inputs)
        if self.picks_tokens:
            rows = encode("float32", hidden)
        elif opened.gives != "float32":
            hidden = decode(opened.gives, rows, self.stage.hidden_size)
        self._outputs.add(place, rows, hidden.float())
