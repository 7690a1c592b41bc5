"""What benchmarks print, and the frames that they make up."""

import json
import random
import re
from pathlib import Path

import pytest
from msgspec import inspect

from benchmarks import find_daemons
from benchmarks import report as reporting
from benchmarks.find_sim import CHURN, DEAD, HOPS, HOSTILE, MANY, WALL
from benchmarks.fuzz import TARGETS, mutate
from benchmarks.fuzz_messages import examples
from benchmarks.notes import NOTES
from benchmarks.orders import Child, Failed
from benchmarks.report import percentile, report
from benchmarks.results import table
from protocols.rpc import wire
from tests.sim.scenario import load
from wire import codec


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    line, rest = capsys.readouterr().out.split("\n", 1)
    assert not rest
    row: dict[str, object] = json.loads(line)
    return row


def test_a_figure_is_the_median_beside_the_rivals_median(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report("talk.x", [3, 1, 2], "ms", against="rival", against_values=[4, 4, 9], goal_ratio=0.6)
    row = printed(capsys)
    assert (row["value"], row["against_value"], row["ratio"], row["ok"]) == (2, 4, 0.5, True)


def test_a_goal_that_is_missed_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    report("talk.x", [10.0], "MB/s", better="higher", goal=11.0)
    assert printed(capsys)["ok"] is False


def test_a_figure_that_cannot_be_measured_is_null_and_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report("talk.x", [], "ms", goal=1.0, why="needs root")
    row = printed(capsys)
    assert (row["value"], row["why"], row["goal"], "ok" in row) == (None, "needs root", 1.0, False)


def test_a_rival_that_is_missing_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    report("talk.x", [1.0], "ms", against="rival", goal_ratio=0.6, why="not installed")
    row = printed(capsys)
    assert (row["value"], row["against"], row["rival"]) == (1.0, None, "rival")
    assert "ok" not in row


def test_p99_of_a_hundred_is_the_worst_one() -> None:
    assert percentile(list(range(100)), 0.99) == 99
    assert percentile([5.0], 0.99) == 5.0


def test_results_have_a_row_for_each_line_and_never_break_the_table() -> None:
    measured = {"bench": "a", "value": 0.21, "unit": "ms", "better": "lower", "goal": 0.25}
    missing = {"bench": "b", "value": None, "unit": "ms", "better": "lower", "why": "a|b\nc"}
    page = table([json.dumps({**measured, "ok": True}), json.dumps(missing), "\n"])
    assert "| a | 0.21 | ms | \u2264 0.25 |  |  |  | yes |\n" in page
    assert "| b | not measured (a/b c) |" in page


def test_every_decoder_that_is_fuzzed_takes_what_is_right() -> None:
    for make in TARGETS:
        target = make()
        assert target.frames
        for frame in target.frames:
            target.take(frame)


def test_mutations_repeat_with_their_seed_and_change_something() -> None:
    first, again = random.Random(7), random.Random(7)
    made = [mutate(first, bytes(40)) for _ in range(200)]
    assert made == [mutate(again, bytes(40)) for _ in range(200)]
    assert sum(frame != bytes(40) for frame in made) > 150


def test_examples_have_one_message_of_each_tag() -> None:
    found = examples(inspect.multi_type_info([wire.ToServer])[0])
    assert {type(message) for message in found} == set(wire.ToServer.__args__)
    for message in found:
        codec.decode(codec.encode(message), wire.server_decoder, wire.FRAME_MAX)


def test_a_child_that_dies_or_hangs_is_a_failure_not_a_hang() -> None:
    with Child("short", ["true"]) as child, pytest.raises(Failed, match="short died"):
        child.ask("x")
    script = "echo '{}'; exec sleep 60"
    with Child("mute", ["sh", "-c", script]) as child, pytest.raises(Failed, match="mute hangs"):
        child.ask("x", timeout_s=0.05)


def test_every_figure_of_learning_says_how_it_is_measured() -> None:
    folder = Path(reporting.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("learn_*.py"))
    names = set(re.findall(r'report\([\s*(]*f?"(learn\.[a-z0-9_{}]+)', text))
    assert len(names) > 10
    starts = tuple(NOTES)
    assert {n for n in names if not n.startswith((*starts, "learn.{", "learn.int4_bytes"))} == {
        "learn.byzantine"  # why it was not measured
    }
    assert "How it was measured" in table(['{"bench": "learn.memory", "value": 1, "unit": "x"}'])


def test_every_figure_of_serving_says_how_it_is_measured() -> None:
    folder = Path(reporting.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("answer_*.py"))
    names = set(re.findall(r'"(answer\.[a-z0-9_{}]+)', text))
    assert len(names) > 10
    assert {name for name in names if not name.startswith(tuple(NOTES))} == set()


def test_every_figure_of_reaching_says_how_it_is_measured() -> None:
    folder = Path(reporting.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("reach_*.py"))
    names = set(re.findall(r'"(reach\.[a-z0-9_{}]+)', text))
    assert len(names) > 15
    starts = tuple(start for start in NOTES if start.startswith("reach.") and start != "reach.")
    named = {name for name in names if not name.startswith("reach.{")}
    assert {name for name in named if not name.startswith(starts)} == set()


def test_every_simulated_figure_of_finding_comes_from_a_scenario_and_says_how() -> None:
    wanted = [*HOPS, *WALL, *DEAD, *CHURN, *HOSTILE, *MANY]
    starts = tuple(start for start in NOTES if start.startswith("find.sim_"))
    assert all(f"find.sim_{figure.bench}".startswith(starts) for figure in wanted)
    for figure in wanted:
        goals = load(figure.scenario).goals
        if figure.goal is not None and figure.key in goals:
            goal = goals[figure.key]
            assert figure.goal in (goal.at_least, goal.at_most), figure.bench


def test_every_figure_of_finding_says_how_it_is_measured() -> None:
    folder = Path(reporting.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("find_*.py"))
    names = set(re.findall(r'f?"(find\.[a-z0-9_{}]+)', text))
    assert {"find.{kind}_p50_{size}", "find.get_hops_{size}"} <= names
    starts = tuple(start for start in NOTES if start.startswith("find."))
    made = {name.replace("{kind}", kind) for name in names for kind in find_daemons.KINDS}
    assert {name for name in made if not name.startswith(starts)} == {"find.sim"}  # its parts
