"""Of every strategy: replicas end alike, and what is replicated is a function of rounds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.learn.exact import state_root
from shoal.learn.names import STRATEGIES, options_of, strategy_named
from shoal.learn.simulate import Finished, Simulation
from shoal.learn.strategy import Part, Strategy, Turn, Vector
from tests.learning.toys import Quadratic, random_for

PARTS = [Part("a", (12, 8), 0, 96), Part("b", (8,), 96, 104), Part("c", (8, 8), 104, 168)]
ELEMENTS = PARTS[-1].stop
NAMES = sorted(STRATEGIES)
SMALL = {"dilocox": {"rank": 2}, "finalmerge": {"every": 4}, "dsgd": {}, "dadam": {}}


def make(name: str, **more: object) -> Strategy:
    return strategy_named(name, **({"every": 5} | SMALL.get(name, {}) | more))


def members(count: int) -> dict[str, Quadratic]:
    return {f"peer-{n}": Quadratic(f"peer-{n}", ELEMENTS) for n in range(count)}


def simulation(name: str, count: int = 3, rounds: int = 6, **more: object) -> Simulation:
    def new() -> Strategy:
        return make(name, **more)

    return Simulation(new, members(count), rounds=rounds, parts=PARTS)


def rough(vector: Vector) -> Vector:
    """A lossy codec: sixteen levels of the largest value."""
    step = np.abs(vector).max(initial=np.float32(1e-20)) / np.float32(7)
    return np.multiply(np.rint(np.divide(vector, step)), step)


def roots(finished: Finished) -> set[bytes]:
    return {state_root(state) for state in finished.states.values()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("through", [None, rough])
def test_replicas_are_alike_after_every_round(
    name: str, through: Callable[[Vector], Vector] | None
) -> None:
    more = {} if through is None else {"through": through}
    replicas = members(4)
    swarm = Simulation(lambda: make(name), replicas, rounds=6, parts=PARTS, **more)
    finished = list(swarm)
    assert len(finished) == 6 * len(swarm.strategy.lanes)
    if not swarm.strategy.replicas_differ:
        assert all(len(roots(each)) == 1 for each in finished)
    if not swarm.strategy.replicas_differ or name == "finalmerge":
        assert len({replica.flat().tobytes() for replica in replicas.values()}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_same_again_gives_the_same_bits(name: str) -> None:
    once, again = (
        [state_root(state) for each in simulation(name) for state in each.states.values()]
        for _ in range(2)
    )
    assert once == again


@pytest.mark.parametrize("name", NAMES)
def test_alone_in_the_swarm_all_strategies_work_too(name: str) -> None:
    replica = Quadratic("alone", ELEMENTS)
    before = float(np.linalg.norm(replica.flat() - replica.target))
    rounds = 12 if name not in ("dsgd", "dadam") else 60
    list(Simulation(lambda: make(name), {"alone": replica}, rounds=rounds, parts=PARTS))
    assert float(np.linalg.norm(replica.flat() - replica.target)) < before / 3


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32), round_=st.integers(0, 5), contributed=st.booleans())
def test_what_finish_writes_depends_on_state_and_turn_alone(
    name: str, seed: int, round_: int, contributed: bool
) -> None:
    """Neither on which replica computes it, nor on what it brought, nor on what was in `out`."""
    random = random_for(seed)
    results: list[bytes] = []
    states: list[Vector] = []
    for replica in range(2):
        strategy = make(
            name, **({} if name in ("dsgd", "dadam", "finalmerge") else {"feedback": 1.0})
        )
        lanes = strategy.prepare(PARTS, 6)
        cut = lanes[0]
        if not states:
            first = strategy.first(0, random.standard_normal(cut.elements, dtype=np.float32))
            states.append(first)
            values = random.standard_normal(strategy.size(0, round_, first), dtype=np.float32)
        state = states[0].copy()
        own = random.standard_normal(cut.elements, dtype=np.float32)  # differs by replica
        strategy.enter(0, round_, state, own)
        brought = strategy.contribution(0, round_, state, own)
        mine = contributed or replica == 0
        turn = Turn(round_, values.copy(), 2, mine, rough(brought)[: len(values)])
        out = np.full(cut.state, np.float32(replica))
        out[:] = state if replica else out
        strategy.finish(0, turn, state, out)
        assert state.tobytes() == states[0].tobytes(), "the state before is not to be changed"
        results.append(out.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("name", [n for n in NAMES if not STRATEGIES[n].replicas_differ])
def test_parameters_that_are_not_finite_are_healed_by_the_next_round(name: str) -> None:
    strategy = make(name)
    lane = strategy.prepare(PARTS, 9)[0]
    state = strategy.first(0, np.zeros(lane.elements, np.float32))
    strategy.enter(0, 1, state, np.zeros(lane.elements, np.float32))
    sick = np.full(lane.elements, np.nan, np.float32)
    strategy.contribution(0, 1, state, sick)  # the Trainer sees it, and brings weight 0
    value = np.full(strategy.size(0, 1, state), np.float32(0.5))
    out = state.copy()
    strategy.finish(0, Turn(1, value, 2, contributed=False), state, out)
    model = strategy.local(0, out, sick)
    assert bool(np.isfinite(model).all())
    assert bool(np.isfinite(strategy.contribution(0, 2, out, model + np.float32(1))).all())


@pytest.mark.parametrize("name", NAMES)
def test_settings_say_all_options_in_the_characters_of_the_wire(name: str) -> None:
    strategy = strategy_named(name)
    assert strategy.settings.startswith(f"{name} every=")
    assert len(strategy.settings) <= 256
    assert set(strategy.settings) <= set("abcdefghijklmnopqrstuvwxyz0123456789_=.,:+ -")
    assert all(f" {option}=" in strategy.settings for option in options_of(name))


def test_settings_do_not_follow_a_pace_that_members_agree_on_later() -> None:
    strategy = strategy_named("diloco")
    before = strategy.settings
    strategy.pace(40)
    assert (strategy.settings, strategy.begins(0, 1, 25)) == (before, 65)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("dilco", {}, "no strategy 'dilco'; there are"),
        ("diloco", {"lrr": 0.1}, "diloco has no 'lrr', only every, feedback, lr, momentum"),
        ("diloco", {"lr": "fast"}, "lr of diloco is float, not 'fast'"),
        ("diloco", {"every": 2.5}, "every of diloco is int, not 2.5"),
        ("diloco", {"every": True}, "every of diloco is int, not True"),
        ("diloco", {"lr": -1}, "lr is above 0, up to 4, not -1.0"),
        ("diloco", {"every": 0}, "every is from 1 to 1048576, not 0"),
        ("diloco", {"feedback": 2}, "feedback is from 0"),
        ("diloco", {"momentum": float("nan")}, "momentum is from 0 to below 1, not nan"),
        ("fedavg", {"fraction": 0.1}, "fraction needs clients"),
        ("streaming", {"fragments": 257}, "fragments are from 1 to 256"),
        ("dsgd", {"graph": "star"}, "graph is one of ring, exponential, complete, pairs"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_words(
    name: str, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint.replace("(", "\\(")):
        strategy_named(name, **options)


def test_whole_numbers_are_taken_where_toml_has_no_point() -> None:
    assert strategy_named("diloco", lr=1).settings == strategy_named("diloco", lr=1.0).settings


def test_fedavg_weighs_by_samples_and_takes_a_fraction_of_the_clients() -> None:
    replicas = {name: Quadratic(name, 4) for name in "ab"}
    weights = {"a": 30.0, "b": 10.0}
    swarm = Simulation(
        lambda: strategy_named("fedavg", every=100), replicas, rounds=1, weights=weights
    )
    list(swarm)
    wanted = 0.75 * replicas["a"].target + 0.25 * replicas["b"].target
    assert float(np.abs(replicas["a"].flat() - wanted).max()) < 0.15  # the noise of the gradients
    assert strategy_named("fedavg", fraction=0.1, clients=30).sample_size == 3
    assert strategy_named("fedavg", fraction=0.01, clients=30).sample_size == 1
    assert strategy_named("fedavg").sample_size == 0


def test_a_simulated_diloco_is_what_one_would_write_by_hand() -> None:
    """Bit for bit, momentum and all, for three members of unlike weights."""
    weights = {"peer-0": 1.0, "peer-1": 2.5, "peer-2": 0.5}
    swarm = Simulation(lambda: make("diloco"), members(3), rounds=4, weights=weights)
    for finished in swarm:
        last = finished
    replicas, step = members(3), 0
    phi = replicas["peer-0"].flat()
    momentum = np.zeros_like(phi)
    for _ in range(4):
        total = np.zeros_like(phi)
        for name, replica in replicas.items():
            replica.load(phi)
            for k in range(step, step + 5):
                replica.step(name, k)
            total = total + (phi - replica.flat()) * np.float32(weights[name])
        step += 5
        mean = total / np.float32(4)
        momentum = momentum * np.float32(0.5) + mean
        phi = phi - (mean + momentum * np.float32(0.5)) * np.float32(0.7)
    assert last.states["peer-1"].tobytes() == phi.tobytes() + momentum.tobytes()
    assert last.step == step


def test_a_sample_alone_trains_and_the_others_get_its_state() -> None:
    class Counted(Quadratic):
        steps = 0

        def step(self, member: str, step: int) -> None:
            self.steps += 1
            super().step(member, step)

    replicas = {f"peer-{n}": Counted(f"peer-{n}", 8) for n in range(10)}
    for each in Simulation(lambda: make("modest", sample=3), replicas, rounds=8):
        assert len(roots(each)) == 1
        assert len(each.states) == 10
    assert sum(replica.steps for replica in replicas.values()) == 8 * 3 * 5
    assert min(replica.steps for replica in replicas.values()) < 8 * 5 / 2


def test_fragments_take_turns_and_are_under_way_while_steps_are_made() -> None:
    swarm = simulation("streaming", every=8, fragments=4, delay=3)
    found = [(each.lane, each.round, each.step) for each in swarm if each.round < 2]
    assert found == [
        (0, 0, 5), (1, 0, 7), (2, 0, 9), (3, 0, 11), (0, 1, 13), (1, 1, 15), (2, 1, 17), (3, 1, 19),
    ]  # fmt: skip


def test_a_fragment_keeps_the_share_of_its_own_that_mixing_says() -> None:
    strategy = make("streaming", mixing=0.25, delay=2)
    lane = strategy.prepare(PARTS, 9)[0]
    state = np.ones(lane.state, np.float32)
    now = np.full(lane.elements, np.float32(5))
    strategy.enter(0, 0, state, now)
    model = strategy.local(0, state, now)
    assert model.tolist() == [2.0] * lane.elements  # 0.75 * 1 + 0.25 * 5
    assert strategy.contribution(0, 1, state, model).tolist() == [-1.0] * lane.elements


def test_an_eager_replica_keeps_what_it_moved_while_the_round_ran() -> None:
    """One replica alone, rate 1 without momentum: as if there were no rounds at all."""
    alone, plain = Quadratic("alone", 8), Quadratic("alone", 8)
    swarm = Simulation(lambda: make("eager", lr=1.0, momentum=0.0), {"alone": alone}, rounds=5)
    for each in swarm:
        last = each
    for step in range(last.step):
        plain.step("alone", step)
    np.testing.assert_allclose(alone.flat(), plain.flat(), atol=1e-5)


def test_mixing_is_of_parameters_before_the_step_that_it_overlaps() -> None:
    """x_i' = Σ w_ij x_j - u(g(x_i)), by hand for two replicas."""
    strategy = make("dsgd")
    strategy.prepare(PARTS, 9)
    x, y = (np.full(ELEMENTS, np.float32(value)) for value in (2, 4))
    state = np.zeros_like(x)  # as the round before left it, and a step was made since
    strategy.enter(0, 0, state, state)
    assert strategy.contribution(0, 0, state, x).tobytes() == x.tobytes()
    stepped = x - np.float32(0.5)
    out = np.empty(ELEMENTS, np.float32)
    strategy.finish(0, Turn(0, (x + y) / np.float32(2), 2, contributed=True), x, out)
    model = strategy.local(0, out, stepped)
    assert model.tolist() == [2.5] * ELEMENTS
    assert strategy.leave(0, out, model).tobytes() == model.tobytes()  # the last step counts


