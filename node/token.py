"""The bearer token of the loopback port: HOME/http.token, mode 0600, made when first needed."""

import secrets
from pathlib import Path

from node.identity import read_private, write_private
from wire.errors import UsageError

TOKEN_MAX_BYTES = 256  # of the file; one of ours has 43 characters


def load_or_make_token(path: Path) -> str:
    """Return the token, making one if there is none. Raises UsageError if the file is no token."""
    data = read_private(path, TOKEN_MAX_BYTES + 1)
    if data is None:
        data = secrets.token_urlsafe(32).encode()
        write_private(path, data + b"\n", replace=True)
    text = data.decode("ascii", "replace").strip()
    if not 16 <= len(text) <= TOKEN_MAX_BYTES or not text.isascii() or " " in text:
        raise UsageError(f"{path} is no token", hint=f"remove {path}; the next start makes one")
    return text
