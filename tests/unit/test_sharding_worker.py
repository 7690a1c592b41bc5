"""The worker: what it answers, and what it refuses."""

from typing import Any

import msgpack
import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.sharding.batch import can_batch
from protocols.sharding.caches import StageCache
from protocols.sharding.codecs import decode as decode_rows
from protocols.sharding.meter import Meter
from protocols.sharding.rows import ids_to_rows
from protocols.sharding.stage import Result, Stage
from protocols.sharding.wire import DRAFT_MAX, FRAME_MAX, Pick, Sampling, Step
from protocols.sharding.worker import SESSIONS_MAX, Worker, measure
from protocols.sharding.worker_wire import (
    Checked,
    Done,
    Failure,
    Load,
    Opened,
    Output,
    ProofsReply,
    WorkerCheck,
    WorkerClose,
    WorkerOpen,
    WorkerPing,
    WorkerProofs,
    WorkerStep,
    front_answer_decoder,
    front_ask_decoder,
    worker_answer_decoder,
    worker_ask_decoder,
)
from tests.unit.sharding_models import LAYERS, PROMPT, make_model, prefill_and_decode
from wire.codec import decode, encode
from wire.errors import BadMessage

GREEDY = Sampling()
LONG = [token % 97 for token in range(3 * DRAFT_MAX)]
MIDDLE = LAYERS // 2


