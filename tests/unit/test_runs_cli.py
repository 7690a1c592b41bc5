"""`shoal train`, `runs` and `plot`: run files, progress lines, pictures."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from node.cli.context import Context
from node.cli.runs import BadRunFile, metric_line, plot, read_run_file
from shoal.runs import Metric

SHIPPED = Path("configs/runs/shakespeare.toml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nname = "a"\nrounds = 3\nlr = 1.0\nwire = "int8"\nquick = false\n')
    return path


def test_the_shipped_run_file_is_valid_and_its_script_is_there() -> None:
    config = read_run_file(SHIPPED)
    assert (SHIPPED.parent / config["run"]["script"]).is_file()


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
    )
    return msgspec.structs.replace(base, **changes)


def test_progress_is_told_in_one_line() -> None:
    line = metric_line(metric())
    for part in ("round 2/10", "step 50", "loss 5.000", "val 4.500", "4 peers", "75 s left"):
        assert part in line
    assert "900 B out, 1.7 MB in" in line
    assert metric_line(metric(loss=None, val_loss=None, peers=0, eta_s=None)) == (
        "round 2/10  step 50"
    )


def test_curves_of_several_nodes_become_one_picture(tmp_path: Path) -> None:
    files = []
    for node in ("one", "two"):
        rows = [metric(step=25 * n, loss=7.0 - n, val_loss=6.5 - n) for n in range(3)]
        path = tmp_path / f"{node}.jsonl"
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        files.append(str(path))
    out = tmp_path / "curves.png"
    result = CliRunner().invoke(plot, [*files, "--out", str(out), "--terminal"], obj=Context())
    assert result.exception is None, result.output
    assert out.read_bytes().startswith(b"\x89PNG")
    assert str(out) in result.output
