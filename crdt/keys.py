"""What is retained at each key of a namespace, and the keys in order."""

from collections.abc import Collection

from crdt.entry import Record
from crdt.fold import place_of
from crdt.timeline import Timeline

_LAST = b"\x7f"  # above every character of a key


class Keys:
    """Records by key and place. Most keys have one record, and cost no more than that."""

    def __init__(self) -> None:
        self._held: dict[str, Record | dict[bytes, Record]] = {}
        self._order = Timeline()  # the keys, as ASCII
        self._fresh: set[str] = set()  # those that are not in order yet

    def at(self, key: str) -> Collection[Record]:
        """Return what is at a key, in any order."""
        held = self._held.get(key)
        if held is None:
            return ()
        return (held,) if isinstance(held, Record) else held.values()

    def at_place(self, record: Record) -> Record | None:
        """Return what its author has at a record's place."""
        held = self._held.get(record.key)
        if held is None:
            return None
        if isinstance(held, Record):
            is_same = held.author == record.author and place_of(held) == place_of(record)
            return held if is_same else None
        return held.get(place_of(record))

    def put(self, record: Record, old: Record | None) -> int:
        """Put a record where `old` is, or where nothing is; returns how many the key has now."""
        key, held = record.key, self._held.get(record.key)
        if held is old:
            if held is None:
                self._fresh.add(key)
            self._held[key] = record
            return 1
        if isinstance(held, Record):
            held = self._held[key] = {place_of(held): held}
        assert held is not None
        held[place_of(record)] = record
        return len(held)

    def remove(self, record: Record) -> int:
        """Take a record out; returns how many its key has left."""
        key, held = record.key, self._held[record.key]
        if isinstance(held, dict):
            del held[place_of(record)]
            if len(held) == 1:
                self._held[key] = next(iter(held.values()))
            return len(held)
        del self._held[key]
        if key in self._fresh:
            self._fresh.remove(key)
        else:
            self._order.remove(key.encode())
        return 0

    def under(self, prefix: str, after: str) -> list[str]:
        """Return the keys with a prefix and beyond `after`, in order."""
        if len(self._fresh) > len(self._order):
            self._order = Timeline(key.encode() for key in self._held)
        else:
            for key in self._fresh:
                self._order.add(key.encode())
        self._fresh = set()
        low = prefix.encode("utf-8", "surrogatepass")  # what is not ASCII sorts above all keys
        high = after.encode("utf-8", "surrogatepass") + b"\0"
        found = self._order.between(max(low, high), low + _LAST)
        return [key.decode() for key in found]
