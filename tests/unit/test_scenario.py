"""Scenario files of the simulator: typed, whole, and refused with a word that helps."""

import random

import pytest

from dht.key import Key, common_bits
from tests.sim.kad_ring import Ring
from tests.sim.run import main, rows
from tests.sim.scenario import FOLDER, Goal, Scenario, load, parse, with_changes
from wire.errors import UsageError


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_every_scenario_of_the_repository_is_right_and_has_goals(name: str) -> None:
    scenario = load(name)
    assert scenario.about
    assert scenario.goals


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("link = 5", "x.toml: unknown key 'link': did you mean 'links'?"),
        ("[swarm]\nnode = 5", r"x.toml \[swarm\]: unknown key 'node': did you mean 'nodes'?"),
        ("[churn]\nmedian = 5", "did you mean 'median_session_s'?"),
        ("[swarm]\nnodes = 1", "Expected `int` >= 2"),
        ("[dead]\nshare = nan", "Expected|nan"),
        ("[work]\nkind = 'rest'", "Invalid enum value 'rest'"),
        ("[goals]\nfound = { most = 5 }", "unknown field `most`"),
        ("[swarm", "x.toml: not TOML"),
    ],
)
def test_a_mistake_is_named(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(text, "x.toml")


def test_a_scenario_that_is_not_there_names_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["calm_10"]) == 2
    assert "did you mean calm_10k?" in capsys.readouterr().err


def test_a_run_may_change_keys() -> None:
    changed = with_changes(Scenario(), ["swarm.nodes=77", "links.loss=0.5", "churn.shape=0.6"])
    assert (changed.swarm.nodes, changed.links.loss) == (77, 0.5)
    assert changed.churn is not None
    assert changed.churn.shape == 0.6
    with pytest.raises(UsageError, match="did you mean 'nodes'"):
        with_changes(Scenario(), ["swarm.node=77"])
    with pytest.raises(UsageError, match="not KEY=VALUE"):
        with_changes(Scenario(), ["swarm.nodes"])


def test_a_figure_that_is_missing_or_no_number_misses_its_goal() -> None:
    scenario = Scenario(goals={"a": Goal(at_least=1), "b": Goal(at_most=1), "c": Goal(at_most=1)})
    found = {row["figure"]: row.get("ok") for row in rows(scenario, {"a": 1.0, "b": float("nan")})}
    assert found == {"a": True, "b": False, "c": False}


class _At:
    def __init__(self, key: Key) -> None:
        self.key = key


def test_a_ring_knows_the_nearest_and_the_buckets() -> None:
    rng = random.Random(1)
    all_ = [_At(Key(rng.getrandbits(256))) for _ in range(500)]
    ring = Ring(all_[:400])
    for one in all_[400:]:
        ring.add(one)
    for one in all_[:50]:
        ring.remove(one)
    left = all_[50:]
    for _ in range(50):
        key = Key(rng.getrandbits(256))
        wanted = sorted(left, key=lambda one: one.key ^ key)
        assert ring.nearest(key, 20) == wanted[:20]
        assert ring.nearest(key, 1) == wanted[:1]
    own = left[0].key
    buckets = list(ring.buckets(own, 20, rng))
    for bits, bucket in enumerate(buckets):
        there = [one for one in left[1:] if common_bits(own, one.key) == bits]
        assert len(bucket) == min(20, len(there))
        assert set(bucket) <= set(there)
    assert sum(len(bucket) < 20 for bucket in buckets) > 2
