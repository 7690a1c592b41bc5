"""What a change of a replica comes to, and who is asked before one."""

from collections.abc import Callable

import msgspec

from crdt.entry import Record
from crdt.fault import Proven

Room = Callable[[Record, Record | None, int], bool]  # for a record, in the place of another?


def always(_record: Record, _old: Record | None, _now_ms: int) -> bool:
    """Return that there is room: no limit but the namespace's own."""
    return True


class Change(msgspec.Struct):
    """What a call has changed. keys: those that may show something else now. fault: a proof that
    was new here; it is to be kept and spread.
    """

    is_added: bool = False
    dropped: list[Record] = []
    keys: set[str] = set()
    fault: Proven | None = None
