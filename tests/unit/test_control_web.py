"""Who may ask what on the loopback port, and the dashboard: real requests to a real listener."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from node.control.api import Api, Raw, Request
from node.control.dashboard import PAGE, Dashboard, page, routes
from node.control.http import Head
from node.control.server import ControlServer
from node.control.web import Forbidden, Keys, Unauthorised, check_web, keys_of
from node.token import load_or_make_token

TOKEN = "t" * 43
KEYS = keys_of(TOKEN)
GOOD = {"host": "127.0.0.1:4090", "authorization": f"Bearer {TOKEN}"}


def web(method: str = "GET", path: str = "/v1/status", **headers: str) -> None:
    check_web(Head(Request(method, path), {**GOOD, **headers}), keys=KEYS, port=4090)


@pytest.mark.parametrize("host", ["127.0.0.1:4090", "localhost:4090", "[::1]:4090"])
def test_the_port_serves_its_own_pages(host: str) -> None:
    web(host=host, origin=f"http://{host}")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:4090"},
        {"host": "127.0.0.1:80"},
        {"host": ""},
        {"host": "127.0.0.1.evil.example:4090"},
        {"host": "localhost:4090/x"},
        {"host": "a@localhost:4090"},
        {"origin": "http://evil.example"},
        {"origin": "https://127.0.0.1:4090"},
        {"origin": "null"},
        {"origin": "http://[broken"},
    ],
)
def test_foreign_hosts_and_origins_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden):
        web(**headers)


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"bearer {TOKEN}x"]
)
def test_a_wrong_token_is_refused(given: str) -> None:
    with pytest.raises(Unauthorised):
        web(authorization=given)


def test_no_key_opens_a_port_that_has_none() -> None:
    for given in ("Bearer ", "Bearer", ""):
        with pytest.raises(Unauthorised):
            check_web(
                Head(Request("GET", "/metrics"), {**GOOD, "authorization": given}),
                keys=Keys(),
                port=4090,
            )


@pytest.mark.parametrize(
    "path", ["/v1/status", "/v1/members", "/v1/runs", "/v1/runs/a/events", "/metrics"]
)
def test_the_viewers_key_looks(path: str) -> None:
    web(path=path, authorization=f"Bearer {KEYS.viewer}")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/runs"),
        ("DELETE", "/v1/runs/a"),
        ("GET", "/v1/ticket"),
        ("GET", "/v1/runs.json"),
        ("GET", "/v1/statusx"),
        ("GET", "//v1/ticket"),
        ("GET", "/v1/config"),
        ("POST", "/v1/dashboard"),
    ],
)
def test_the_viewers_key_does_nothing_else(method: str, path: str) -> None:
    with pytest.raises(Forbidden, match="looking"):
        web(method, path, authorization=f"Bearer {KEYS.viewer}")
    web(method, path)


def test_the_page_needs_no_key_but_the_right_host() -> None:
    web(path="/dashboard", authorization="")
    for method, path in (("POST", "/dashboard"), ("GET", "/dashboard/"), ("GET", "/")):
        with pytest.raises(Unauthorised):
            web(method, path, authorization="")
    for wrong in ({"host": "evil.example:4090"}, {"origin": "http://evil.example"}):
        with pytest.raises(Forbidden):
            web(path="/dashboard", **wrong)


def test_models_can_be_left_open_and_nothing_else() -> None:
    keys = keys_of(TOKEN, open_models=True)

    def ask(method: str, path: str, **headers: str) -> None:
        given = {"host": GOOD["host"], **headers}
        check_web(Head(Request(method, path), given), keys=keys, port=4090)

    ask("GET", "/v1/models")
    ask("GET", "/v1/models/tiny")
    ask("POST", "/v1/chat/completions", authorization="Bearer whatever")
    ask("POST", "/v1/completions")
    for method, path in (("GET", "/v1/status"), ("POST", "/v1/served"), ("GET", "/v1/modelsx")):
        with pytest.raises(Unauthorised):
            ask(method, path)
    with pytest.raises(Forbidden):
        ask("POST", "/v1/completions", origin="http://evil.example")
    with pytest.raises(Unauthorised):
        web("POST", "/v1/completions", authorization="")


@asynccontextmanager
async def dashboard(folder: Path) -> AsyncIterator[tuple[Dashboard, Keys]]:
    """A dashboard beside one route that shows and one that acts."""
    api = Api()
    token = folder / "http.token"
    made = Dashboard(ControlServer(api), token)
    routes(api, made)

    async def answer(_: Request) -> Raw:
        return Raw(b"{}", "application/json")

    api.add("GET", "/v1/status", answer, summary="", reply=Raw)
    api.add("POST", "/v1/runs", answer, summary="", reply=Raw)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made, keys_of(load_or_make_token(token))
        nursery.cancel_scope.cancel()


async def asked(
    port: int, line: str, *headers: str, host: str = "127.0.0.1"
) -> tuple[int, dict[str, str], bytes]:
    """Make one request on the port; return status, headers, body."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        head = [f"{line} HTTP/1.1", f"Host: {host}:{port}", "Connection: close", *headers]
        await stream.send_all(("\r\n".join(head) + "\r\n\r\n").encode())
        reply = b"".join([bytes(chunk) async for chunk in stream])
    said, _, body = reply.partition(b"\r\n\r\n")
    first, *rest = said.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in rest)
    return int(first.split()[1]), fields, body


