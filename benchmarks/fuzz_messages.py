"""Valid messages of every RPC method, made from their types, and decoders for them.

For `benchmarks.fuzz`: a protocol's wire module declares its methods; each type of message that they
name, and each tag of a union, gives one message that the decoder takes.
"""

import importlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from msgspec import inspect

from wire import codec
from wire.ports import Method

SPLICE_MAX = 32  # bytes copied from one place of a frame to another
# What lengths and type bytes are turned into: the ends of ranges, MessagePack's 32-bit headers.
EXTREMES = (b"\x00", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff")


@dataclass(frozen=True)
class Target:
    """One protocol: frames that are right, and what takes a frame that may not be."""

    frames: Sequence[bytes]
    take: Callable[[bytes], object]


def mutate(random_: random.Random, frame: bytes) -> bytes:
    """Return the frame with one to four things wrong."""
    data = bytearray(frame)
    for _ in range(random_.randrange(1, 5)):
        at = random_.randrange(len(data) + 1)
        match random_.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << random_.randrange(8)
            case 1:
                extreme = random_.choice(EXTREMES)
                data[at : at + len(extreme)] = extreme
            case 2:
                del data[at:]
            case 3:
                del data[at : at + random_.randrange(1, SPLICE_MAX)]
            case 4:
                data[at:at] = random_.randbytes(random_.randrange(1, 8))
            case _:
                start = random_.randrange(len(data) + 1)
                data[at:at] = data[start : start + SPLICE_MAX]
    return bytes(data)


@dataclass(frozen=True)
class Messages:
    """The messages of all methods of one wire module; a byte in front of each says its type."""

    module: str

    @cached_property
    def _decoders(self) -> list[tuple[Any, msgspec.msgpack.Decoder[Any], int]]:
        """Each type with its decoder and its limit."""
        found = dict[Any, tuple[Any, msgspec.msgpack.Decoder[Any], int]]()
        for value in vars(importlib.import_module(self.module)).values():
            if isinstance(value, Method):
                for type_ in (value.request, value.reply):
                    found[type_] = (type_, msgspec.msgpack.Decoder(type_), value.frame_max)
        return list(found.values())

    @cached_property
    def frames(self) -> list[bytes]:
        """One message of each kind."""
        return [
            bytes([number]) + codec.encode(example)
            for number, (type_, _, _) in enumerate(self._decoders)
            for example in examples(inspect.type_info(type_))
        ]

    def take(self, frame: bytes) -> None:
        """Decode a message as its method does."""
        _, decoder, frame_max = self._decoders[(frame[0] if frame else 0) % len(self._decoders)]
        codec.decode(frame[1:], decoder, frame_max)


# One of them fits every pattern that we have: names, CIDs, peer IDs, hashes in hex.
_TEXTS = ("a", "b" + "a" * 58, "a" * 52, "a" * 64, "12D3KooW" + "a" * 44, "/ip4/1.2.3.4/tcp/1")


def examples(info: inspect.Type) -> list[Any]:
    """Return values of a type within its bounds: one, or one of each member of a union."""
    for kind, make in _MAKERS.items():
        if isinstance(info, kind):
            return make(info)
    raise TypeError(f"no example of {info}")


def _struct(info: Any) -> list[Any]:
    fields = {field.name: examples(field.type) for field in info.fields}
    count = max((len(values) for values in fields.values()), default=1)
    return [
        info.cls(**{name: values[number % len(values)] for name, values in fields.items()})
        for number in range(count)
    ]


def _list(info: Any) -> list[Any]:
    values = examples(info.item_type)
    least = info.min_length or 0
    wanted = max(least, min(len(values), info.max_length or len(values)))
    return [(values * wanted)[:wanted]]


def _dict(info: Any) -> list[Any]:
    if info.max_length == 0:
        return [{}]
    return [{examples(info.key_type)[0]: examples(info.value_type)[0]}]


def _integer(info: Any) -> list[Any]:
    low = info.ge if info.ge is not None else (info.gt + 1 if info.gt is not None else 0)
    return [int(low)]


def _tuple(info: Any) -> list[Any]:
    return [tuple(examples(item)[0] for item in info.item_types)]


def _string(info: Any) -> list[Any]:
    fits = [text for text in _TEXTS if len(text) >= (info.min_length or 0)]
    return [next(text for text in fits if re.search(info.pattern or "", text))]


def _bytes(info: Any) -> list[Any]:
    return [bytes(info.min_length or min(24, info.max_length or 24))]


_MAKERS: dict[type[inspect.Type], Callable[[Any], list[Any]]] = {
    inspect.StructType: _struct,
    inspect.UnionType: lambda info: [one for each in info.types for one in examples(each)],
    inspect.ListType: _list,
    inspect.VarTupleType: lambda info: [tuple(_list(info)[0])],
    inspect.TupleType: _tuple,
    inspect.DictType: _dict,
    inspect.IntType: _integer,
    inspect.FloatType: lambda info: [float(info.ge or 0.0)],
    inspect.StrType: _string,
    inspect.BytesType: _bytes,
    inspect.MemoryViewType: lambda _: [memoryview(bytes(24))],
    inspect.BoolType: lambda _: [True],
    inspect.NoneType: lambda _: [None],
    inspect.LiteralType: lambda info: list(info.values),
    inspect.AnyType: lambda _: [{"a": [1, b"b", None]}],
    inspect.RawType: lambda _: [msgspec.Raw(b"\xc0")],
}