class Times:
    """A clock that stands still until told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def worker_of(family: str = "llama", **options: Any) -> Worker:
    return Worker(Stage(make_model(family), 0, LAYERS), now=Times(), **options)


def opening(ticket: int, start: int = 0, end: int = LAYERS, **more: Any) -> WorkerOpen:
    takes = "ids" if start == 0 else "float32"
    gives = "picks" if end == LAYERS else "float32"
    options = {"max_tokens": 100, "sampling": GREEDY, "takes": takes, "gives": gives, **more}
    return WorkerOpen(ticket, start, end, **options)


def step(position: int, tokens: list[int], *, picks: int = 1) -> Step:
    return Step(position + 1, position, ids_to_rows(tokens), picks)


def ask(worker: Worker, request: Any) -> Any:
    """Ask alone, and return the answer."""
    answers = [*worker.take(7, request)] or [*worker.turn()]
    assert [number for number, _ in answers] == [7]
    return answers[0][1]


def refused(worker: Worker, request: Any) -> str:
    answer = ask(worker, request)
    assert isinstance(answer, Failure)
    return f"{answer.code}: {answer.message}"


def tokens_of(output: Output) -> list[int]:
    return [one.token for one in output.picks]


def expected_tokens() -> list[int]:
    return [int(logits.argmax()) for logits in prefill_and_decode(make_model("llama"))]


def test_a_session_goes_on_where_it_was_on_any_layers_of_the_span() -> None:
    worker, found = worker_of(), list[int]()
    assert ask(worker, opening(1, 0, MIDDLE)) == Opened(0)
    assert ask(worker, opening(2, MIDDLE)) == Opened(0)
    tokens, position = PROMPT, 0
    for _ in range(6):
        first = ask(worker, WorkerStep(1, step(position, tokens)))
        assert (first.number, first.picks) == (position + 1, [])
        last = ask(worker, WorkerStep(2, Step(first.number, position, first.rows, 1)))
        assert (last.number, last.rows) == (position + 1, b"")
        tokens, position = tokens_of(last), last.position
        found += tokens
    assert found == expected_tokens()


def test_a_draft_is_verified_in_one_step_and_what_was_wrong_of_it_goes() -> None:
    right = expected_tokens()
    worker = worker_of()
    ask(worker, opening(1))
    ask(worker, WorkerStep(1, step(0, PROMPT)))
    place = len(PROMPT)
    draft = [*right[:3], right[3] ^ 1]
    output = ask(worker, WorkerStep(1, step(place, draft, picks=4)))
    assert tokens_of(output)[:3] == right[1:4]
    assert output.position == place + 4
    output = ask(worker, WorkerStep(1, step(place + 3, right[3:4])))
    assert tokens_of(output) == right[4:5]
    picks = dict(ask(worker, WorkerProofs(1)).picks)
    assert [picks[at] for at in range(place, place + 5)] == right[:5]
    assert max(picks) == place + 4


def test_a_lost_step_is_seen() -> None:
    worker = worker_of()
    ask(worker, opening(1))
    ask(worker, WorkerStep(1, step(0, PROMPT)))
    assert "step at 13, the session is at 12" in refused(worker, WorkerStep(1, step(13, [5])))
    assert isinstance(ask(worker, WorkerStep(1, step(12, [5]))), Output)


def test_a_session_gets_no_more_than_it_reserved() -> None:
    worker = worker_of()
    ask(worker, opening(1, max_tokens=12))
    ask(worker, WorkerStep(1, step(0, PROMPT)))
    assert "12 were reserved" in refused(worker, WorkerStep(1, step(12, [5])))


def test_sessions_and_their_memory_have_a_limit() -> None:
    worker = worker_of(token_bytes=600, cache_bytes=600 * 100)
    for ticket in (1, 2):  # as where the first was parked: it reserves nothing any more
        ask(worker, opening(ticket))
        ask(worker, WorkerStep(ticket, step(0, PROMPT)))
    ask(worker, opening(3, 0, 1))
    ask(worker, WorkerStep(3, step(0, PROMPT)))  # a sixth of the blocks takes a sixth of the room
    assert refused(worker, opening(4)).startswith("busy: caches of 75600 B")
    assert ask(worker, opening(4, max_tokens=98, fork=1, take=True)) == Opened(0)
    worker = worker_of()
    for ticket in range(SESSIONS_MAX):
        ask(worker, opening(ticket + 1))
    assert "sessions of this worker are in use" in refused(worker, opening(5000))


def test_input_that_is_not_the_models_is_refused() -> None:
    worker = worker_of()
    ask(worker, opening(1))
    ask(worker, opening(2, MIDDLE))
    for wrong in ([], [97]):
        assert refused(worker, WorkerStep(1, step(0, wrong, picks=0))).startswith("bad_message")
    for rows in (b"", bytes(127), bytes(130), b"\xff" * 128):
        assert refused(worker, WorkerStep(2, Step(1, 0, rows, 1))).startswith("bad_message")
    assert "2 picks of 1 rows" in refused(worker, WorkerStep(1, step(0, [5], picks=2)))
    for wrong in (
        opening(3, 2, 2),
        opening(3, 0, LAYERS + 1),
        opening(3, max_tokens=129),  # the model has positions for 128
        opening(3, takes="float32"),
        opening(3, MIDDLE, takes="picks"),
        opening(3, gives="int8"),
        opening(3, end=MIDDLE, gives="ids"),
        opening(1),
        opening(3, fork=9),
        opening(3, 0, MIDDLE, fork=1),
        opening(3, fork=1, position=1),
    ):
        assert isinstance(ask(worker, wrong), Failure), wrong
    assert ask(worker, WorkerClose(9)) == Done()
    assert refused(worker, WorkerProofs(9)).startswith("not_found")


def test_a_session_begins_with_the_rows_of_another() -> None:
    right = expected_tokens()
    worker = worker_of()
    ask(worker, opening(1))
    ask(worker, WorkerStep(1, step(0, [*PROMPT, *right[:2]])))
    assert ask(worker, opening(2, fork=1, position=12)) == Opened(12)
    assert ask(worker, opening(3, fork=1, position=10, take=True)) == Opened(10)
    assert refused(worker, WorkerStep(1, step(14, [5]))).startswith("not_found")
    assert tokens_of(ask(worker, WorkerStep(2, step(12, right[:1])))) == right[1:2]
    assert tokens_of(ask(worker, WorkerStep(3, step(10, PROMPT[10:])))) == right[:1]
    said = ask(worker, WorkerProofs(3))
    assert (said.base, said.position, said.picks) == (10, 12, [(12, right[0])])


def test_a_recurrent_session_is_continued_but_not_cut() -> None:
    worker = worker_of("mamba")
    ask(worker, opening(1))
    ask(worker, WorkerStep(1, step(0, PROMPT)))
    assert "not_found: a recurrent state" in refused(worker, opening(2, fork=1, position=5))
    assert ask(worker, opening(2, fork=1, position=12)) == Opened(12)
    output = ask(worker, WorkerStep(1, step(12, [5])))
    assert ask(worker, WorkerStep(2, step(12, [5]))) == output
    assert "not_found: a recurrent state" in refused(worker, WorkerStep(1, step(12, [5])))
    again = ask(worker, WorkerStep(1, step(0, [*PROMPT, 5])))
    assert tokens_of(again) == tokens_of(output)


def test_an_error_in_one_session_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(batches=True)
    for ticket in (1, 2, 3):
        ask(worker, opening(ticket, 0, MIDDLE))
        ask(worker, WorkerStep(ticket, step(0, PROMPT)))
    right = ask(worker, WorkerStep(3, step(12, [9])))
    update = StageCache.mark_absent
    sessions: dict[int, Any] = worker._sessions
    broken = sessions[2].cache

    def mark(cache: StageCache) -> None:
        if cache is broken:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        update(cache)

    def together(*_: object, **__: object) -> Result:
        with torch.inference_mode():
            sessions[1].cache.owned[0].update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8))
        raise RuntimeError("some layers have seen the rows, some have not")

    monkeypatch.setattr(StageCache, "mark_absent", mark)
    monkeypatch.setattr("protocols.sharding.worker.forward_together", together)
    for ticket in (1, 2, 3):
        worker.take(ticket, WorkerStep(ticket, step(12, [9])))
    worker.take(8, WorkerProofs(2))
    answers = dict(worker.turn())
    assert answers[1] == answers[3] == right
    assert answers[2] == Failure("busy", "there is no memory for this step")
    assert isinstance(answers[8], Failure)
    assert refused(worker, WorkerStep(2, step(13, [9]))).startswith("not_found")


def test_a_closed_sessions_requests_are_answered() -> None:
    worker = worker_of()
    ask(worker, opening(1))
    worker.take(1, WorkerStep(1, step(0, PROMPT)))
    answers = worker.take(2, WorkerClose(1))
    assert answers[0] == (2, Done())
    assert [number for number, _ in answers[1:]] == [1]
    assert worker.idle


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "float16", "int8"])
def test_both_ends_of_a_link_prove_the_same(codec: str) -> None:
    worker = worker_of()
    ask(worker, opening(1, 0, MIDDLE, gives=codec))
    ask(worker, opening(2, MIDDLE, takes=codec))
    position = 0
    for tokens in (PROMPT, LONG, [5], [6]):
        output = ask(worker, WorkerStep(1, step(position, tokens)))
        ask(worker, WorkerStep(2, Step(1, position, output.rows, 1)))
        position = output.position
    first, second = (ask(worker, WorkerProofs(ticket)) for ticket in (1, 2))
    assert isinstance(first, ProofsReply)
    assert first.outputs == second.inputs
    assert first.inputs != first.outputs
    assert first.position == second.position == position
    assert len(first.outputs) == -(-position // 32)
    assert len(decode_rows(codec, output.rows, 32)) == 1


def test_claimed_picks_are_checked_by_the_logits_of_their_rows() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=5)
    for how in (GREEDY, sampling):
        worker = worker_of()
        ask(worker, opening(1, sampling=how))
        made = ask(worker, WorkerStep(1, step(0, LONG, picks=DRAFT_MAX)))
        first = len(LONG) - DRAFT_MAX + 1
        claimed = list(enumerate(tokens_of(made), first))
        ask(worker, opening(2, sampling=how))
        assert ask(worker, WorkerCheck(2, step(0, LONG, picks=0), claimed)) == Checked([])
        claimed[3] = (claimed[3][0], claimed[3][1] ^ 1)
        claimed.append((len(LONG) + 1, 5))
        ask(worker, opening(3, sampling=how))
        wrong = ask(worker, WorkerCheck(3, step(0, LONG, picks=0), claimed))
        assert wrong == Checked([claimed[3][0], len(LONG) + 1])


def test_what_was_measured_at_load_and_lately() -> None:
    stage = Stage(make_model("llama"), 0, LAYERS)
    ready = measure(stage, batches=can_batch(stage))
    assert ready.batches
    assert ready.truncates
    assert ready.token_bytes == LAYERS * 2 * 2 * 8 * 4
    assert ready.decode_us > 0
    times = Times()
    meter = Meter(times)
    with meter.computing():
        times.now_s = 30.0
        assert meter.load(5).busy > 0.99
    meter.step(1, 0.020)
    meter.step(101, 0.120)
    assert meter.load(5).decode_us == 20_000
    assert meter.load(5).prefill_us == 1_000
    times.now_s = 60.0
    assert meter.load(5).busy < 0.01
    assert isinstance(ask(worker_of(), WorkerPing()), Load)


DECODERS: list[msgspec.msgpack.Decoder[object]] = [
    worker_ask_decoder,
    worker_answer_decoder,
    front_ask_decoder,
    front_answer_decoder,
]


@pytest.mark.parametrize("decoder", DECODERS)
@given(frame=st.binary(max_size=200))
def test_any_bytes(decoder: msgspec.msgpack.Decoder[object], frame: bytes) -> None:
    try:
        message = decode(frame, decoder, FRAME_MAX)
    except BadMessage:
        return
    assert decode(encode(message), decoder, FRAME_MAX) == message


def test_another_reader_sees_the_same_message() -> None:
    output = Output(3, 4, b"xy", [Pick(5)])
    assert msgpack.unpackb(encode(output)) == ["output", 3, 4, b"xy", [[5, 0.0, []]]]
