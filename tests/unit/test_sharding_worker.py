"""The worker: what it answers, what it refuses, and that it lives and dies with its daemon."""

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import msgspec
import pytest
import torch
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.model_workers import open_worker
from protocols.sharding.front import Front
from protocols.sharding.link import Link, WorkerGone
from protocols.sharding.sampling import pick
from protocols.sharding.split import split
from protocols.sharding.stage import Stage
from protocols.sharding.wire import (
    FRAME_MAX,
    Chat,
    Detokenise,
    Done,
    Open,
    Opened,
    Output,
    Piece,
    Sampling,
    Step,
    Text,
    TokenIds,
    WorkerAnswer,
    WorkerClose,
    WorkerOpen,
    WorkerStep,
    front_answer_decoder,
    front_ask_decoder,
    session_reply_decoder,
    session_request_decoder,
    tokens_of_step,
    worker_answer_decoder,
    worker_ask_decoder,
)
from protocols.sharding.worker import IDLE_S, SESSIONS_MAX, Worker
from tests.unit.sharding_models import LAYERS, PROMPT, make_model, save_model
from tests.unit.sharding_tokenizer import save_tokenizer
from wire.codec import decode, encode
from wire.errors import BadMessage, Busy, NotFound, RemoteError

GREEDY = Sampling()
PEER, OTHER, THIRD = "peer", "other", "third"


