"""What a run on the wire `auto` measures, and what it wishes then."""

from shoal.pacing import Pace, rate_of
from shoal.runs import RoundResult


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def made(codec: str, rate: float) -> RoundResult:
    members = ["a", "b"]
    return RoundResult("committed", 0, members=members, codec=codec, rate=rate, seconds=1.0)


def steps(pace: Pace, clock: Clock, count: int, step_s: float, *, round_s: float = 0.0) -> None:
    for _ in range(count):
        clock.at += step_s
        pace.arrive()
        clock.at += round_s  # in the call: not computing
        pace.leave()


def test_a_link_that_keeps_up_keeps_float32() -> None:
    clock = Clock()
    pace = Pace(10, elements=1_000_000, lanes=1, now=clock)
    pace.leave()
    steps(pace, clock, 10, 0.1)
    pace.finished(made("float32", rate=100e6))  # 4 MB in 1 s of compute
    assert pace.wish() == ("float32", 10)


def test_what_a_round_takes_is_not_counted_as_computing() -> None:
    clock = Clock()
    pace = Pace(10, elements=1_000_000, lanes=1, now=clock)
    pace.leave()
    steps(pace, clock, 10, 0.1, round_s=5.0)
    pace.finished(made("float32", rate=2e6))  # 4 MB take 2 s, an interval 1 s
    assert pace.wish() == ("bfloat16", 10) or pace.wish() == ("int8", 10)


def test_a_link_too_slow_for_any_codec_makes_rounds_rarer() -> None:
    clock = Clock()
    pace = Pace(10, elements=10_000_000, lanes=1, now=clock)
    pace.leave()
    steps(pace, clock, 10, 0.01)
    pace.finished(made("float32", rate=1e5))
    codec, every = pace.wish()
    assert codec == "topk"
    assert every > 10


def test_a_rate_that_was_not_measured_is_what_the_round_moved() -> None:
    assert rate_of(RoundResult("committed", 0, bytes_in=8, bytes_out=10, seconds=2.0)) == 5.0
    assert rate_of(RoundResult("committed", 0)) == 0.0
