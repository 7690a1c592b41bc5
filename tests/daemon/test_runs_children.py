"""Runs as children of the daemon: started, logged, stopped, and reported when they fail."""

import json
import os
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest
import trio

from shoal.runs import Attach, LaneBody, Report, Run, StartRun
from shoal.shared import SharedVector
from tests.sim.run_nodes import RunNodes
from wire.errors import Busy, NotFound, UsageError


class Shape:
    """What a trainer of a hundred parameters would attach with."""

    def __init__(self, pid: int) -> None:
        self.vectors = [SharedVector(100), SharedVector(200), SharedVector(200)]
        names = [vector.name for vector in self.vectors]
        self.attach = Attach(
            pid=pid,
            lanes=[LaneBody(100, 200)],
            exchange=names[0],
            states=names[1:],
            roots=["00" * 32],
            rounds=3,
            patience_s=1.0,
        )

    def close(self) -> None:
        for vector in self.vectors:
            vector.unlink()


async def one_node(nursery: trio.Nursery, home: Path) -> RunNodes:
    nodes = RunNodes(nursery, home)
    await nodes.add()
    return nodes


async def until_over(nodes: RunNodes, name: str) -> Run:
    async with aclosing(nodes.runs[0].follow(name)) as items:
        with trio.fail_after(20):
            async for item in items:
                if isinstance(item, Run) and item.state not in ("starting", "training"):
                    return item
    raise AssertionError("the stream ended before the run did")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a file of another process
        await trio.sleep(0.02)


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "script.py"
    path.write_text(text)
    return str(path)


async def test_a_script_gets_its_settings_and_its_folder(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = await one_node(nursery, tmp_path)
    text = (
        "import json, os\n"
        "config = json.load(open(os.environ['SHOAL_RUN_CONFIG']))\n"
        "print('rounds', config['run']['rounds'], os.environ['SHOAL_RUN_NAME'])\n"
    )
    config: dict[str, object] = {"run": {"rounds": 3}}
    nodes.runs[0].start(StartRun("mine", script(tmp_path, text), config))
    run = await until_over(nodes, "mine")
    assert run.state == "finished"
    folder = Path(run.directory)
    assert (folder / "train.log").read_text() == "rounds 3 mine\n"
    assert json.loads((folder / "config.json").read_text()) == config
    nursery.cancel_scope.cancel()


async def test_a_script_that_fails_is_reported_with_its_last_words(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = await one_node(nursery, tmp_path)
    nodes.runs[0].start(StartRun("bad", script(tmp_path, "raise ValueError('no data')\n")))
    run = await until_over(nodes, "bad")
    assert (run.state, run.error) == ("failed", "ValueError: no data")
    assert nodes.runs[0].names() == []
    nursery.cancel_scope.cancel()


async def test_stopping_a_run_ends_its_process(nursery: trio.Nursery, tmp_path: Path) -> None:
    nodes = await one_node(nursery, tmp_path)
    runs = nodes.runs[0]
    request = StartRun("long", script(tmp_path, "import time; print(1); time.sleep(60)\n"))
    runs.start(request)
    with pytest.raises(Busy):
        runs.start(request)
    log = tmp_path / nodes.peers[0] / "long" / "train.log"
    with trio.fail_after(10):
        await until(lambda: log.exists() and bool(log.read_text()))
    pid = runs.view("long").pid
    assert pid is not None
    with trio.fail_after(5):
        run = await runs.stop("long")
    assert run.state == "stopped"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    nursery.cancel_scope.cancel()


async def test_a_run_can_be_stopped_before_its_process_is_there(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = await one_node(nursery, tmp_path)
    runs = nodes.runs[0]
    runs.start(StartRun("hasty", script(tmp_path, "import time; time.sleep(60)\n")))
    with trio.fail_after(5):
        assert (await runs.stop("hasty")).state == "stopped"
    assert runs.names() == []
    nursery.cancel_scope.cancel()


async def test_a_run_whose_files_cannot_be_written_has_failed_and_may_be_started_again(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = await one_node(nursery, tmp_path)
    runs, request = nodes.runs[0], StartRun("mine", script(tmp_path, ""))
    config = tmp_path / nodes.peers[0] / "mine" / "config.json"
    config.mkdir(parents=True)  # as a full disk
    for start in (partial(runs.start, request), partial(runs.start, request)):
        with pytest.raises(UsageError, match="cannot write"):
            start()
        assert runs.view("mine").state == "failed"
    config.rmdir()
    runs.start(request)
    assert (await until_over(nodes, "mine")).state == "finished"
    nursery.cancel_scope.cancel()


async def test_a_report_that_cannot_be_written_down_ends_no_training(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = await one_node(nursery, tmp_path)
    runs, shape = nodes.runs[0], Shape(os.getpid())
    await runs.trainers.attach("mine", shape.attach)
    (tmp_path / nodes.peers[0] / "mine" / "metrics.jsonl").mkdir()
    assert (await runs.trainers.report("mine", Report(1, 0, loss=2.0))).loss == 2.0
    assert runs.view("mine").loss == 2.0
    await runs.stop("mine")
    shape.close()
    nursery.cancel_scope.cancel()


async def test_a_trainer_that_is_killed_frees_its_place(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = await one_node(nursery, tmp_path)
    runs = nodes.runs[0]
    process = await trio.lowlevel.open_process(["sleep", "60"])
    shape = Shape(process.pid)
    await runs.trainers.attach("mine", shape.attach)
    assert runs.view("mine").pid == process.pid
    process.kill()
    await process.wait()
    run = await until_over(nodes, "mine")
    assert (run.state, run.error) == ("failed", "the trainer's process ended")
    shape.close()
    nursery.cancel_scope.cancel()


async def test_wrong_requests_are_one_clear_error_each(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = await one_node(nursery, tmp_path)
    runs = nodes.runs[0]
    with pytest.raises(UsageError, match="no script"):
        runs.start(StartRun("mine", "/nowhere/script.py"))
    with pytest.raises(UsageError, match="no name for a run"):
        runs.start(StartRun("../mine", script(tmp_path, "")))
    with pytest.raises(NotFound):
        runs.view("nothing")
    (tmp_path / nodes.peers[0] / "old").mkdir(parents=True)
    with pytest.raises(UsageError, match="absolute path of a file"):
        await runs.export("old", Path("/"))
    nursery.cancel_scope.cancel()
