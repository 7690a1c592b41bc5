"""What a replica does when others decide: when it begins its rounds, and how often."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from shoal.learn.names import strategy_named
from shoal.learn.strategy import Part, Vector
from shoal.replica import Replica
from shoal.run_client import Shape
from shoal.runs import LaneBody, RoundResult

SIZE = 4


class Model:
    """Four parameters."""

    def __init__(self) -> None:
        self.vector = np.zeros(SIZE, np.float32)

    def read(self, start: int, stop: int) -> Any:
        return self.vector[start:stop].copy

    def write(self, start: int, values: Vector) -> None:
        self.vector[start : start + len(values)] = values


@dataclass
class Lane:
    round: int = 0


@dataclass
class Client:
    """A run of one lane whose rounds are committed as soon as they are asked for."""

    wire: str = "float32"
    source: str = "peers"
    every: int = 0
    member: str = "us"
    weights: list[float] = field(default_factory=list[float])
    lanes: list[Lane] = field(default_factory=lambda: [Lane()])

    def __post_init__(self) -> None:
        self.shape = Shape([LaneBody(SIZE, 2 * SIZE)], rounds=9, wire=self.wire)
        self.buffers = [np.zeros(2 * SIZE, np.float32) for _ in range(2)]
        self.exchange = np.zeros(SIZE, np.float32)

    def attach(self) -> None:
        self.lanes[0].round = 0 if self.source == "new" else 3

    def contribution(self, lane: int) -> Vector:
        return self.exchange

    def sent(self, lane: int) -> None:
        return None

    def state(self, lane: int) -> Vector:
        return self.buffers[0]

    def spare(self, lane: int) -> Vector:
        return self.buffers[1]

    def submit(self, lane: int, weight: float, **_: object) -> None:
        self.weights.append(weight)

    def outcome(self, lane: int, *, wait_s: float) -> RoundResult:
        who, weights = ["others", "us"], [1.0, self.weights[-1]]
        return RoundResult(
            "committed", self.lanes[0].round, members=who, weights=weights, contributors=who,
            every=self.every,
        )  # fmt: skip

    def advance(self, lane: int, round_: int) -> None:
        self.lanes[0].round = round_
        self.buffers.reverse()

    def note(self, text: str) -> None:
        return

    on_wait = attach


def replica(name: str, client: Client, **options: object) -> Replica:
    strategy = strategy_named(name, **options)
    strategy.prepare([Part("a", (SIZE,), 0, SIZE)], 9)
    port: Any = client
    made = Replica(strategy, port, Model())
    made.attach()
    made.start()
    return made


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [
        ("diloco", {"every": 6}, 6),
        ("eager", {"every": 6}, 1),
        ("streaming", {"every": 6, "delay": 2, "fragments": 1}, 4),
    ],
)
def test_who_joins_begins_its_first_round_when_the_others_begin_theirs(
    name: str, options: dict[str, object], first: int
) -> None:
    """The round that it entered without data ended now: with a delay, it began before."""
    client = Client()
    made = replica(name, client, **options)
    assert client.weights == [0.0]
    while len(client.weights) == 1:
        made.step()
        made.settle()
    assert (made.steps, client.weights) == (first, [0.0, 1.0])
    made.close()


@pytest.mark.parametrize(("wire", "second"), [("auto", 10), ("int8", 6)])
def test_others_change_the_local_steps_on_the_wire_auto_only(wire: str, second: int) -> None:
    client = Client(wire=wire, source="new", every=7)
    made = replica("diloco", client, every=3)
    while len(client.weights) < 2:
        made.step()
    assert made.steps == second
    made.close()