async def address(made: Dashboard) -> tuple[int, str]:
    found = await made.address(Request("POST", "/v1/dashboard"))
    match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/dashboard#key=([0-9a-f]{64})", found.url)
    assert match, found.url
    return int(match[1]), match[2]


async def test_the_dashboard_opens_a_port_for_looking_when_it_is_first_asked_for(
    tmp_path: Path,
) -> None:
    async with dashboard(tmp_path) as (made, keys):
        port, key = await address(made)
        assert (await address(made)) == (port, key)
        bearer = f"Authorization: Bearer {key}"
        assert (await asked(port, "GET /v1/status", bearer))[0] == 200
        assert (await asked(port, "POST /v1/runs", bearer))[0] == 403
        assert (await asked(port, "GET /v1/status"))[0] == 401
        full = f"Authorization: Bearer {keys.token}"  # this port is for looking only
        assert (await asked(port, "POST /v1/runs", full))[0] == 401
        assert (await asked(port, "GET /dashboard", host="evil.example"))[0] == 403
        assert (await asked(port, "GET /dashboard", "Origin: http://evil.example"))[0] == 403


async def test_two_who_ask_at_once_get_one_port(tmp_path: Path) -> None:
    found: list[int] = []
    async with dashboard(tmp_path) as (made, _):

        async def ask() -> None:
            found.append((await address(made))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
    assert len(found) == 2
    assert len(set(found)) == 1


async def test_where_the_control_port_is_open_the_dashboard_is_there(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as (made, keys):
        made.is_at("::1", 4090)
        found = await made.address(Request("POST", "/v1/dashboard"))
        assert found.url == f"http://[::1]:4090/dashboard#key={keys.viewer}"


async def test_the_page_comes_without_a_key_fenced_in_and_holds_no_secret(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as (made, keys):
        port, _ = await address(made)
        status, headers, body = await asked(port, "GET /dashboard")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert body == PAGE.read_bytes()
    assert keys.viewer.encode() not in body
    assert keys.token.encode() not in body


def test_the_policy_lets_the_page_run_its_own_script_only_and_talk_to_us_only() -> None:
    made = page()
    parts = [part.split() for part in made.headers["Content-Security-Policy"].split("; ")]
    policy = {name: values for name, *values in parts}
    assert policy["default-src"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", made.body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert (len(inside), policy[rule]) == (1, [f"'sha256-{digest}'"])


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = PAGE.read_text()
    others = set(re.findall(r"https?://[^\s\"'`]+", text)) - {"http://www.w3.org/2000/svg"}
    assert others == set()
    assert set(re.findall(r"(?:src|href)=\"([^\"]*)\"", text)) == {"data:,"}


@pytest.mark.parametrize(
    "sink",
    [
        *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("),
        *('setTimeout("', "javascript:", " onclick=", " style=", "srcdoc", "DOMParser"),
    ],
)
def test_no_text_of_a_peer_can_become_markup(sink: str) -> None:
    assert sink not in PAGE.read_text()
