"""The choice of codec and interval, on links that a test makes up."""

from dataclasses import dataclass

import pytest

from protocols.modelsync.codecs import codec_named
from shoal.learn.controller import LADDER, Choice, Controller, Load, choose

START = Choice("float32", 25)
MB = 1e6


def load(rate: float, *, step_s: float = 0.1, elements: int = 10_000_000, members: int = 4) -> Load:
    return Load(step_s, rate, elements, members)


def test_the_ladder_is_what_the_daemon_has() -> None:
    for name, size in LADDER:
        assert codec_named(name).bytes_per_element == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize(
    ("rate", "codec"),
    [
        (100 * MB, "float32"),
        (13 * MB, "bfloat16"),
        (7 * MB, "int8"),
        (4 * MB, "int4"),
        (1 * MB, "topk"),
    ],
)
def test_the_least_lossy_codec_that_hides_behind_compute(rate: float, codec: str) -> None:
    choice = choose(load(rate), every=25, now=START)
    assert choice == Choice(codec, 25)
    sizes = dict(LADDER)
    assert load(rate).comm_s(sizes[codec]) <= 25 * 0.1


def test_a_link_too_slow_for_any_codec_makes_rounds_rarer() -> None:
    slow = load(0.05 * MB)
    choice = choose(slow, every=25, now=START)
    assert choice.codec == "topk"
    assert choice.every * 0.1 >= slow.comm_s(0.029) > (choice.every - 1) * 0.1
    assert choose(slow, every=25, now=START, every_max=40).every == 40


def test_alone_nothing_has_to_be_sent() -> None:
    assert choose(load(1.0, members=1), every=25, now=START) == START


def test_nothing_measured_changes_nothing() -> None:
    now = Choice("int8", 40)
    assert choose(load(0.0), every=25, now=now) == now
    assert choose(load(1e6, step_s=0.0), every=25, now=now) == now


def test_a_link_at_the_edge_does_not_flap() -> None:
    edge = load(1).comm_s(2.0) / 2.5  # bytes/s at which bfloat16 just fits
    now, changes = START, 0
    for round_ in range(20):
        choice = choose(load(edge * (0.95 if round_ % 2 else 1.05)), every=25, now=now)
        changes += choice != now
        now = choice
    assert changes <= 2  # down to what fits always, and there it stays
    assert now.codec == "int8"
    assert choose(load(edge * 1.5), every=25, now=now).codec == "bfloat16"


def test_more_steps_than_needed_are_kept_for_a_while_then_given_back() -> None:
    needed = choose(load(0.05 * MB), every=25, now=START).every
    assert choose(load(0.055 * MB), every=25, now=Choice("topk", needed)).every == needed
    assert choose(load(0.08 * MB), every=25, now=Choice("topk", needed)).every < needed
    assert choose(load(100 * MB), every=25, now=Choice("topk", needed)) == START


@dataclass
class Link:
    """A link and four members that average ten million parameters over it, as a daemon times it."""

    controller: Controller
    elements: int = 10_000_000

    def round(self, rate: float) -> str:
        """One round on a link of this rate; returns the codec that it had."""
        now = self.controller.now
        load = Load(0.1, rate, self.elements, 4)
        took_s = load.comm_s(dict(LADDER)[now.codec])
        moved = int(took_s * rate)
        seen = min(rate, moved / 0.25)  # a daemon measures in windows of 0.25 s
        self.controller.measured(step_s=0.1, rate=seen, moved=moved)
        wish = self.controller.wish(elements=self.elements, members=4)
        self.controller.agreed(wish.codec, wish.every)
        self.waited_s = max(0.0, took_s - now.every * 0.1)
        return now.codec


def test_a_link_that_breaks_down_and_recovers() -> None:
    """20 MB/s, then 1, then 20, with noise of a tenth."""
    link, codecs, waits = Link(Controller(25)), list[str](), list[float]()
    for round_ in range(130):
        rate = (1 if 20 <= round_ < 40 else 20) * MB * (0.9 + 0.2 * (round_ * 7 % 10) / 10)
        codecs.append(link.round(rate))
        waits.append(link.waited_s)
    assert codecs[5:20] == ["bfloat16"] * 15
    assert codecs[21:40] == ["topk"] * 19  # from the second slow round on
    assert codecs[100:] == ["bfloat16"] * 30  # small rounds do not measure it, so it takes a while
    assert sum(wait > 0 for wait in waits) <= 3  # one at the start, one at the fall, one try


def test_a_small_model_on_a_fast_link_stays_exact() -> None:
    link = Link(Controller(25), elements=1000)
    assert [link.round(100 * MB) for _ in range(50)] == ["float32"] * 50


def test_a_link_at_its_limit_is_tried_seldom() -> None:
    """At 1 MB/s topk it is; what is tried on the way costs a wait now and then."""
    link, waits = Link(Controller(25)), 0
    for _ in range(200):
        link.round(1 * MB)
        waits += link.waited_s > 0
    assert 1 <= waits <= 200 / 40


def test_measurements_that_are_none_are_passed_over() -> None:
    controller = Controller(25)
    controller.measured(step_s=0.1, rate=2 * MB, moved=40_000_000)
    before = controller.wish(elements=10_000_000, members=4)
    assert before.codec == "topk" or before.codec == "int4"
    controller.measured(step_s=float("nan"), rate=float("inf"), moved=1)
    assert controller.wish(elements=10_000_000, members=4) == before
