"""What was found of nodes that compute served models: the JSON of `shoal model audit --json`.

Fields may be added; none is renamed or changes its meaning within /v1.
"""

from urllib.parse import quote

import msgspec

from shoal.client import Client

TIMEOUT_S = 300.0  # seconds for an audit of every stage of a fresh answer


class _Reply(msgspec.Struct, frozen=True):
    """Common options of replies: immutable; unknown fields of newer daemons are ignored."""


class Audited(_Reply, frozen=True):
    """What auditors found of one node, in the store under their names.

    `passed` and `failed` are ours, `failed_by` those of other auditors who found it at fault and
    `passed_by` of those who did not. `why` is of the last failure known, ours first. `penalty`: its
    times count (1 + penalty) fold in our routes; null while it is banned from them.
    """

    peer: str
    layers: list[tuple[int, int]]
    passed: int = 0
    failed: int = 0
    failed_ms: int = 0
    why: str = ""
    passed_by: list[str] = []
    failed_by: list[str] = []
    banned_until_ms: int = 0
    penalty: float | None = 0.0


class Audit(_Reply, frozen=True):
    """One audit of one stage. `state`: passed, failed, disputed, unaudited.

    `blamed` are those whom it found at fault: the stage, another stage, or an auditor.
    """

    peer: str
    start: int
    end: int
    state: str
    note: str = ""
    auditors: list[str] = []
    blamed: list[str] = []


class Audits(_Reply, frozen=True):
    """Audits of a model. `unaudited`: how often work could not be done again, since the start."""

    name: str
    share: float
    audited: list[Audited]
    unaudited: int = 0


def audits(client: Client, name: str) -> Audits:
    """Return what is known of a model's nodes."""
    return client.call("GET", _path(name), reply=Audits)


def audit_now(client: Client, name: str) -> list[Audit]:
    """Have this node ask the model something short, and audit every stage of the answer."""
    return client.call("POST", _path(name), reply=list[Audit], timeout_s=TIMEOUT_S)


def _path(name: str) -> str:
    return f"/v1/served/{quote(name, safe='')}/audits"
