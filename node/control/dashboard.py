"""The dashboard: one self-contained page on a loopback port, and the address that opens it.

The page is the same for everybody and may be had without a key; what it shows it asks for with the
viewer's key, which stands behind the `#` of its address, where browsers do not send it. Its
security policy lets it run its own script only and talk to nobody but this daemon.
"""

import base64
import hashlib
import re
from pathlib import Path

import trio

from node.control.api import Api, Raw, Request
from node.control.server import ControlServer
from node.control.web import PAGE_PATH, Keys, keys_of
from node.token import load_or_make_token
from shoal.api import DashboardAt

PAGE = Path(__file__).with_name("dashboard.html")
HOST = "127.0.0.1"  # of the port that is opened when http.listen is off


class Dashboard:
    """Serves the page, on the port of http.listen, else on one that opens when first asked for."""

    def __init__(self, control: ControlServer, token: Path) -> None:
        self._control, self._token = control, token
        self._address: tuple[str, int] | None = None
        self._nursery: trio.Nursery | None = None
        self._opening = trio.Lock()  # two who ask at once get one port

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the port until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def is_at(self, host: str, port: int) -> None:
        """The control API's own port is open: the page is there, too."""
        self._address = (host, port)

    async def address(self, _: Request) -> DashboardAt:
        """Return the page's address, with the viewer's key."""
        keys = keys_of(load_or_make_token(self._token))
        async with self._opening:
            if self._address is None:
                self._address = (HOST, await self._open(Keys(viewer=keys.viewer)))
        host, port = self._address
        name = f"[{host}]" if ":" in host else host
        return DashboardAt(f"http://{name}:{port}{PAGE_PATH}#key={keys.viewer}")

    async def _open(self, keys: Keys) -> int:
        assert self._nursery is not None, "the service does not run"
        port: int = await self._nursery.start(self._control.serve_tcp, HOST, 0, keys)
        return port


def page() -> Raw:
    """Return the page with the headers that fence it in."""
    body = PAGE.read_bytes()
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(body, b'script')}",
            f"style-src {_hash(body, b'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return Raw(body, "text/html; charset=utf-8", headers=headers)


def _hash(body: bytes, tag: bytes) -> str:
    """Return the policy's word for the page's one element of a kind."""
    found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    assert len(found) == 1, f"the page has {len(found)} elements {tag!r}"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[0]).digest()).decode()}'"


def routes(api: Api, dashboard: Dashboard) -> None:
    """Declare the routes."""
    made = page()

    async def show(_: Request) -> Raw:
        return made

    api.add("GET", PAGE_PATH, show, summary="The dashboard, for a browser", reply=Raw)
    api.add(
        "POST",
        "/v1/dashboard",
        dashboard.address,
        summary="Where the dashboard is",
        reply=DashboardAt,
    )
