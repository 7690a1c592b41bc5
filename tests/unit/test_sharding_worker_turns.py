"""What a worker computes in one turn, and what it waits for before it."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from torch import Tensor

from protocols.sharding.stage import Result, Stage
from protocols.sharding.worker import GAP_SHARE
from protocols.sharding.worker_wire import Output, WorkerStep
from tests.unit.sharding_models import PROMPT
from tests.unit.test_sharding_worker import LONG, Times, ask, opening, step, worker_of


def test_waiting_rows_are_one_forward_and_of_long_steps_one_goes_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, rows = worker_of(batches=True), list[tuple[int, int]]()
    run: Callable[..., Result] = Stage.run

    def counted(stage: Stage, inputs: Tensor, *rest: Any, **named: Any) -> Result:
        rows.append((inputs.shape[0], inputs.shape[1]))
        return run(stage, inputs, *rest, **named)

    monkeypatch.setattr(Stage, "run", counted)
    for ticket in range(1, 6):
        ask(worker, opening(ticket))
        ask(worker, WorkerStep(ticket, step(0, PROMPT[:ticket])))
    singly = [ask(worker, WorkerStep(t, step(t, [40 + t]))) for t in range(1, 6)]
    for ticket in (10, 11):
        ask(worker, opening(ticket))
    rows.clear()
    for number in range(1, 6):
        assert worker.take(number, WorkerStep(number, step(number, [40 + number]))) == []
    assert worker.take(20, WorkerStep(10, step(0, LONG))) == []
    assert worker.take(21, WorkerStep(10, step(len(LONG), [3]))) == []
    assert worker.take(22, WorkerStep(11, step(0, LONG))) == []
    assert not worker.idle
    answers = list(worker.turn())
    assert rows == [(5, 1), (1, len(LONG))]
    assert dict(answers[:5]) == dict(enumerate(singly, 1))
    assert [number for number, _ in answers[5:]] == [20]
    assert [number for number, _ in worker.turn()] == [21, 22]
    assert worker.idle


def test_drafts_and_single_rows_are_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, rows = worker_of(batches=True), list[int]()
    for ticket in range(1, 6):
        ask(worker, opening(ticket))
        ask(worker, WorkerStep(ticket, step(0, PROMPT)))
    run: Callable[..., Result] = Stage.run

    def counted(stage: Stage, inputs: Tensor, *rest: Any, **named: Any) -> Result:
        rows.append(inputs.shape[0])
        return run(stage, inputs, *rest, **named)

    tried = [[9], [8, 7, 6], [5, 4]]
    singly = [ask(worker, WorkerStep(4, step(12, tokens, picks=len(tokens)))) for tokens in tried]
    monkeypatch.setattr(Stage, "run", counted)
    for ticket, tokens in enumerate(tried, 1):
        worker.take(ticket, WorkerStep(ticket, step(12, tokens, picks=len(tokens))))
    worker.take(5, WorkerStep(5, step(12, [5, 4])))  # the end of a prompt
    assert dict(worker.turn()) == {**dict(enumerate(singly, 1)), 5: ask_again(singly[2])}
    assert rows == [6, 1]


def ask_again(draft: Output) -> Output:
    """Return what the same step says that asks for its last pick only."""
    return msgspec.structs.replace(draft, picks=draft.picks[-1:])


def test_a_row_on_its_way_is_worth_waiting_for_and_nothing_else_is() -> None:
    worker, clock = worker_of(batches=True), Times()
    worker._now = worker._meter._now = clock

    def take_step(ticket: int, position: int) -> None:
        worker.take(ticket, WorkerStep(ticket, step(position, [9])))

    for ticket in (1, 2):
        ask(worker, opening(ticket))
    worker._meter.step(1, 0.8)
    take_step(1, 0)
    assert worker.gap_s == 0.0  # nobody else has ever said anything
    list(worker.turn())
    assert worker.gap_s == 0.0  # there is nothing to do that could wait
    clock.now_s = 1.0
    take_step(2, 0)
    assert worker.gap_s == pytest.approx(0.8 * GAP_SHARE, rel=0.3)
    take_step(1, 1)
    assert worker.gap_s == 0.0  # all are here
    list(worker.turn())
    clock.now_s = 100.0
    take_step(1, 2)
    assert worker.gap_s == 0.0  # the other one has ended, or stands still
