"""`shoal train`, `runs` and `run`: run files, lines of progress, tables, pictures."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from node.cli import live
from node.cli.context import Context
from node.cli.curves import AXES, points, read_file, smoothed, together
from node.cli.live import show_all, told_of
from node.cli.run import curves, whole_lines
from node.cli.run_source import BadRunFile, read_run_file, read_source
from node.cli.run_text import duration, latest, metric_line, peer_rows, run_lines, run_row, size
from node.cli.runs import WIRES
from protocols.modelsync.codecs import codec_named
from shoal.errors import ClientError
from shoal.runs import CertificateView, Contribution, Metric, Run

SHIPPED = Path("configs/runs/shakespeare.toml")
ADA, BOB, EVE = (f"12D3KooW{name * 11}" for name in ("adaX", "bobX", "eveX"))
CERTIFICATE = CertificateView(
    round=4, attempt=1, proposer=BOB, members=[ADA, BOB], weights=[1.0, 1.0], codec="int4",
    base_root="0" * 64, result="ab" * 32, signatures=2,
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nname = "a"\nrounds = 3\nlr = 1.0\nwire = "int8"\nquick = false\n')
    return path


def test_the_shipped_run_file_is_valid_and_its_script_is_there() -> None:
    assert read_source(SHIPPED).script.is_file()


def test_values_are_changed_keeping_their_types(file: Path) -> None:
    changes = ("run.rounds=7", "run.lr=2", "run.wire=float32", "run.quick=true", "run.name='b'")
    run = read_run_file(file, changes)["run"]
    assert run == {"name": "b", "rounds": 7, "lr": 2.0, "wire": "float32", "quick": True}
    assert isinstance(run["lr"], float)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("run.rouns=7", "no run.rouns"),
        ("rounds=7", "SECTION.KEY"),
        ("run.rounds", "SECTION.KEY"),
        (".rounds=7", "SECTION.KEY"),
        ("run.rounds=many", "rounds=many"),
        ("run.rounds=1.5", "int is expected"),
        ("run.quick=1", "bool is expected"),
    ],
)
def test_a_change_that_makes_no_sense_is_one_clear_error(
    file: Path, change: str, says: str
) -> None:
    with pytest.raises(BadRunFile, match=says) as caught:
        read_run_file(file, (change,))
    assert caught.value.exit_code == 2


def test_the_nearest_key_is_named(file: Path) -> None:
    with pytest.raises(BadRunFile) as caught:
        read_run_file(file, ("run.rouns=7",))
    assert caught.value.hint == "did you mean run.rounds?"


@pytest.mark.parametrize("content", [b"\xff\x00garbage", b"[run", b"[model]\n", b"run = 3\n"])
def test_garbage_is_no_run_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(BadRunFile):
        read_run_file(path)


def test_a_run_file_must_name_a_script_that_is_there(file: Path) -> None:
    with pytest.raises(BadRunFile, match=r"run\.py, which is not there"):
        read_source(file)
    file.with_suffix(".py").write_text("")
    assert read_source(file).name == "a"


def test_a_script_takes_the_run_file_beside_it_or_any_settings(file: Path) -> None:
    script = file.with_suffix(".py")
    script.write_text("")
    assert read_source(script, ("run.rounds=4",)).config["run"]["rounds"] == 4
    file.unlink()
    found = read_source(script, ("run.rounds=4", "model.name=small", "x.y='4'"))
    assert found.name == "run"
    assert found.script == script
    assert found.config == {"run": {"rounds": 4}, "model": {"name": "small"}, "x": {"y": "4"}}


def test_options_of_a_strategy_can_be_set_and_what_is_not_set_is_left_to_the_trainer(
    file: Path,
) -> None:
    text = file.read_text()
    file.write_text(text + 'strategy = "diloco"\n[strategy]\nlr = 0.5\nmomentum = 0.1\n')
    found = read_run_file(file, ("strategy.every=7", "strategy.lr=1"))
    assert found["strategy"] == {"lr": 1.0, "momentum": 0.1, "every": 7}
    other = read_run_file(file, (), "fedavg")
    assert other["run"]["strategy"] == "fedavg"
    assert other["strategy"] == {}  # those were diloco's
    assert read_run_file(file, ("run.strategy=fedavg",)) == other
    for changes, says in ((("strategy.evry=7",), "strategy.every"), (("run.lrr=1",), "run.lr")):
        with pytest.raises(BadRunFile) as caught:
            read_run_file(file, changes)
        assert caught.value.hint == f"did you mean {says}?"
    with pytest.raises(BadRunFile, match="int is expected"):
        read_run_file(file, ("strategy.every=1.5",))
    file.write_text(text + 'strategy = "diloco"\n[strategy]\nspeed = 1\n')
    with pytest.raises(BadRunFile, match="diloco has no such option"):
        read_run_file(file)


def test_a_strategy_that_is_none_is_refused_with_the_nearest(file: Path) -> None:
    with pytest.raises(BadRunFile, match="there is no strategy fedavgg") as caught:
        read_run_file(file, (), "fedavgg")
    assert caught.value.hint == "did you mean fedavg?"


def test_a_script_without_a_run_file_knows_the_options_of_its_strategy(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("")
    config = read_source(script, ("strategy.every=7",), "diloco").config
    assert config == {"run": {"strategy": "diloco"}, "strategy": {"every": 7}}
    with pytest.raises(BadRunFile, match=r"no strategy\.evry"):
        read_source(script, ("strategy.evry=7",), "diloco")


def test_every_codec_can_be_asked_for_by_name() -> None:
    for wire in set(WIRES) - {"auto"}:
        assert codec_named(wire).name == wire


def metric(**changes: object) -> Metric:
    base = Metric(
        time_ms=0,
        run="a",
        member="12D3KooWsomebody",
        step=50,
        round=2,
        rounds=10,
        loss=5.0,
        val_loss=4.5,
        peers=4,
        bytes_in=1_700_000,
        bytes_out=900,
        seconds=0.25,
        eta_s=75.0,
        codec="int8",
    )
    return msgspec.structs.replace(base, **changes)


def test_progress_is_told_in_one_line() -> None:
    assert metric_line(metric()) == (
        "round 2/10  step 50  loss 5.000  val 4.500  4 members  900 B out, 1.7 MB in int8"
        "  0.2 s  75 s left"
    )
    assert metric_line(metric(lane=3), lanes=4).startswith("round 2/10 lane 3  step 50")
    assert "(2 attempts)" in metric_line(metric(attempt=1))
    assert metric_line(metric(loss=None, val_loss=None, peers=0, eta_s=None)) == (
        "round 2/10  step 50"
    )
    assert "\n" not in metric_line(metric(note="two\nlines\x1b[2J"))


def test_a_bar_is_told_what_goes_on() -> None:
    assert told_of(metric(), {}) == "round 2/10, loss 5.000, 75 s left"
    assert told_of(Run("a", "starting", members=[ADA]), {}) == "starting, 1 member"
    waits = Run("a", "training", 3, members=[ADA, BOB], waiting_for=[BOB])
    assert told_of(waits, {}) == f"round 3 waits for …{BOB[-8:]}"
    assert told_of(waits, {BOB: "bob\n"}) == "round 3 waits for bob?"


def test_a_pipe_gets_plain_lines_and_scripts_get_documents(
    capsys: pytest.CaptureFixture[str],
) -> None:
    waits = Run("a", "training", waiting_for=[BOB])
    items: list[Run | Metric] = [
        Run("a", "training"),
        waits,
        waits,
        metric(),
        Run("a", "finished", root="ff"),
    ]
    assert show_all(items, "a", {}, as_json=False) == items[-1]
    said = capsys.readouterr()
    assert said.out == metric_line(metric()) + "\n"
    assert said.err == f"round 0 waits for …{BOB[-8:]}\n"
    show_all(items, "a", {}, as_json=True)
    lines = capsys.readouterr().out.splitlines()
    states = [msgspec.json.decode(line).get("state", "metric") for line in lines]
    assert states == ["training", "training", "training", "metric", "finished"]


def test_lines_say_which_lane_if_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    show_all([metric(), Run("a", "training", lanes=4), metric()], "a", {}, as_json=False)
    first, second = capsys.readouterr().out.splitlines()
    assert "lane" not in first
    assert "lane 0" in second


def test_the_last_certificate_is_that_of_the_last_round_and_lane() -> None:
    first = msgspec.structs.replace(CERTIFICATE, round=3, lane=2)
    other = msgspec.structs.replace(CERTIFICATE, lane=1)
    assert latest([CERTIFICATE, other, first]) == other
    assert latest([]) is None


def test_a_run_is_shown_with_names() -> None:
    run = Run(
        "a", "training", 5, 10, 125, 4.0, 3.5, [ADA, EVE], "cd" * 32,
        pid=7, strategy="diloco", wire="int4", lanes=2, error="slow",
        settings="diloco every=25", aggregator="median", waiting_for=[EVE],
    )  # fmt: skip
    told = dict(run_lines(run, CERTIFICATE, {ADA: "ada", BOB: "bob"}))
    assert told["state"] == "training, pid 7"
    assert told["round"] == "5 of 10, step 125, loss 4.000, held-out 3.500"
    assert told["wire"] == "int4, 2 lanes"
    assert told["members"] == f"2: ada …{ADA[-8:]}, …{EVE[-8:]}"
    assert told["last"].startswith("round 4, attempt 1, proposed by bob, int4, signed by 2 of 2")
    assert told["error"] == "slow"
    assert told["settings"] == "diloco every=25"
    assert told["averages"] == "median"
    assert told["waits for"] == f"1: …{EVE[-8:]}"
    assert run_row(run)[:4] == ("a", "training", "5/10", "125")
    assert run_row(Run("b", "elsewhere"))[2] == "-"


def test_the_contribution_table_has_who_brought_most_first_and_the_banned_last() -> None:
    found = [
        Contribution(EVE, rounds=9, weight=90.0, banned=True),
        Contribution(ADA, rounds=5, weight=10.0, left_out=1, bytes_in=2_000_000, seconds=3.25),
        Contribution(BOB, rounds=5, weight=100.0),
    ]
    rows = peer_rows(found, {ADA: "ada", BOB: "bob"}, ADA)
    assert [row[1] for row in rows] == ["bob", "ada", "-"]
    assert [row[4] for row in rows] == ["50%", "5%", "45%"]
    assert rows[1][2:] == ("5", "10", "5%", "1", "2 MB", "0 B", "3.2 s", "me")
    assert rows[2][-1] == "banned"
    assert peer_rows([Contribution(ADA)], {}, "")[0][4] == "-"


@pytest.mark.parametrize(
    ("bytes_", "told"),
    [(0, "0 B"), (999, "999 B"), (999_800, "1 MB"), (1234, "1.23 kB"), (5e9, "5 GB")],
)
def test_bytes_are_told_in_decimal_units(bytes_: float, told: str) -> None:
    assert size(bytes_) == told


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (9000, "2.5 h")]
)
def test_times_are_told_in_the_unit_that_fits(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def rows_of(member: str) -> list[Metric]:
    return [
        metric(member=member, step=25 * n, loss=7.0 - n, val_loss=None, time_ms=60_000 * n)
        for n in range(3)
    ]


def write_rows(path: Path, rows: list[Metric]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


@pytest.mark.parametrize("by", list(AXES))
def test_curves_of_several_nodes_become_one_picture(tmp_path: Path, by: str) -> None:
    files = [str(write_rows(tmp_path / f"{n}.jsonl", rows_of(n * 12))) for n in ("one", "two")]
    out = tmp_path / "new" / "curves.png"
    given = [*files, "--out", str(out), "--terminal", "--by", by]
    result = CliRunner().invoke(curves, given, obj=Context())
    assert result.exception is None, result.output
    assert out.read_bytes().startswith(b"\x89PNG")
    assert str(out) in result.output
    assert "…neoneone" in result.output
    assert result.output.splitlines()[2].endswith(" 6.972")  # the first row, of 7 to 5


def test_a_name_that_is_a_formula_to_matplotlib_is_only_a_name(tmp_path: Path) -> None:
    rows = [metric(run="$\\frac{$\x1b[2J", member="x" * 12, val_loss=None)] * 2
    path, out = write_rows(tmp_path / "bad.jsonl", rows), tmp_path / "bad.png"
    result = CliRunner().invoke(curves, [str(path), "--out", str(out)], obj=Context())
    assert result.exception is None, result.output
    assert out.is_file()


def test_points_leave_gaps_out_and_may_be_drawn_over_time() -> None:
    rows = [metric(time_ms=60_000), metric(time_ms=120_000, loss=None), metric(time_ms=240_000)]
    assert points(rows, AXES["time"], "loss") == ([0.0, 3.0], [5.0, 5.0])


def test_many_noisy_points_are_smoothed_and_few_are_not() -> None:
    few = [float(n % 2) for n in range(59)]
    assert smoothed(few) == few
    many = smoothed([float(n % 2) for n in range(600)])
    assert (many[0], many[-1]) == (0.0, 1.0)
    assert all(abs(value - 0.5) < 0.03 for value in many[20:-20])
    assert len(many) == 600


def test_an_earlier_run_of_the_same_name_is_not_drawn() -> None:
    rounds = [0, 1, 2, 0, 1]
    rows = [metric(round=number, time_ms=place) for place, number in enumerate(rounds)]
    (kept,) = together([("x", rows)]).values()
    assert [row.time_ms for row in kept] == [3, 4]
    (joined,) = together([("x", rows[1:3])]).values()
    assert joined == rows[1:3]


def test_on_a_terminal_lines_stay_and_nothing_in_them_is_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "on_terminal", lambda: True)
    items: list[Run | Metric] = [
        Run("a", "training", rounds=10, lanes=2),
        metric(note="[bold]not bold[/bold] " + "long " * 40),
        Run("a", "finished"),
    ]
    assert show_all(items, "a", {}, as_json=False) == items[-1]
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("round 2/10 lane 0")] == [
        metric_line(metric(note="[bold]not bold[/bold] " + "long " * 40), 2)
    ]


def test_two_sources_of_one_member_keep_their_curves_apart() -> None:
    rows = rows_of("12D3KooWsomebody")
    assert list(together([("x.jsonl", rows), ("y.jsonl", rows)])) == [
        "a …somebody",
        "a …somebody (y.jsonl)",
    ]
    with pytest.raises(ClientError, match=r"nothing is recorded yet for z"):
        together([("z", [metric(loss=None, val_loss=None)])])


def test_a_log_is_told_by_whole_lines_however_it_is_read() -> None:
    pieces = [b"one\ntw", b"o\n\n", "thr\u00e9e".encode()[:4], "thr\u00e9e".encode()[4:]]
    assert list(whole_lines(pieces)) == ["one", "two", "", "thr\u00e9e"]


def test_a_last_line_cut_off_by_a_crash_is_left_out_but_garbage_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", rows_of("one"))
    path.write_bytes(path.read_bytes() + b'{"time_ms": 3')
    assert len(read_file(path)) == 3
    path.write_bytes(b"garbage\n" + path.read_bytes())
    with pytest.raises(ClientError, match="line 1 is no metric"):
        read_file(path)
