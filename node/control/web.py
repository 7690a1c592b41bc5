"""Who may ask what on a loopback port: Host and Origin first, then the key that the request brings.

Host and Origin keep DNS rebinding and foreign web pages out. The token may do everything; asking
models may be left open to every program of the machine. The viewer's key, which stands in the
dashboard's address and so in a browser's history, may only read what the dashboard shows: a page
that leaks it gives away figures, not the machine.
"""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from node.control.http import Head
from wire.errors import ShoalError

PAGE_PATH = "/dashboard"  # the page itself: the same for everybody, it holds no data
VIEWED = ("/v1/status", "/v1/peers", "/v1/members", "/v1/runs", "/metrics")
MODELS = ("/v1/models", "/v1/chat/completions", "/v1/completions")  # OpenAI's routes
_VIEWER = b"shoal/dashboard/1"  # what the token is asked to sign for


class Unauthorised(ShoalError):
    """No key, or a wrong one."""

    code = "unauthorised"


class Forbidden(ShoalError):
    """The wrong user, host or origin; or a viewer who wants more than to look."""

    code = "forbidden"


@dataclass(frozen=True)
class Keys:
    """The keys of a port; an empty one opens nothing. `open_models`: OpenAI's routes want none."""

    token: str = ""
    viewer: str = ""
    open_models: bool = False


def keys_of(token: str, *, open_models: bool = False) -> Keys:
    """Return a token with its viewer's key: always the same one, and no way back from it."""
    viewer = hmac.new(token.encode(), _VIEWER, hashlib.sha256).hexdigest()
    return Keys(token, viewer, open_models)


def check_web(head: Head, *, keys: Keys, port: int) -> None:
    """Decide about a request on the loopback port. Raises Forbidden or Unauthorised."""
    host = head.headers.get("host", "")
    if not _is_ours(f"http://{host}", port):
        raise Forbidden(f"host {host[:64]!r} is not this machine's loopback address")
    origin = head.headers.get("origin")
    if origin is not None and not _is_ours(origin, port):
        raise Forbidden(f"origin {origin[:64]!r} is not this daemon's own page")
    method, path = head.request.method, head.request.path
    if method == "GET" and path == PAGE_PATH:
        return
    if keys.open_models and _is_among(path, MODELS):
        return
    scheme, _, given = head.headers.get("authorization", "").partition(" ")
    key = given.strip() if scheme.lower() == "bearer" else ""
    if _is_same(key, keys.token):
        return
    if not _is_same(key, keys.viewer):
        raise Unauthorised(
            "this port wants the token of HOME/http.token",
            hint="send `Authorization: Bearer TOKEN`; `shoal dashboard` has the page's address",
        )
    if method != "GET" or not _is_among(path, VIEWED):
        raise Forbidden("this key is for looking at the dashboard only")


def _is_among(path: str, routes: tuple[str, ...]) -> bool:
    return any(path == each or path.startswith(f"{each}/") for each in routes)


def _is_same(given: str, key: str) -> bool:
    return bool(key) and hmac.compare_digest(given.encode(), key.encode())


def _is_ours(url: str, port: int) -> bool:
    try:
        parts = urlsplit(url)
        name, given_port = parts.hostname or "", parts.port or 80
    except ValueError:
        return False
    if parts.scheme != "http" or given_port != port or parts.path or parts.username is not None:
        return False
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
