"""What the commands of the library print, for people and for programs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from node.cli.context import Context
from node.cli.hosting import COMMANDS as HOSTING
from node.cli.library import COMMANDS, parameters_text, parse_blocks, source_of
from node.cli.run import run
from shoal.api import Event
from shoal.errors import ClientError
from shoal.library import (
    AddModel,
    BadPart,
    KnownModel,
    LibraryProgress,
    ModelDetail,
    ModelHost,
    ModelPart,
    PinModel,
    Removed,
    ServeRun,
)
from shoal.models import Model, ServeProgress, ServeRequest

PEER = "12D3KooWBhMbLvQGgUFkUuSTcFkDTwPuh6Fp3xVJBSoDe7oWTfQS"
ONE = KnownModel(
    "smol", "ab" * 32, "b" + "a2" * 29, 1, hosted=True, family="llama", dtype="bfloat16", layers=30,
    parameters=134_515_008, hidden_size=576, vocab_size=49_152, context=8192,
    size_bytes=269_000_000, here_bytes=9_000_000, here=[(0, 1), (4, 5)], pinned=[(4, 5)], hosts=1,
    gaps=[(8, 30)], providers=[PEER],
)  # fmt: skip
WHOLE = msgspec.structs.replace(
    ONE, here=[(0, 30)], here_bytes=ONE.size_bytes, pinned=[(0, 30)], ready=True, gaps=[], hosts=2
)
UNKNOWN = KnownModel("far", "cd" * 32, "b" + "a2" * 29, 1, hosted=False)
LEFT = msgspec.structs.replace(WHOLE, name="left", listed=False, ready=False, hosts=0)


class Daemon:
    """Answers as a daemon would; keeps what it was asked."""

    def __init__(self, *replies: object) -> None:
        self.replies, self.asked = list(replies), list[tuple[str, str, object]]()

    def call(self, method: str, path: str, body: object = None, **_: object) -> Any:
        self.asked.append((method, path, body))
        return self.replies.pop(0)

    def events(self, method: str, path: str, body: object = None, **_: object) -> Iterator[Event]:
        self.asked.append((method, path, body))
        for reply in self.replies:
            yield Event("message", msgspec.json.encode(reply))


class _Context(Context):
    def __init__(self, daemon: Daemon) -> None:
        super().__init__()
        self.daemon = daemon

    def client(self) -> Any:
        return self.daemon


def ask(daemon: Daemon, *arguments: str, command: click.Command = COMMANDS["model"]) -> Result:
    return CliRunner().invoke(command, list(arguments), obj=_Context(daemon))


def test_the_list_says_what_is_here_and_who_has_the_rest() -> None:
    result = ask(Daemon([ONE, UNKNOWN, WHOLE, LEFT]), "ls")
    rows = [line.split("  ") for line in result.stdout.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["NAME", "LAYERS", "PARAMETERS", "SIZE", "DTYPE", "HERE", "HOSTED"]
    assert cells[1] == [
        *("smol", "30", "135M", "256.5 MiB", "bfloat16", "0:1 4:5, pinned 4:5", "gaps 8:30"),
    ]
    assert cells[2] == ["far", "?", "?", "?", "?", "-", "-"]
    assert cells[3][-2:] == ["all, pinned", "ready, 2 nodes"]
    assert cells[4][-1] == "forgotten"
    assert "no models yet" in ask(Daemon([]), "ls").stderr
    assert json.loads(ask(Daemon([ONE]), "ls", "--json").stdout)[0]["gaps"] == [[8, 30]]


def test_show_has_parts_and_hosts_and_gives_no_orders_to_the_terminal() -> None:
    parts = [
        ModelPart("block", 4, "block-0004.safetensors", "b" * 59, 2048, here=True, pinned=True),
        ModelPart("config", -1, "config.json", "c" * 59, 700, here=True, pinned=False),
        ModelPart("head", -1, "head.safetensors", "d" * 59, 700, here=False, pinned=False),
    ]
    hosts = [ModelHost(PEER, 0, 8, "failed", "\x1b[2Jgone")]
    text = ask(Daemon(ModelDetail(ONE, parts, hosts)), "show", "smol").stdout
    assert "\x1b" not in text
    assert "kind      llama, 30 layers, 135M, bfloat16, 256.5 MiB" in text
    assert "…Yet" not in text
    assert f"…{PEER[-8:]}  0:8     failed (?[2Jgone)" in text
    assert [line.split()[-1] for line in text.splitlines()[-3:]] == ["pinned", "here", "-"]


def test_add_follows_the_work_and_prints_the_models_id(tmp_path: Path) -> None:
    steps = [
        LibraryProgress("starting", "smol"),
        LibraryProgress("splitting", "smol", 0, 1000),
        *(LibraryProgress("splitting", "smol", done, 1000) for done in (150, 180, 990)),
        LibraryProgress("done", "smol", model=ONE),
    ]
    daemon = Daemon(*steps)
    result = ask(daemon, "add", str(tmp_path), "--name", "smol", "--dtype", "float16")
    assert daemon.asked == [("POST", "/v1/library", AddModel(str(tmp_path), "smol", "float16"))]
    assert result.stdout == f"{ONE.model}\n"
    lines = result.stderr.splitlines()
    assert lines[:3] == ["splitting", "splitting 15 %", "splitting 99 %"]
    assert lines[3].startswith("smol: llama, 30 layers")
    documents = ask(Daemon(*steps), "add", str(tmp_path), "--json").stdout.splitlines()
    assert [json.loads(line)["state"] for line in documents][-1] == "done"
    with pytest.raises(ClientError, match="ended the conversation early"):
        raise ask(Daemon(*steps[:-1]), "add", str(tmp_path)).exception or AssertionError


def test_a_source_is_a_path_or_a_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert source_of("org/model") == str(tmp_path / "org" / "model")
    assert source_of("org/other@main") == "org/other@main"
    for text in ("other", "./org/other", "/org/other", "a/b/c"):
        with pytest.raises(ClientError, match="does not exist"):
            source_of(text)


def test_serve_takes_a_name_too_but_no_path_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("./smol", "a/b/c", "~/smol"):
        daemon = Daemon()
        failed = ask(daemon, text, command=HOSTING["serve"])
        assert isinstance(failed.exception, ClientError)
        assert "does not exist" in str(failed.exception)
        assert not daemon.asked
    model = Model("smol", "ab" * 32, 30, ready=True, created_ms=0, stages=[])
    daemon = Daemon(ServeProgress("ready", "smol", model))
    assert ask(daemon, "smol", command=HOSTING["serve"]).exit_code == 0
    assert daemon.asked[0][2] == ServeRequest("smol")


@pytest.mark.parametrize("command", ["unserve", "host", "unhost"])
def test_a_name_that_cannot_be_one_reaches_the_daemon_as_a_name(command: str) -> None:
    daemon = Daemon(Model("smol", "ab" * 32, 30, ready=True, created_ms=0, stages=[]))
    assert ask(daemon, "../smol", command=HOSTING[command]).exit_code == 0
    assert daemon.asked[0][1].startswith("/v1/served/..%2Fsmol")


def test_pin_takes_all_or_some_blocks() -> None:
    for arguments, body in (
        ((), PinModel(0, None)),
        (("--blocks", "4:8"), PinModel(4, 8)),
        (("--blocks", ":8"), PinModel(0, 8)),
        (("--blocks", "4:"), PinModel(4, None)),
    ):
        daemon = Daemon(LibraryProgress("done", "smol", model=WHOLE))
        assert ask(daemon, "pin", "smol", *arguments).exit_code == 0
        assert daemon.asked == [("POST", "/v1/library/smol/pin", body)]
    for text in ("4", "a:b", "-1:3", "4-8"):
        with pytest.raises(click.BadParameter):
            parse_blocks(text)


def test_verify_fails_if_something_could_not_be_repaired() -> None:
    mended = BadPart("block-0001.safetensors", "b", repaired=True)
    lost = BadPart("head.safetensors", "b", repaired=False, why="nobody has it")
    result = ask(Daemon(LibraryProgress("done", "smol", checked=9, bad=[mended])), "verify", "smol")
    assert result.exit_code == 0
    assert result.stdout == "9 parts are what they should be\n"
    assert "block-0001.safetensors was damaged, repaired" in result.stderr
    for flag in ((), ("--json",)):
        daemon = Daemon(LibraryProgress("done", "smol", checked=9, bad=[mended, lost]))
        result = ask(daemon, "verify", "smol", *flag)
        assert isinstance(result.exception, ClientError)
        assert "1 of 9 parts of smol are bad" in str(result.exception)
        assert result.exception.exit_code == 1


def test_rm_and_unpin() -> None:
    daemon = Daemon(Removed("smol", 2048), Removed("smol", 0), ONE)
    assert "2.0 KiB freed here" in ask(daemon, "rm", "smol").stderr
    assert ask(daemon, "rm", "smol", "--force", "--json").stdout.startswith('{"name":"smol"')
    assert ask(daemon, "unpin", "smol").exit_code == 0
    assert [(method, path) for method, path, _ in daemon.asked] == [
        ("DELETE", "/v1/library/smol"),
        ("DELETE", "/v1/library/smol?force=1"),
        ("POST", "/v1/library/smol/unpin"),
    ]


def test_a_run_is_exported_into_the_library() -> None:
    daemon = Daemon(LibraryProgress("done", "smol", model=ONE))
    arguments = ("export", "my run", "--serve", "--name", "smol", "--dtype", "bfloat16")
    result = ask(daemon, *arguments, command=run)
    assert result.stdout == "smol\n"
    assert "`shoal map smol` shows when it is ready" in result.stderr
    body = ServeRun("smol", "bfloat16")
    assert daemon.asked == [("POST", "/v1/runs/my%20run/serve", body)]
    assert ask(daemon, "export", "x", "--serve", "--force", command=run).exit_code == 2


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12"), (3400, "3.4K"), (134_515_008, "135M"), (7_240_000_000, "7.2B")],
)
def test_parameters_are_counted_as_models_are_called(count: int, text: str) -> None:
    assert parameters_text(count) == text
