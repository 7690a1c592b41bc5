"""What `shoal model audit` prints, for people and for programs."""

import json
import time
from typing import Any

import msgspec
from click.testing import CliRunner, Result

from node.cli.context import Context
from node.cli.library import COMMANDS
from shoal.audits import Audit, Audited, Audits

PEER = "12D3KooWBhMbLvQGgUFkUuSTcFkDTwPuh6Fp3xVJBSoDe7oWTfQS"
OTHER = "12D3KooWNxj6QRzsE177R5t6uFRGRfRehCXKVCyDnb2jp5QEJvmo"


class _Context(Context):
    """Has a daemon that gives one reply, and keeps what it was asked."""

    def __init__(self, reply: object) -> None:
        super().__init__()
        self.reply, self.asked = reply, list[tuple[str, str]]()

    def client(self) -> Any:
        return self

    def call(self, method: str, path: str, **_: object) -> object:
        self.asked.append((method, path))
        return self.reply


def ask(context: _Context, *arguments: str) -> Result:
    return CliRunner().invoke(COMMANDS["model"], ["audit", *arguments], obj=context)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_table_says_who_failed_by_whose_word_and_for_how_long_we_ban_it() -> None:
    now_ms = int(time.time() * 1000)
    caught = Audited(
        PEER, [(0, 15), (20, 30)], 12, 1, now_ms - 120_000, "84 values\x1b[2J", [OTHER], [],
        now_ms + 3_481_000, None,
    )  # fmt: skip
    told = Audited(OTHER, [(15, 20)], failed_by=[PEER], failed_ms=now_ms - 7_200_000, why="picks")
    context = _Context(Audits("smol", 0.05, [caught, told], unaudited=2))
    result = ask(context, "smol")
    rows = [cells(line) for line in result.stdout.splitlines()]
    assert rows == [
        ["PEER", "BLOCKS", "PASSED", "FAILED", "LAST FAILURE", "BY", "OUR BAN"],
        ["…e7oWTfQS", "0-15, 20-30", "12", "1", "2 min: 84 values?[2J", "us", "58 min more"],
        ["…p5QEJvmo", "15-20", "0", "0", "2 h: picks", "…e7oWTfQS"],
    ]
    assert result.stderr == "2 times nobody could do the work again\n"
    assert context.asked == [("GET", "/v1/served/smol/audits")]


def test_json_is_all_that_is_known() -> None:
    reply = Audits("smol", 0.05, [Audited(PEER, [(0, 30)], 3, 0)])
    result = ask(_Context(reply), "smol", "--json")
    assert msgspec.json.decode(result.stdout, type=Audits) == reply


def test_without_audits_it_says_what_the_share_is() -> None:
    result = ask(_Context(Audits("smol", 0.05, [])), "smol")
    assert "5 % of the answers" in result.stderr


def test_now_prints_one_line_for_each_stage() -> None:
    found = [
        Audit(PEER, 0, 15, "passed", "", [OTHER]),
        Audit(OTHER, 15, 30, "failed", "a layer is missing", [PEER], [OTHER]),
    ]
    context = _Context(found)
    result = ask(context, "a model", "--now")
    rows = [cells(line) for line in result.stdout.splitlines()]
    assert [row[1:3] for row in rows[1:]] == [["0-15", "passed"], ["15-30", "failed"]]
    assert rows[2][-1] == "a layer is missing"
    assert context.asked == [("POST", "/v1/served/a%20model/audits")]
    assert json.loads(ask(context, "x", "--now", "--json").stdout) == msgspec.to_builtins(found)
