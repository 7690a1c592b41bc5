"""Drafts: what is guessed, and when it pays."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.sharding.draft import (
    GUESSES_MAX,
    SUFFIX_MAX,
    Drafter,
    StepCost,
    best_window,
    right_guesses,
)

SLOW_LINK = (0.1, 0.001)  # seconds of a step, of one row more


def drafter(said: list[int], cost: tuple[float, float] = SLOW_LINK) -> Drafter:
    made = Drafter(StepCost(*cost))
    made.add(said)
    return made


def test_the_guess_is_what_followed_the_longest_suffix() -> None:
    guess = drafter([1, 2, 3, 4, 5, 6, 9, 3, 4, 7, 8, 2, 3, 4]).draft(3)
    assert guess == [5, 6, 9]  # after 2 3 4, not what came after the later 3 4


def test_of_equal_suffixes_the_last_one_counts() -> None:
    assert drafter([1, 5, 1, 6, 1]).draft(1) == [6]


def test_a_text_in_a_loop_is_guessed_beyond_its_end() -> None:
    assert drafter([1, 2, 1, 2, 1]).draft(3) == [2, 1, 2]


def test_what_was_never_said_is_not_guessed() -> None:
    assert drafter([]).draft(5) == []
    assert drafter([1]).draft(5) == []
    assert drafter([1, 2, 3]).draft(5) == []


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 20))
def test_any_guess_follows_an_earlier_occurrence_of_the_longest_suffix(
    said: list[int], limit: int
) -> None:
    guess = drafter(said).draft(limit)
    assert len(guess) <= min(limit, GUESSES_MAX)
    whole = [*said, *guess]
    for length in range(SUFFIX_MAX, 0, -1):
        suffix = said[-length:]
        ends = [at for at in range(length, len(said)) if said[at - length : at] == suffix]
        if len(suffix) == length and ends:
            assert guess == whole[ends[-1] : ends[-1] + len(guess)]
            return
    assert guess == []


def test_the_window_grows_with_success_and_shrinks_with_failure() -> None:
    made = drafter([1, 2, 3] * 2, cost=(0.1, 0.01))
    sizes: list[int] = []
    for turn in range(12):
        sizes.append(len(made.draft(99)))
        wrong = 100 + turn
        made.add([1, 2, 3] if turn < 6 else [wrong, 1, wrong, 2, wrong, 3, wrong, 1])
    assert sizes[0] < sizes[2] <= sizes[5]
    assert sizes[6] > sizes[9]
    assert sizes[11] <= 1
    made.learn(7, 3, 0.1)
    assert (made.drafted, made.accepted) == (7, 3)


def test_luck_is_learned_from_the_prompt_and_without_guessing() -> None:
    prose = drafter([token % 7 for token in random.Random(0).choices(range(1000), k=300)])
    table = drafter([1, 2, 3, 4, 5, 6] * 10)
    assert len(prose.draft(99)) < len(table.draft(99)) == GUESSES_MAX


def test_what_failed_is_tried_again_some_time() -> None:
    made, rng = drafter([1, 2, 3] * 4, cost=(0.1, 0.04)), random.Random(0)
    made.add(rng.choices(range(5), k=60))
    waits = 0
    assert not made.draft(99)
    while not made.draft(99):  # nothing was guessed meanwhile
        made.add([1 + waits % 3])
        waits += 1
    assert waits < 40


def test_it_is_off_where_a_row_costs_more_than_a_step() -> None:
    made = drafter([1, 2, 3] * 4, cost=SLOW_LINK)
    for _ in range(40):  # the route was expected to be slow, and is not
        guess = made.draft(99)
        made.learn(len(guess), len(guess), 0.04 + 0.05 * len(guess))
    assert made.draft(99) == []


def test_the_window_is_the_one_with_the_most_tokens_a_second() -> None:
    cost = StepCost(0.1, 0.02)
    for share in (0.1, 0.5, 0.8, 0.95):
        rates = [
            sum(share**n for n in range(window + 1)) / (0.1 + 0.02 * window) for window in range(16)
        ]
        assert best_window(share, cost, 15) == max(range(16), key=lambda w: rates[w])
    assert best_window(1.0, StepCost(0.1, 0.0), GUESSES_MAX) == GUESSES_MAX


def test_costs_are_learned_from_steps() -> None:
    rng = random.Random(0)
    cost = StepCost(0.2, 0.005)
    for _ in range(60):
        guesses = rng.choice([0, 0, 3, 8])
        cost.learn(guesses, (0.05 + 0.01 * guesses) * rng.uniform(0.95, 1.05))
    assert cost.base_s == pytest.approx(0.05, rel=0.2)
    assert cost.row_s == pytest.approx(0.01, rel=0.2)


def test_guesses_are_kept_up_to_the_first_wrong_one() -> None:
    assert right_guesses([1, 2, 3], [1, 2, 3, 4]) == 3
    assert right_guesses([1, 2, 3], [1, 9, 3, 4]) == 1
    assert right_guesses([], [7]) == 0
