"""Providing many names at once, by regions of the key space. (Interface; the machine follows.)"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dht.key import Key
from dht.messages import Answer, Contact, Moment, Provision, Trace
from dht.operation import Wanted
from wire.ids import PeerId

Sign = Callable[[bytes, int], Provision]  # (name, wall_ms): a fresh provider record of ours
Nearest = Callable[[Key, int], Sequence[Contact]]  # `Table.closest`


@dataclass(frozen=True, slots=True)
class Provided:
    """How far it is, and what it did: at any time."""

    total: int  # names
    done: int  # names whose records have been sent to all of their close set
    kept: int  # records, each counted at each peer
    messages: int  # requests of all kinds
    refusals: Mapping[str, int] = field(default_factory=dict[str, int])  # reason -> messages


class ProvideMany:
    """Store provider records of many names. `result` is `Provided`, and can be read at any time.

    Dropping it cancels it; `left` are then the names to go on with.
    """

    def __init__(
        self,
        names: Iterable[bytes],
        sign: Sign,
        own: PeerId,
        nearest: Nearest,
        moment: Moment,
        *,
        region: int = 0,
        rng: random.Random | None = None,
    ) -> None: ...

    @property
    def left(self) -> list[bytes]:
        """Names that are not done."""
        raise NotImplementedError

    @property
    def result(self) -> Provided:
        """How far it is."""
        raise NotImplementedError

    def next_asks(self, moment: Moment) -> list[Wanted]: ...
    def answered(self, tag: int, answer: Answer, moment: Moment) -> None: ...
    def failed(self, tag: int, why: str, moment: Moment) -> None: ...
    @property
    def wake_at(self) -> float: ...
    @property
    def is_done(self) -> bool: ...
    @property
    def trace(self) -> Trace: ...
