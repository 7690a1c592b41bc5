"""The choice of codec and interval, on links that a test makes up."""

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


def test_a_simulated_link_that_breaks_down_and_recovers() -> None:
    """Rounds are timed on a link of 20 MB/s, then 1, then 20; the controller sees noisy rates."""
    controller, waits = Controller(25), []
    codecs: list[str] = []
    for round_ in range(60):
        rate = (1 if 20 <= round_ < 40 else 20) * MB * (0.9 + 0.2 * (round_ * 7 % 10) / 10)
        controller.measured(step_s=0.1, rate=rate)
        wish = controller.wish(elements=10_000_000, members=4)
        controller.agreed(wish.codec, wish.every)
        codecs.append(wish.codec)
        took = Load(0.1, rate, 10_000_000, 4).comm_s(dict(LADDER)[wish.codec])
        waits.append(max(0.0, took - wish.every * 0.1))
    assert codecs[21:40] == ["topk"] * 19  # from the second slow round on
    assert codecs[10:20] == ["bfloat16"] * 10
    assert codecs[50:] == ["bfloat16"] * 10
    assert all(wait == 0 for wait in waits[:20] + waits[21:40] + waits[50:])


def test_a_link_that_recovered_is_found_out_though_small_rounds_do_not_measure_it() -> None:
    """The daemon tells a rate only if the link was the limit; topk is too small for 20 MB/s."""
    controller, codecs = Controller(25), list[str]()
    for round_ in range(120):
        real = (0.5 if round_ < 10 else 20) * MB
        size = dict(LADDER)[controller.now.codec]
        is_limit = Load(0.1, real, 10_000_000, 4).comm_s(size) > 0.5
        controller.measured(step_s=0.1, rate=real if is_limit else 0.0)
        wish = controller.wish(elements=10_000_000, members=4)
        controller.agreed(wish.codec, wish.every)
        codecs.append(wish.codec)
    assert codecs[5:20] == ["topk"] * 15
    assert codecs[60:] == ["bfloat16"] * 60


def test_a_small_model_on_a_fast_link_stays_exact() -> None:
    controller = Controller(25)
    for _ in range(50):
        controller.measured(step_s=0.01)  # rounds end before the link becomes their limit
        wish = controller.wish(elements=1000, members=4)
        controller.agreed(wish.codec, wish.every)
        assert wish == START


def test_measurements_that_are_none_are_passed_over() -> None:
    controller = Controller(25)
    controller.measured(step_s=0.1, rate=2 * MB)
    before = controller.wish(elements=10_000_000, members=4)
    controller.measured(step_s=float("nan"), rate=float("inf"))
    assert controller.wish(elements=10_000_000, members=4) == before
