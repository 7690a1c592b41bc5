"""`shoal generate`, `shoal chat` and `shoal map` against the real routes, over fake generations."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from node.cli.main import cli
from node.cli.map import ASCII, UNICODE, coverage, picture
from protocols.sharding.parts import HopLost
from shoal.models import Answer, Hop, Map, Model, Stage, Trace
from tests.unit.fake_endpoint import Endpoint, endpoint
from tests.unit.sharding_tokenizer import save_tokenizer

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("front")
    save_tokenizer(made, template=True)
    return made


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with endpoint(folder, monkeypatch) as running:
        yield running


def shoal(served: Endpoint, *args: str, said: str = "") -> Result:
    return CliRunner().invoke(cli, ["--socket", str(served.socket), *args], input=said)


def asked(served: Endpoint, index: int, folder: Path) -> str:
    """Return a prompt as text: the tokenizer has a token for each byte."""
    alphabet = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    letters = {number: letter for letter, number in alphabet.items()}
    return "".join(letters[token] for token in served.play.prompts[index])


def test_generate_prints_the_text_and_in_one_line_where_it_came_from(served: Endpoint) -> None:
    done = shoal(served, "generate", "x", "--max-tokens", "5")
    assert (done.exit_code, done.stdout) == (0, "to be\n")
    assert done.stderr.startswith("route 0-2 …alice > 2-4 …bob; 5 tokens, ")


def test_generate_v_says_where_the_time_went(served: Endpoint) -> None:
    served.play.reused = 1
    done = shoal(served, "generate", "x", "--max-tokens", "5", "-v", "--codec", "int8",
                 "--no-speculate", "--no-stream")  # fmt: skip
    lines = done.stderr.splitlines()
    assert lines[0].split() == ["HOP", "BLOCKS", "NODE", "LINK", "COMPUTE", "GIVES"]
    assert lines[1].split() == [
        "1",
        "0-2",
        "alices-box",
        "…alice",
        *["0.10", "ms", "0.20", "ms", "float32"],
    ]
    assert "1 tokens of prompt, 1 of them reused" in lines[3]
    assert "compute 0.6 ms, links 0.4 ms" in lines[4]
    assert lines[5] == "guessed ahead 7 tokens, 5 were right"
    assert lines[6] == "lost and replaced on the way: 1"
    assert (served.play.opened[0]["codec"], served.play.opened[0]["speculate"]) == ("int8", False)


def test_generate_json_is_one_document(served: Endpoint) -> None:
    done = shoal(served, "generate", "x", "--max-tokens", "5", "--json")
    answer = msgspec.json.decode(done.stdout, type=Answer)
    assert (answer.text, answer.finish_reason) == ("to be", "length")
    assert answer.trace is not None
    assert answer.trace.route[1].peer == "bob"


def test_an_answer_that_breaks_is_an_error_with_what_was_said(served: Endpoint) -> None:
    served.play.error = HopLost("blocks 2-4 on bob are lost")
    done = shoal(served, "generate", "x", "--max-tokens", "100")
    assert done.stdout == served.play.text
    assert "are lost" in str(done.exception)


def test_a_script_converses_line_by_line(served: Endpoint, folder: Path) -> None:
    done = shoal(
        served, "chat", "tiny", "--system", "short", "--max-tokens", "5",
        said="one\n\n two \n/clear\n/system\nthree\n/route\n/what\n/quit\nfour\n",
    )  # fmt: skip
    assert (done.exit_code, done.stdout) == (0, "to be\n" * 3)
    second = "<system>short</system><user>one</user><assistant>toĠbe</assistant><user>two</user>"
    assert asked(served, 1, folder) == second + "<assistant>"
    assert asked(served, 2, folder) == "<user>three</user><assistant>"
    assert "HOP" in done.stderr
    assert "/clear" in done.stderr


def test_a_script_ends_at_the_first_error(served: Endpoint) -> None:
    done = shoal(served, "chat", "none", said="one\ntwo\n")
    assert "no model 'none'" in str(done.exception)
    assert done.exit_code == 1


@contextmanager
def terminal(served: Endpoint) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """Run `shoal chat` on a terminal of its own."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-P", "-m", "node.cli.main", "--socket", str(served.socket), "chat"]
    process = subprocess.Popen(
        argv,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, *wanted: str) -> str:
    """Read until all that is wanted has come, one after the other."""
    said, end = b"", time.monotonic() + PATIENCE_S
    pattern = re.compile(b".*".join(re.escape(one.encode()) for one in wanted), re.DOTALL)
    while not pattern.search(said):
        is_there, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert is_there, said
        said += os.read(terminal, 4096)
    return said.decode()


