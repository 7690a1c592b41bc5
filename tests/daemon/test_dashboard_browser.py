"""The dashboard in a real browser, where one is installed: hostile texts stay texts."""

import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from node.control.api import Api, Raw, Request
from node.control.dashboard import Dashboard, routes
from node.control.server import ControlServer
from shoal.api import Member, Peer, Status
from shoal.runs import CertificateView, Contribution, Metric, Run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""
PATIENCE_S = 60.0
EVIL = (
    "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script>"
)
ME, OTHER = "12D3KooWme", EVIL
RUN = Run(
    EVIL, "failed", 3, 9, 75, 2.5, 2.25, [ME, OTHER], root=EVIL, error=EVIL, strategy=EVIL,
    wire=EVIL, settings=EVIL, waiting_for=[OTHER],
)  # fmt: skip
METRICS = [
    Metric(
        time_ms=n, run=EVIL, member=ME, step=25 * n, round=n, rounds=9, loss=7.0 - n, val_loss=6.5,
        note=EVIL,
    )
    for n in range(3)
]  # fmt: skip
SAID: dict[str, object] = {
    "/v1/status": Status("ready", ME, EVIL, EVIL, EVIL, 1, 2.0, "/", [], 1, 2, [], []),
    "/v1/members": [
        Member(ME, EVIL, [], "0.1", 0, alive=True, connected=False, me=True),
        Member(OTHER, EVIL, [], "0.1", 0, alive=True, connected=True, me=False),
    ],
    "/v1/peers": [Peer(OTHER, EVIL, EVIL, "in", "direct", 1.5, 10, 20, 3.0)],
    "/v1/runs": [RUN],
    "/v1/runs/{run}/metrics": METRICS,
    "/v1/runs/{run}/certificates": [
        CertificateView(2, 0, OTHER, [ME, OTHER], [1.0, 1.0], EVIL, "", EVIL, 2)
    ],
    "/v1/runs/{run}/contributions": [Contribution(OTHER, rounds=3, weight=96.0, left_out=1)],
}


def answer(said: object) -> Callable[[Request], Awaitable[Raw]]:
    async def handler(_: Request) -> Raw:
        return Raw(msgspec.json.encode(said), "application/json")

    return handler


async def seen(folder: Path) -> str:
    """Return the page as the browser has it after some seconds of its own clock."""
    api = Api()
    dashboard = Dashboard(ControlServer(api), folder / "http.token")
    routes(api, dashboard)
    for path, said in SAID.items():
        api.add("GET", path, answer(said), summary="", reply=Raw)

    async def figures(_: Request) -> Raw:
        return Raw(b"shoal_store_entries 41.0\nshoal_bytes_in_total 5000.0\n", "text/plain")

    api.add("GET", "/metrics", figures, summary="", reply=Raw)
    async with trio.open_nursery() as nursery:
        await nursery.start(dashboard.run)
        url = (await dashboard.address(Request("POST", "/v1/dashboard"))).url
        flags = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"),
            *(f"--user-data-dir={folder / 'profile'}", "--dump-dom"),
        ]
        with trio.fail_after(PATIENCE_S):
            done = await trio.run_process(
                [BROWSER, *flags, url], capture_stdout=True, stderr=subprocess.DEVNULL
            )
        nursery.cancel_scope.cancel()
    return done.stdout.decode()


@pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")
async def test_a_browser_shows_hostile_names_as_texts(tmp_path: Path) -> None:
    page = await seen(tmp_path)
    body = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)  # our own
    assert "<title>taken" not in body
    assert "<img" not in body
    assert "<script" not in body
    text = EVIL.replace("<", "&lt;").replace(">", "&gt;")
    assert body.count(text) > 10
    assert "<path" in body  # a curve
    assert ">41<" in body  # a figure
    assert "96" in body  # the contribution table
