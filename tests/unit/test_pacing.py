"""What a run on the wire `auto` measures, and what it wishes then."""

from shoal.pacing import Pace
from shoal.runs import RoundResult


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def made(codec: str, rate: float) -> RoundResult:
    """A round that moved bytes at its link's rate for a second and a half."""
    moved = int(1.5 * rate)
    return RoundResult(
        "committed", 0, members=["a", "b"], codec=codec, rate=rate, bytes_in=moved, bytes_out=moved
    )


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
    assert pace.wish()[0] in ("bfloat16", "int8")
    assert pace.wish()[1] == 10


def test_a_link_too_slow_for_any_codec_makes_rounds_rarer() -> None:
    clock = Clock()
    pace = Pace(10, elements=10_000_000, lanes=1, now=clock)
    pace.leave()
    steps(pace, clock, 10, 0.01)
    pace.finished(made("float32", rate=1e5))
    codec, every = pace.wish()
    assert codec == "topk"
    assert every > 10
