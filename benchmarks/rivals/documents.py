"""Loro and Yrs (pycrdt) as a child that answers orders. Run by the Python of their environment.

Both are libraries for documents: nothing in them is signed, and nothing is checked when it comes.
"""

import time
from typing import Any

import loro
import pycrdt

from benchmarks.orders import Answer, answer_orders, say


def _key(number: int, keys: int) -> str:
    return f"bench/{number % keys:06}"


def loro_replicate(count: int) -> Answer:
    """One write at a time to another replica: export since the last, import."""
    ours, theirs = loro.LoroDoc(), loro.LoroDoc()
    values, size = ours.get_map("m"), 0
    began = time.perf_counter()
    for number in range(count):
        seen = ours.oplog_vv
        values.insert(_key(number, count), "x" * 22)
        ours.commit()
        update = ours.export(loro.ExportMode.Updates(seen))
        theirs.import_(update)
        size += len(update)
    seconds = time.perf_counter() - began
    assert theirs.get_deep_value() == ours.get_deep_value()
    return {"per_s": count / seconds, "bytes": size / count}


def loro_cold(count: int) -> Answer:
    """Everything to an empty replica at once."""
    ours, theirs = loro.LoroDoc(), loro.LoroDoc()
    values = ours.get_map("m")
    for number in range(count):
        values.insert(_key(number, count), "x" * 22)
    ours.commit()
    began = time.perf_counter()
    update = ours.export(loro.ExportMode.Updates(loro.VersionVector()))
    theirs.import_(update)
    return {"per_s": count / (time.perf_counter() - began), "bytes": len(update) / count}


def loro_churn(count: int, keys: int) -> Answer:
    """Bytes of a snapshot after some keys were overwritten again and again."""
    ours = loro.LoroDoc()
    values = ours.get_map("m")
    for number in range(count):
        values.insert(_key(number, keys), "x" * 22)
        ours.commit()
    return {"bytes": len(ours.export(loro.ExportMode.Snapshot()))}


def pycrdt_replicate(count: int) -> Answer:
    """One write at a time to another replica."""
    ours, theirs = pycrdt.Doc[Any](), pycrdt.Doc[Any]()
    values, copy = ours.get("m", type=pycrdt.Map), theirs.get("m", type=pycrdt.Map)
    updates, size = list[bytes](), 0
    subscription = ours.observe(lambda event: updates.append(event.update))
    began = time.perf_counter()
    for number in range(count):
        values[_key(number, count)] = "x" * 22
        update = updates.pop()
        theirs.apply_update(update)
        size += len(update)
    seconds = time.perf_counter() - began
    ours.unobserve(subscription)
    assert len(copy) == count
    return {"per_s": count / seconds, "bytes": size / count}


def pycrdt_cold(count: int) -> Answer:
    """Everything to an empty replica at once."""
    ours, theirs = pycrdt.Doc[Any](), pycrdt.Doc[Any]()
    values = ours.get("m", type=pycrdt.Map)
    for number in range(count):
        values[_key(number, count)] = "x" * 22
    began = time.perf_counter()
    update = ours.get_update()
    theirs.apply_update(update)
    return {"per_s": count / (time.perf_counter() - began), "bytes": len(update) / count}


def pycrdt_churn(count: int, keys: int) -> Answer:
    """Bytes of a document after some keys were overwritten again and again."""
    ours = pycrdt.Doc[Any]()
    values = ours.get("m", type=pycrdt.Map)
    for number in range(count):
        values[_key(number, keys)] = "x" * 22
    return {"bytes": len(ours.get_update())}


ORDERS = (
    *(loro_replicate, loro_cold, loro_churn),
    *(pycrdt_replicate, pycrdt_cold, pycrdt_churn),
)

if __name__ == "__main__":
    say({})
    answer_orders({order.__name__: order for order in ORDERS})
