"""Histories and feeds: whatever happens in between, the receiver ends with the sender's rows."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.sharding.history import FIRST_NUMBER, Forgotten, History, PicksKept
from protocols.sharding.intake import Intake
from protocols.sharding.wire import Pick, Picks, Step
from wire.errors import BadMessage

ROW = 2  # bytes
ROWS_MAX = 4


@dataclass
class Receiver:
    """A stage, as far as rows go."""

    prefix: bytes = b""
    intake: Intake = field(init=False)
    rows: bytearray = field(init=False)
    last: Step | None = None

    def __post_init__(self) -> None:
        self.intake = Intake(ROW, ROWS_MAX, 10_000, position=len(self.prefix) // ROW)
        self.rows = bytearray(self.prefix)

    def take(self, step: Step) -> None:
        if self.intake.take(step):
            del self.rows[step.position * ROW :]
            self.rows += step.rows
            self.last = step

    def catch_up(self, history: History, steps: int = 1_000_000) -> int:
        """Take what is lacking; return how many steps that were."""
        number, position, count = self.intake.number, self.intake.position, 0
        while count < steps and (step := history.after(number, position)) is not None:
            self.take(step)
            number, position = step.number, step.position + len(step.rows) // ROW
            count += 1
        return count


@dataclass
class Sender:
    """Adds steps of rows that nobody can mistake for one another."""

    history: History
    number: int = FIRST_NUMBER - 1
    made: int = 0

    def step(self, rows: int, back: int) -> None:
        fresh = b"".join((self.made + i).to_bytes(ROW, "big") for i in range(rows))
        self.made += rows
        self.number += 1
        position = max(0, self.history.position - back)
        self.history.add(Step(self.number, position, fresh, min(1, rows)))

    @property
    def rows(self) -> bytes:
        return self.history.rows(self.history.base, self.history.position)


STEPS = st.lists(
    st.tuples(
        st.integers(1, ROWS_MAX),  # rows
        st.integers(0, 6),  # of them taken back before
        st.sampled_from(["no", "feed", "one", "new", "other"]),  # what the feed does after it
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, prefix=st.integers(0, 11), has=st.integers(0, 11))
def test_a_receiver_ends_with_the_rows_of_its_sender(
    steps: list[tuple[int, int, str]], prefix: int, has: int
) -> None:
    reused = b"".join(bytes((255, i)) for i in range(prefix))
    sender = Sender(History(ROW, ROWS_MAX, rows=reused))
    receiver, other = Receiver(reused[: ROW * min(has, prefix)]), Receiver()
    for rows, back, then in steps:
        sender.step(rows, back)
        match then:
            case "feed":
                receiver.catch_up(sender.history)
            case "one":  # the feed breaks after one step
                receiver.catch_up(sender.history, 1)
            case "new":  # the receiver is replaced
                receiver = Receiver()
            case "other":  # the session goes back and forth between two
                receiver, other = other, receiver
            case _:
                pass
    receiver.catch_up(sender.history)
    if steps:
        assert bytes(receiver.rows) == sender.rows
        assert receiver.intake.number == sender.number
        assert receiver.last is not None
        assert receiver.last.picks == 1  # the last step is as it was, to be picked from again
    assert receiver.catch_up(sender.history) == 0


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_a_stage_that_is_replaced_gives_the_next_one_what_it_lacks(
    steps: list[tuple[int, int, str]],
) -> None:
    """What the middle one of three gives is its input, marked; now and then it is replaced."""
    sender, last = Sender(History(ROW, ROWS_MAX)), Receiver()
    middle, given_rows = Receiver(), History(ROW, ROWS_MAX)
    for rows, back, then in steps:
        sender.step(rows, back)
        if then == "new":
            middle, given_rows = Receiver(), History(ROW, ROWS_MAX)
        if then != "no":
            _pass_on(sender.history, middle, given_rows)
        if then in ("feed", "new"):
            last.catch_up(given_rows)
        if then == "other":
            last = Receiver()
    _pass_on(sender.history, middle, given_rows)
    last.catch_up(given_rows)
    if steps:
        assert bytes(last.rows) == _marked(sender.rows)


def _marked(rows: bytes) -> bytes:
    return bytes(255 - byte for byte in rows)


def _pass_on(source: History, stage: Receiver, given_rows: History) -> None:
    number, position = stage.intake.number, stage.intake.position
    while (step := source.after(number, position)) is not None:
        stage.take(step)
        given_rows.add(Step(step.number, step.position, _marked(step.rows), step.picks))
        number, position = step.number, step.position + len(step.rows) // ROW


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, forget=st.integers(0, 60))
def test_forgotten_rows_are_never_replayed_wrongly(
    steps: list[tuple[int, int, str]], forget: int
) -> None:
    sender, receiver = Sender(History(ROW, ROWS_MAX)), Receiver()
    shadow = Sender(History(ROW, ROWS_MAX))
    for index, (rows, back, then) in enumerate(steps):
        sender.step(rows, back)
        shadow.step(rows, back)
        if index == len(steps) // 2:
            sender.history.forget(forget)
        try:
            if then != "no":
                receiver.catch_up(sender.history, 1 if then == "one" else 100)
        except Forgotten:
            receiver = Receiver()
    try:
        receiver.catch_up(sender.history)
    except Forgotten:
        return
    if steps:
        assert bytes(receiver.rows) == shadow.rows


def test_old_steps_go_merged_and_the_last_one_as_it_was() -> None:
    sender = Sender(History(ROW, ROWS_MAX))
    for rows in (4, 1, 1, 1, 1, 1, 2):
        sender.step(rows, 0)
    sent = list[tuple[int, int, int, int]]()
    number, position = 0, 0
    while (step := sender.history.after(number, position)) is not None:
        sent.append((step.number - FIRST_NUMBER, step.position, len(step.rows) // ROW, step.picks))
        number, position = step.number, step.position + len(step.rows) // ROW
    assert sent == [(0, 0, 4, 0), (4, 4, 4, 0), (5, 8, 1, 0), (6, 9, 2, 1)]


def test_a_receiver_that_says_what_cannot_be_is_refused() -> None:
    sender = Sender(History(ROW, ROWS_MAX))
    for _ in range(3):
        sender.step(3, 0)
    with pytest.raises(BadMessage, match="has rows up to 1"):
        sender.history.after(FIRST_NUMBER + 1, 1)


def test_a_history_that_goes_on_from_a_prefix_is_a_copy() -> None:
    sender = Sender(History(ROW, ROWS_MAX))
    sender.step(4, 0)
    fork = sender.history.fork(3)
    assert (fork.base, fork.position, fork.rows(0, 3)) == (0, 3, sender.rows[:6])
    sender.history.forget(2)
    assert (sender.history.size_bytes, fork.size_bytes) == (4, 6)
    late = sender.history.fork(1)  # of rows that are forgotten
    assert (late.base, late.position) == (1, 1)


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (Step(9, 2, b"abc", 0), "3 B are not 1 to 4 rows of 2 B"),
        (Step(9, 2, b"", 0), "0 B are not"),
        (Step(9, 2, bytes(10), 0), "10 B are not"),
        (Step(9, 2, bytes(4), 3), "3 picks of 2 rows"),
        (Step(9, 3, bytes(4), 0), "rows from 3 on, after those before 2"),
        (Step(9, 1, bytes(8), 0), "rows up to 5, room was reserved for 4"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_and_changes_nothing(step: Step, match: str) -> None:
    intake = Intake(ROW, ROWS_MAX, 4, position=2)
    with pytest.raises(BadMessage, match=match):
        intake.take(step)
    assert (intake.number, intake.position) == (0, 2)


def test_picks_are_kept_for_an_entry_that_missed_them() -> None:
    kept = PicksKept()
    for number in range(3, 20):
        kept.add(Picks(number, number, [Pick(number)]))
    found = list[int]()
    number = 15
    while (picks := kept.after(number, 0)) is not None:
        number = picks.number
        found.append(number)
    assert found == [16, 17, 18, 19]


def test_who_missed_a_step_that_is_forgotten_is_told_even_if_it_has_as_many_rows() -> None:
    sender, receiver = Sender(History(ROW, ROWS_MAX)), Receiver()
    sender.step(4, 0)
    receiver.catch_up(sender.history)
    sender.step(2, 2)  # other rows in the place of the last two
    sender.history.forget(4)
    sender.step(1, 0)
    with pytest.raises(Forgotten, match="rows before 4 are not kept any more"):
        receiver.catch_up(sender.history)


def test_a_step_is_computed_once() -> None:
    intake = Intake(ROW, ROWS_MAX, 10, position=0)
    assert [intake.take(Step(number, 0, bytes(4), 0)) for number in (7, 7, 6, 8)] == [2, 0, 0, 2]
