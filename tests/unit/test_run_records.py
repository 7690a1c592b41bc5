"""Runs of this node: found again after a restart, bounded, and shown to Prometheus."""

import math
import os
from pathlib import Path

import msgspec
import pytest

from node.metrics import Metrics, RunFigures, training_figures
from node.run_files import begin_anew, how_it_ended, read_lines, save_contributions
from node.run_records import RUNS_MAX, Records, Totals
from node.run_views import merged, run_figures
from shoal.runs import Contribution, Metric, RoundResult
from wire.errors import Busy, NotFound
from wire.ids import PeerId

METRIC = Metric(
    time_ms=0, run="a", member="me", step=50, round=2, rounds=10, loss=5.0, val_loss=4.5,
    root="ab" * 32, codec="int4",
)  # fmt: skip


class Nobody:
    """A swarm without runs."""

    def members(self, run: str) -> list[PeerId]:
        return []

    def run_names(self) -> list[str]:
        return []

    def failure_of(self, run: str) -> str:
        return ""

    def waiting_for(self, run: str, lane: int) -> list[PeerId]:
        return []


def write(folder: Path, *lines: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
    return folder


def test_after_a_restart_runs_are_shown_as_their_last_metric_left_them(tmp_path: Path) -> None:
    over = msgspec.structs.replace(METRIC, round=10, step=250)
    write(tmp_path / "a", b"garbage", msgspec.json.encode(METRIC), b'{"cut off')
    write(tmp_path / "b", msgspec.json.encode(METRIC), msgspec.json.encode(over))
    write(tmp_path / "c")
    (tmp_path / "not a run").mkdir()
    (tmp_path / "file").touch()
    records = Records(tmp_path, Nobody())
    records.recall()
    first, second, third = records.views()
    assert (first.name, first.state, first.round, first.rounds) == ("a", "stopped", 2, 10)
    assert (first.step, first.loss, first.root, first.wire) == (50, 5.0, "ab" * 32, "int4")
    assert (second.state, second.round) == ("finished", 10)
    assert (third.state, third.round, third.rounds) == ("stopped", 0, 0)
    with pytest.raises(NotFound):
        records.get("../a")


def test_the_end_of_a_file_of_lines_is_read_without_what_the_cut_spoilt(tmp_path: Path) -> None:
    rows = [msgspec.structs.replace(METRIC, step=number) for number in range(100)]
    path = write(tmp_path / "a", *map(msgspec.json.encode, rows)) / "metrics.jsonl"
    assert read_lines(path, Metric) == rows
    few = read_lines(path, Metric, 2000)
    assert 0 < len(few) < 10
    assert few == rows[-len(few) :]
    assert read_lines(path, Metric, 10**9) == rows
    assert read_lines(tmp_path / "none", Metric, 5) == []


def test_a_home_without_runs_is_no_error(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs", Nobody())
    records.recall()
    assert records.views() == []


def test_of_too_many_runs_the_oldest_that_is_over_is_forgotten(tmp_path: Path) -> None:
    for number in range(RUNS_MAX + 1):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        os.utime(folder, (number, number))
    records = Records(tmp_path, Nobody())
    records.recall()
    names = {view.name for view in records.views()}
    assert len(names) == RUNS_MAX
    assert "run0" not in names
    records.new("next")
    names = {view.name for view in records.views()}
    assert ("run1" in names, "run2" in names, "next" in names) == (False, True, True)
    for number in range(RUNS_MAX - 1):
        records.new(f"active{number}")
    with pytest.raises(Busy, match="going on"):
        records.new("one-more")


def test_totals_count_what_rounds_took() -> None:
    totals = Totals()
    for attempt in (0, 2):
        totals.count(RoundResult("committed", 1, attempt, bytes_in=10, bytes_out=20, seconds=0.5))
    assert totals == Totals(committed=2, attempts=4, bytes_in=20, bytes_out=40, seconds=1.0)


def test_tables_of_two_trainers_add_up_and_survive_a_restart(tmp_path: Path) -> None:
    first = [Contribution("a", rounds=3, weight=30.0, banned=True), Contribution("b", rounds=1)]
    then = [Contribution("b", rounds=2, left_out=1, bytes_in=5), Contribution("c", seconds=1.5)]
    table = merged(first, then)
    assert table == [
        Contribution("a", rounds=3, weight=30.0, banned=True),
        Contribution("b", rounds=3, left_out=1, bytes_in=5),
        Contribution("c", seconds=1.5),
    ]
    folder = tmp_path / "mine"
    folder.mkdir()
    save_contributions(folder, table)
    assert Records(tmp_path, Nobody()).get("mine").before == table
    assert Records(tmp_path, Nobody()).new("mine").before == table
    begin_anew(folder)
    assert Records(tmp_path, Nobody()).new("mine").before == []
    (folder / "contributions.json").write_text('[{"peer": 3}]')
    assert Records(tmp_path, Nobody()).new("mine").before == []


@pytest.mark.parametrize(
    ("log", "status", "says"),
    [
        ("Traceback\nshoal.errors.ApiError: run a: other settings\n\n", 1, "run a: other settings"),
        ("ValueError: no such file\n", 1, "ValueError: no such file"),
        ("", 3, "exit status 3"),
        ("all is well\n", -9, "killed by signal 9 (Killed)"),
    ],
)
def test_a_failure_is_told_in_the_scripts_last_words(
    tmp_path: Path, log: str, status: int, says: str
) -> None:
    path = tmp_path / "train.log"
    path.write_text(log)
    assert how_it_ended(status, path) == says


def test_prometheus_is_shown_each_run(tmp_path: Path) -> None:
    records = Records(tmp_path, Nobody())
    record = records.new("mine")
    record.totals.count(RoundResult("committed", 1, 1, bytes_in=10, bytes_out=20, seconds=0.5))
    found = [
        Contribution("a", rounds=3, left_out=2),
        Contribution("b", left_out=1, banned=True),
    ]
    shown = run_figures(record, records.view(record), found)
    assert (shown.left_out, shown.banned, shown.is_active) == (3, 1, True)
    assert math.isnan(shown.loss)
    metrics = Metrics()
    metrics.add(*training_figures(lambda: [shown, RunFigures("other", False, 4, 100, 2, loss=1.5)]))
    lines = metrics.text().decode().splitlines()
    for line in (
        'shoal_run_active{run="mine"} 1.0',
        'shoal_run_attempts_total{run="mine"} 2.0',
        'shoal_run_bytes_out_total{run="mine"} 20.0',
        'shoal_run_left_out_total{run="mine"} 3.0',
        'shoal_run_banned{run="mine"} 1.0',
        'shoal_run_round{run="other"} 4.0',
        'shoal_run_loss{run="other"} 1.5',
    ):
        assert line in lines
    assert not any(line.startswith('shoal_run_loss{run="mine"}') for line in lines)