def test_the_last_round_of_a_final_merge_is_of_all() -> None:
    strategy = make("finalmerge")
    strategy.prepare(PARTS, 4)
    assert [strategy.topology(0, k) for k in range(4)] == ["pairs", "pairs", "pairs", "all"]


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_has_every_option_and_its_default(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    for option, default in options_of(name).items():
        value = int(default) if isinstance(default, bool) else default
        assert f"`{option} = {value}`" in row or (option, value) == ("feedback", 0.0), option


@pytest.mark.parametrize(("delay", "mixing"), [(0, 0.0), (0, 0.5), (2, 0.0), (5, 0.0)])
def test_streaming_alone_with_rate_1_leaves_no_step_out(delay: int, mixing: float) -> None:
    """A fragment's state after a round is what plain training has when the round begins."""
    options = {"lr": 1.0, "momentum": 0.0, "fragments": 3, "delay": delay, "mixing": mixing}
    alone, plain = Quadratic("alone", 12), Quadratic("alone", 12)
    swarm = Simulation(lambda: make("streaming", **options), {"alone": alone}, rounds=4)
    begun = {each.step - delay: (each.lane, each.states["alone"][:4]) for each in swarm}
    assert len(begun) == 12
    for step in range(max(begun) + 1):
        if step in begun:
            lane, fragment = begun[step]
            np.testing.assert_allclose(fragment, plain.flat()[4 * lane : 4 * lane + 4], atol=1e-5)
        plain.step("alone", step)


def test_a_variance_corrected_mean_by_hand() -> None:
    first, second = (np.array(values, np.float32) for values in ([0, 2, 4, 6], [2, 0, 6, 4]))
    strategy = strategy_named("variance")
    lane = strategy.prepare([Part("w", (2, 2), 0, 4)], 9)[0]
    state = strategy.first(0, first)
    assert strategy.enter(0, 0, state, first).tobytes() == first.tobytes()  # from its own
    brought = [strategy.contribution(0, 0, state, own) for own in (first, second)]
    assert [len(each) for each in brought] == [lane.contribution] * 2 == [5, 5]
    out = state.copy()
    value = (brought[0] + brought[1]) / np.float32(2)
    strategy.finish(0, Turn(0, value, 2, contributed=True), state, out)
    wide = 2 * (5 / 4) ** 0.5  # both have variance 5, their mean [1, 1, 5, 5] only 4
    np.testing.assert_allclose(out, [3 - wide, 3 - wide, 3 + wide, 3 + wide], rtol=1e-6)
    assert strategy.enter(0, 1, out, first).tobytes() == out.tobytes()


def test_in_a_simulated_mix_ones_own_is_exact_and_the_others_come_through_the_codec() -> None:
    replicas = members(4)
    alone = members(4)
    swarm = Simulation(
        lambda: make("dsgd", graph="complete", delay=0), replicas, rounds=1, through=np.zeros_like
    )
    list(swarm)
    for name, replica in alone.items():
        for step in range(5):
            replica.step(name, step)
        wanted = np.multiply(replica.flat(), np.float32(0.25))
        assert replicas[name].flat().tobytes() == wanted.tobytes()


def test_who_brought_nothing_to_a_simulated_round_owes_nothing() -> None:
    made: list[Strategy] = []

    def new() -> Strategy:
        made.append(make("diloco", feedback=1.0))
        return made[-1]

    weights = {"peer-0": 1.0, "peer-1": 0.0}
    list(Simulation(new, members(2), rounds=2, weights=weights, through=rough))
    assert [sorted(strategy.export()) for strategy in made] == [["residual-000"], []]