class Times:
    """A clock that stands still until told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def whole_worker(*, tokens_max: int = 1000, times: Times | None = None) -> Worker:
    stage = Stage(make_model("llama"), 0, LAYERS)
    return Worker(stage, tokens_max=tokens_max, now=times or Times())


def step(position: int, tokens: list[int], *, sample: bool = True) -> Step:
    return Step(position, tokens, b"", sample)


def test_a_session_goes_on_where_it_was() -> None:
    worker = whole_worker()
    assert worker.answer(WorkerOpen(1, PEER, 50, GREEDY)) == Opened()
    first = worker.answer(WorkerStep(1, step(0, PROMPT)))
    assert isinstance(first, Output)
    assert first.position == len(PROMPT)
    assert first.token is not None
    second = worker.answer(WorkerStep(1, step(first.position, [first.token], sample=False)))
    assert second == Output(len(PROMPT) + 1, b"", None)


def test_a_lost_or_repeated_step_is_seen() -> None:
    worker = whole_worker()
    worker.answer(WorkerOpen(1, PEER, 50, GREEDY))
    worker.answer(WorkerStep(1, step(0, PROMPT)))
    for position in (0, len(PROMPT) - 1, len(PROMPT) + 1):
        with pytest.raises(BadMessage, match="the session is at 12"):
            worker.answer(WorkerStep(1, step(position, [5])))


def test_a_session_gets_no_more_than_it_reserved() -> None:
    worker = whole_worker()
    worker.answer(WorkerOpen(1, PEER, 12, GREEDY))
    worker.answer(WorkerStep(1, step(0, PROMPT)))
    with pytest.raises(BadMessage, match="12 were reserved"):
        worker.answer(WorkerStep(1, step(12, [5])))


def test_tokens_and_sessions_are_limited() -> None:
    worker = whole_worker(tokens_max=100)
    worker.answer(WorkerOpen(1, PEER, 40, GREEDY))
    worker.answer(WorkerOpen(2, OTHER, 40, GREEDY))
    with pytest.raises(Busy, match="room for 20 tokens is left, 21"):
        worker.answer(WorkerOpen(3, THIRD, 21, GREEDY))
    worker.answer(WorkerClose(1))
    worker.answer(WorkerClose(2))
    for number in range(SESSIONS_MAX):
        worker.answer(WorkerOpen(number, (PEER, OTHER)[number % 2], 1, GREEDY))
    with pytest.raises(Busy, match="sessions of this stage are in use"):
        worker.answer(WorkerOpen(99, THIRD, 1, GREEDY))


def test_one_peer_cannot_take_all_room_of_a_stage() -> None:
    worker = whole_worker(tokens_max=100)
    worker.answer(WorkerOpen(1, PEER, 30, GREEDY))
    with pytest.raises(Busy, match="room for 20 tokens is left to you, 21"):
        worker.answer(WorkerOpen(2, PEER, 21, GREEDY))
    assert worker.answer(WorkerOpen(3, OTHER, 50, GREEDY)) == Opened()
    worker.answer(WorkerClose(1))
    for number in range(10, 10 + SESSIONS_MAX // 2):
        worker.answer(WorkerOpen(number, PEER, 1, GREEDY))
    with pytest.raises(Busy, match="one peer gets 16 sessions"):
        worker.answer(WorkerOpen(99, PEER, 1, GREEDY))
    assert worker.answer(WorkerOpen(99, THIRD, 1, GREEDY)) == Opened()


def test_an_idle_session_makes_room_for_another() -> None:
    times = Times()
    worker = whole_worker(tokens_max=100, times=times)
    worker.answer(WorkerOpen(1, PEER, 50, GREEDY))
    with pytest.raises(Busy):
        worker.answer(WorkerOpen(2, PEER, 50, GREEDY))
    times.now_s = IDLE_S + 1
    assert worker.answer(WorkerOpen(2, PEER, 50, GREEDY)) == Opened()
    with pytest.raises(NotFound):
        worker.answer(WorkerStep(1, step(0, PROMPT)))


def test_input_that_is_not_the_models_is_refused() -> None:
    first = Worker(Stage(make_model("llama"), 0, 2), now=Times())
    later = Worker(Stage(make_model("llama"), 2, LAYERS), now=Times())
    for worker in (first, later):
        worker.answer(WorkerOpen(1, PEER, 50, GREEDY))
        assert worker.answer(WorkerClose(9)) == Done()
    for wrong in (step(0, []), step(0, [97])):
        with pytest.raises(BadMessage):
            first.answer(WorkerStep(1, wrong))
    for hidden in (b"", bytes(127), bytes(130)):
        with pytest.raises(BadMessage):
            later.answer(WorkerStep(1, Step(0, [], hidden, True)))


def test_sampling_is_greedy_at_zero_and_repeatable_by_seed() -> None:
    logits = torch.tensor([0.0, 2.0, 1.9, -5.0])
    assert pick(logits, GREEDY, 7) == 1
    warm = Sampling(temperature=1.0, seed=3)
    drawn = [pick(logits, warm, position) for position in range(400)]
    assert drawn == [pick(logits, warm, position) for position in range(400)]
    assert drawn != [pick(logits, Sampling(1.0, 1.0, 4), position) for position in range(400)]
    share = drawn.count(1) / 400
    assert 0.3 < share < 0.6  # softmax says 0.484


def test_top_p_leaves_out_the_unlikely() -> None:
    logits = torch.tensor([0.0, 2.0, 1.9, -5.0])
    drawn = {pick(logits, Sampling(1.0, 0.9, 3), position) for position in range(200)}
    assert drawn == {1, 2}
    assert {pick(logits, Sampling(1.0, 1e-6, 3), position) for position in range(20)} == {1}


def test_a_step_of_a_wide_model_fits_a_frame() -> None:
    for hidden_size in (32, 576, 8192, 1 << 20):
        count = tokens_of_step(hidden_size)
        frame = encode(Step(1 << 17, [1 << 24] * count, bytes(4 * hidden_size * count), True))
        assert len(frame) <= FRAME_MAX


DECODERS: list[msgspec.msgpack.Decoder[object]] = [
    session_request_decoder,
    session_reply_decoder,
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
    opening = Open("ab" * 32, 0, 4, 100, Sampling(0.5, 0.9, 7))
    assert msgpack.unpackb(encode(opening)) == ["open", "ab" * 32, 0, 4, 100, [0.5, 0.9, 7]]
    assert msgpack.unpackb(encode(Output(3, b"xy", None))) == ["output", 3, b"xy", None]


@asynccontextmanager
async def real_worker(folder: Path) -> AsyncGenerator[Link[WorkerAnswer]]:
    save_model(folder / "model")
    split(folder / "model", folder / "parts")
    arguments = [f"--folder={folder / 'parts'}", "--start=0", f"--end={LAYERS}"]
    async with (
        trio.open_nursery() as nursery,
        open_worker(
            nursery,
            "protocols.sharding.worker",
            arguments,
            worker_answer_decoder,
            log_path=folder / "worker.log",
        ) as link,
    ):
        yield link


async def test_a_worker_process_answers_survives_errors_and_is_missed(tmp_path: Path) -> None:
    async with real_worker(tmp_path) as link:
        assert await link.ask(WorkerOpen(1, PEER, 50, GREEDY), timeout_s=30) == Opened()
        output = await link.ask(WorkerStep(1, step(0, PROMPT)), timeout_s=30)
        assert output == whole_answer()
        with pytest.raises(RemoteError) as caught:
            await link.ask(WorkerStep(1, step(0, PROMPT)), timeout_s=30)
        assert caught.value.code == "bad_message"
        assert await link.ask(WorkerClose(1), timeout_s=30) == Done()
        child = workers_of(os.getpid())
        assert len(child) == 1
        os.kill(child[0], signal.SIGKILL)
        with pytest.raises(WorkerGone):
            await link.ask(WorkerOpen(2, PEER, 50, GREEDY), timeout_s=30)
        assert link.gone.is_set()


def whole_answer() -> object:
    worker = whole_worker()
    worker.answer(WorkerOpen(1, PEER, 50, GREEDY))
    return worker.answer(WorkerStep(1, step(0, PROMPT)))


def workers_of(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    command = b"protocols.sharding.worker"
    return [c for c in children if command in Path(f"/proc/{c}/cmdline").read_bytes()]


async def test_a_worker_that_cannot_load_says_why(tmp_path: Path) -> None:
    arguments = [f"--folder={tmp_path / 'nothing'}", "--start=0", "--end=1"]
    async with trio.open_nursery() as nursery:
        with pytest.raises(WorkerGone, match="nothing"):
            async with open_worker(
                nursery,
                "protocols.sharding.worker",
                arguments,
                worker_answer_decoder,
                log_path=tmp_path / "worker.log",
            ):
                pytest.fail("it got ready")


def front(folder: Path, *, template: bool) -> Front:
    return Front(save_tokenizer(folder, template=template))


def test_a_front_turns_text_into_tokens_and_back(tmp_path: Path) -> None:
    tokens = front(tmp_path, template=False).answer(Text("to be or not"))
    assert isinstance(tokens, TokenIds)
    whole = front(tmp_path, template=False).answer(Detokenise([], tokens.ids, True))
    assert whole == Piece("to be or not")


def test_half_a_character_waits_for_its_other_half(tmp_path: Path) -> None:
    worker = front(tmp_path, template=False)
    tokens = worker.answer(Text("a€"))
    assert isinstance(tokens, TokenIds)
    before, fresh = tokens.ids[:1], tokens.ids[1:]
    assert len(fresh) == 3  # one token for each byte of the euro sign
    assert worker.answer(Detokenise(before, fresh[:2], False)) == Piece("")
    assert worker.answer(Detokenise(before, fresh, False)) == Piece("€")
    assert worker.answer(Detokenise(before, fresh[:2], True)) == Piece("\ufffd")


def test_a_conversation_is_put_into_the_models_template(tmp_path: Path) -> None:
    worker = front(tmp_path, template=True)
    asked = worker.answer(Chat([("user", "hi")]))
    plain = worker.answer(Text("<user>hi</user><assistant>"))
    assert asked == plain


def test_without_a_template_a_conversation_is_its_text(tmp_path: Path) -> None:
    worker = front(tmp_path, template=False)
    assert worker.answer(Chat([("system", "a"), ("user", "b")])) == worker.answer(Text("a\nb"))