def test_a_person_stops_an_answer_and_goes_on(served: Endpoint, folder: Path) -> None:
    served.play.hold = 5
    with terminal(served) as (link, process):
        read_until(link, "> ")
        os.write(link, b"one\n")
        read_until(link, "to be")
        process.send_signal(signal.SIGINT)
        read_until(link, "> ")
        served.wait_closed(1)
        served.play.hold = None
        served.play.error = HopLost("they are lost")
        os.write(link, b"two\nlines\n")  # pasted
        read_until(link, "they are lost", "> ")  # only there Ctrl-C asks for a word
        process.send_signal(signal.SIGINT)
        read_until(link, "/quit ends)\r\n> ")
        os.write(link, b"\x04")
        assert process.wait(PATIENCE_S) == 0
    kept = "<user>one</user><assistant>toĠbe</assistant>"
    assert asked(served, 1, folder) == f"{kept}<user>twoĊlines</user><assistant>"


def test_the_map_shows_nodes_blocks_gaps_and_routes(served: Endpoint) -> None:
    shoal(served, "generate", "x", "--max-tokens", "5")
    done = shoal(served, "map", "tiny")
    assert done.exit_code == 0
    assert "tiny abababababab: ready, 4 blocks" in done.stdout
    assert "alices-box …alice  ░░··" in done.stdout
    assert "answer: alices-box …alice 0-2 > …bob 2-4; " in done.stdout
    [drawn] = msgspec.json.decode(shoal(served, "map", "--json").stdout, type=list[Map])
    assert (drawn.model.name, len(drawn.answers)) == ("tiny", 1)


def stage(peer: str, start: int, end: int, state: str = "ready", **more: object) -> Stage:
    return msgspec.convert(
        {"peer": peer, "start": start, "end": end, "state": state, **more}, Stage
    )


MIXED = Model(
    "bard",
    "cd" * 32,
    12,
    False,
    0,
    [
        stage("a", 0, 5, load=0.9),
        stage("b", 0, 3, load=0.3),
        stage("b", 8, 9, "failed", note="no\x1b room"),
        stage("c", 4, 6, "draining"),
        stage("d", 9, 12, "fetching", done_bytes=1, total_bytes=4),
    ],
)


def test_cells_say_load_and_state() -> None:
    lines = picture(Map(MIXED, []), {}, 80, UNICODE)
    assert lines[0] == "bard cdcdcdcdcdcd: not ready, 12 blocks"
    rows = [line.split("  ", 1)[1].strip() for line in lines[1:7]]
    assert rows == [
        "0         10",
        "█████·······",
        "▒▒▒·····×···",
        "····▹▹······",
        "·········◌◌◌",
        "22211???????",
    ]
    assert lines[7:10] == [
        "…b 8-9: failed (no? room)",
        "…c 4-6: draining",
        "…d 9-12: fetching 25 %",
    ]
    assert lines[10] == "no node has blocks 5-12"
    assert coverage(MIXED) == [2, 2, 2, 1, 1] + [0] * 7


def test_the_picture_fits_any_terminal() -> None:
    deep = Model("deep", "ef" * 32, 500, True, 0, [stage("a" * 50, 0, 499), stage("b", 498, 500)])
    trace = Trace("deep", [Hop("a" * 50, 0, 499), Hop("b", 499, 500)], 1, 0.1, 9.0)
    for width in (1, 40, 80, 300):
        lines = picture(Map(deep, [trace]), {"b": "é" * 99}, width, ASCII)
        assert max(len(line) for line in lines) <= max(width, 1)
    wide = picture(Map(deep, [trace]), {}, 80, ASCII)
    assert "500 blocks, 8 in a cell" in wide[0]
    assert wide[-2].endswith("1 replaced")
