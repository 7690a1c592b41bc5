"""Scenario files of the simulator: configs/sim/NAME.toml, typed; unknown keys are refused."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, structs

from tests.sim.heap import ChurnOptions, LinkOptions, Share
from wire.errors import UsageError

FOLDER = Path(__file__).parents[2] / "configs" / "sim"

Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e6)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Common options: immutable, nothing extra accepted."""


class SwarmOptions(_Section, frozen=True):
    """Section [swarm]: who is there, and what they know of each other at the beginning.

    tables: "steady": as they are after a long time (made of the truth when a node is first asked);
    "joined": everybody came by bootstrapping, one after the other, and nothing else is known.
    per_group: servers in one /24, on average; 0: private addresses, which no rule counts.
    """

    nodes: Annotated[int, Meta(ge=2, le=1_000_000)] = 1000
    tables: Literal["steady", "joined"] = "steady"
    per_group: Annotated[float, Meta(ge=0.0, le=256.0)] = 1.5
    join_gap_s: Seconds = 0.05


class DeadOptions(_Section, frozen=True):
    """Section [dead]: killed at once after all was stored, and still in all tables."""

    share: Share = 0.0
    hanging: Share = 0.5  # of the dead: never answer; the others refuse the connection


Behaviour = Literal["drop", "lie", "ghosts", "withhold", "stale"]


class HostileOptions(_Section, frozen=True):
    """Section [hostile]: a share of the servers, who know each other. Each behaves in one way.

    drop: answers pings only. lie: knows only other hostile ones, has nothing, says that it keeps
    all. ghosts: invents contacts beside the key who never answer. withhold: finds nodes well, keeps
    nothing and says that it does. stale: as withhold, and answers with older values of the owner's.
    """

    share: Share = 0.0
    behaviours: tuple[Behaviour, ...] = ("drop", "lie", "ghosts", "withhold", "stale")


class SybilOptions(_Section, frozen=True):
    """Section [sybils]: identities ground next to the key of each record (they "lie")."""

    count: Count = 0
    groups: Annotated[int, Meta(ge=1, le=100_000)] = 1  # /24s that they have addresses in
    bits: Annotated[int, Meta(ge=-16, le=64)] = (
        7  # more in common with the key than the nearest has
    )
    before_put: bool = True  # or only after it was stored
    claims: Annotated[int, Meta(ge=0, le=16)] = 0  # addresses beside honest nodes that each claims


class PartitionOptions(_Section, frozen=True):
    """Section [partition]: a share of all nodes is cut off from the others for a time."""

    share: Share = 0.0
    from_s: Seconds = 60.0
    for_s: Seconds = 600.0
    after_s: Seconds = 60.0  # until looks begin


class DefenceOptions(_Section, frozen=True):
    """Section [defences]: switched off, they show what an attack does without them."""

    diversity: bool = True
    region: bool = True


class WorkOptions(_Section, frozen=True):
    """Section [work]: what honest nodes do, and how often.

    kind: "find": look for the closest nodes of random keys. "head", "multi", "providers": store
    records and get them. "many": one node provides `records` names at once.
    trials: swarms one after the other, with seeds from `seed` on; figures are of all together.
    """

    kind: Literal["find", "head", "multi", "providers", "many"] = "find"
    records: Count = 100
    looks: Count = 1000
    paths: Annotated[int, Meta(ge=1, le=16)] = 1
    gap_s: Seconds = 0.1  # from one to the next
    trials: Annotated[int, Meta(ge=1, le=1000)] = 1


class Goal(_Section, frozen=True):
    """A figure's limit: the run's exit status is 1 if it is missed."""

    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, value: float) -> bool:
        """Whether the figure is within the limits; a figure that is not a number is not."""
        above = self.at_least is None or value >= self.at_least
        return value == value and above and (self.at_most is None or value <= self.at_most)


class Scenario(_Section, frozen=True):
    """One file. `hours`: simulated time of a run with churn; others end when the work is done."""

    about: str = ""
    seed: int = 1
    hours: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    swarm: SwarmOptions = SwarmOptions()
    links: LinkOptions = LinkOptions()
    churn: ChurnOptions | None = None
    dead: DeadOptions = DeadOptions()
    hostile: HostileOptions = HostileOptions()
    sybils: SybilOptions = SybilOptions()
    partition: PartitionOptions = PartitionOptions()
    defences: DefenceOptions = DefenceOptions()
    work: WorkOptions = WorkOptions()
    goals: dict[str, Goal] = {}


def load(name: str) -> Scenario:
    """Read configs/sim/NAME.toml. Raises UsageError."""
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        known = sorted(one.stem for one in FOLDER.glob("*.toml"))
        near = difflib.get_close_matches(name, known, n=1) or [""]
        what = f"no scenario {name!r}." if name else "which scenario?"
        raise UsageError(f"{what} There are {', '.join(known)}", hint=near[0])
    return parse(path.read_text(), path.name)


def parse(text: str, source: str) -> Scenario:
    """Read a scenario. Raises UsageError that names the source and the nearest key."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not TOML: {error}") from error
    return _typed(raw, source)


def with_changes(scenario: Scenario, changes: Iterable[str]) -> Scenario:
    """Return it with other values of some keys: "swarm.nodes=300", TOML. Raises UsageError."""
    raw: dict[str, Any] = msgspec.to_builtins(scenario)
    for change in changes:
        key, _, text = change.partition("=")
        try:
            value = tomllib.loads(f"it = {text}")["it"]
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{change}: not KEY=VALUE with a TOML value") from error
        section, _, field = key.rpartition(".")
        inner = raw if not section else raw.setdefault(section, {})
        if section and inner is None:
            inner = raw[section] = {}
        inner[field] = value
    return _typed(raw, "the command line")


def _typed(raw: dict[str, Any], source: str) -> Scenario:
    _refuse_unknown(raw, Scenario, source)
    for name, section in _sections().items():
        if isinstance(raw.get(name), dict):
            _refuse_unknown(raw[name], section, f"{source} [{name}]")
    try:
        return msgspec.convert(raw, Scenario)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}: {error}") from error


def _sections() -> dict[str, type[msgspec.Struct]]:
    made = {field.name: field.default for field in structs.fields(Scenario)}
    found = {name: type(one) for name, one in made.items() if isinstance(one, msgspec.Struct)}
    return {**found, "churn": ChurnOptions}


def _refuse_unknown(raw: dict[str, Any], section: type[msgspec.Struct], source: str) -> None:
    known = [field.name for field in structs.fields(section)]
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UsageError(f"{source}: unknown key {key!r}: did you mean {near[0]!r}?")
