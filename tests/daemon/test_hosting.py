"""Real daemons host a model: blocks of a killed one are taken, wishes are kept, farewells heard."""

import time
from collections.abc import Callable, Iterator

import pytest

from shoal import models
from tests.daemon.processes import Daemon, daemons, run
from tests.unit.sharding_models import LAYERS, save_model
from tests.unit.sharding_tokenizer import save_tokenizer

PATIENCE_S = 120.0  # seconds; processes that import torch share the cores with other tests
HALF = LAYERS // 2
PROMPT = "to be or not"

Held = set[tuple[str, int, int, str]]


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    """Two daemons, either of which has room for all of a model that they serve together."""
    folder = tmp_path_factory.mktemp("hosting")
    save_model(folder / "hf", vocab_size=256)
    save_tokenizer(folder / "hf")
    with daemons(folder, "one", "two") as both:
        one, two = both
        for daemon in both:
            daemon.environment = {"SHOAL_SERVE__MEMORY_GIB": "1"}
        one.start()
        two.start("--join", one.client.ticket())
        wait_until(lambda: len(one.client.members()) == 2)
        done = run(one.home, "serve", str(folder / "hf"), "--name", "tiny", timeout_s=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        assert "claimed" in done.stderr
        yield both


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def held(asked: Daemon, both: list[Daemon]) -> Held:
    """What a daemon sees: (name, start, end, state)."""
    names = {daemon.client.id().peer: daemon.home.name for daemon in both if daemon.process}
    found = models.models(asked.client)
    stages = found[0].stages if found else []
    return {(names.get(s.peer, "?"), s.start, s.end, s.state) for s in stages}


def text(daemon: Daemon) -> str:
    done = run(daemon.home, "generate", PROMPT, "--max-tokens", "24", timeout_s=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_blocks_of_a_killed_daemon_are_taken_and_given_back(swarm: list[Daemon]) -> None:
    one, two = swarm
    spans = sorted((start, end) for _, start, end, _ in held(one, swarm))
    assert spans == [(0, HALF), (HALF, LAYERS)]
    before = text(one)
    [kept] = [span for span in held(one, swarm) if span[0] == "one"]
    lost = (HALF, LAYERS) if kept[1] == 0 else (0, HALF)
    two.kill()
    wait_until(lambda: ("one", *lost, "ready") in held(one, [one]))
    assert text(one) == before
    two.start()
    wait_until(lambda: held(one, swarm) == {kept, ("two", *lost, "ready")})
    assert text(two) == before


def test_what_people_wish_is_kept_also_over_a_crash(swarm: list[Daemon]) -> None:
    one, two = swarm
    whole = ("one", 0, LAYERS, "ready")
    done = run(one.home, "host", "tiny", "--blocks", f"0:{LAYERS}", "--memory", "8MiB")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: {span for span in held(two, swarm) if span[0] == "one"} == {whole})
    [stage] = [s for s in models.models(one.client)[0].stages if s.end - s.start == LAYERS]
    assert 0 < stage.free_tokens < 4096  # a quarter of 8 MiB, not of what is offered to all
    assert run(two.home, "unhost", "tiny").returncode == 0
    wait_until(lambda: held(two, swarm) == {whole})
    one.kill()
    one.start()
    wait_until(lambda: held(two, swarm) == {whole})
    too_much = run(two.home, "host", "tiny", "--memory", "1kB")
    assert (too_much.returncode, "there is room for 0.0 MiB" in too_much.stderr) == (1, True)
    nothing = run(two.home, "host", "tiny", "--blocks", f"2:{LAYERS + 1}")
    assert (nothing.returncode, f"of {LAYERS}" in nothing.stderr) == (2, True)


def test_a_daemon_that_stops_takes_its_word_back_at_once(swarm: list[Daemon]) -> None:
    one, two = swarm
    assert run(one.home, "down").returncode == 0
    began = time.monotonic()
    wait_until(lambda: held(two, [two]) == set())
    assert time.monotonic() - began < 10  # a lease would live for 30 s
