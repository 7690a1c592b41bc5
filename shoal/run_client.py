"""A process's part in a run: the memory it shares with the daemon, and the calls about it.

Numpy only. The trainer is made of it (`shoal.trainer`), and `shoal.join` (`shoal.rounds`).
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from shoal.client import Client, connect
from shoal.errors import ClientError
from shoal.learn.exact import CONTRIBUTION_MAX, state_root
from shoal.learn.strategy import Vector
from shoal.runs import (
    AskTurn,
    Attach,
    Attached,
    Checked,
    Duty,
    FetchState,
    LaneBody,
    Leave,
    Metric,
    Report,
    RoundResult,
    Run,
    StateAt,
    SubmitRound,
    Tensor,
    TurnAnswer,
    get_run,
    path_of,
)
from shoal.shared import SharedVector

ROUND_WAIT_S = 20.0  # seconds that the daemon waits for a round before it says "waiting"
LOAD_WAIT_S = 24 * 3600.0  # seconds to load states: the daemon itself gives up when nothing comes
SAY_S = 10.0  # seconds between two words about a load
CALL_WAIT_S = 30.0  # seconds for anything small, and on top of what the daemon may wait
ROUNDS_MAX = 1 << 24  # of a run without an end (protocols/modelsync/wire.py)

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """What all members of a run must have alike, but for `min_members` and `patience_s`.

    wire: a codec, or "auto". The rest as in
    `shoal.runs.Attach`.
    """

    lanes: Sequence[LaneBody]
    rounds: int = ROUNDS_MAX
    wire: str = "float32"
    min_members: int = 1
    patience_s: float = 20.0
    needs_sent: bool = False
    settings: str = ""
    strategy: str = ""
    every: int = 0
    aggregator: str = "mean"
    sample: int = 0
    replicas_differ: bool = False
    verify: bool = False
    layout: Sequence[Tensor] = ()


@dataclass
class Lane:
    """Where we stand in a lane: the state before `round` is in buffer `active`."""

    contribution: slice
    state: slice
    round: int = 0
    root: str = ""
    active: int = 0


class RunClient:
    """The shared memory and the calls. One thread; `leave` it.

    on_wait: called now and then while something takes long, also in a thread of ours.
    Raises shoal.errors.ClientError if the daemon is not there or refuses.
    """

    def __init__(
        self,
        run: str,
        shape: Shape,
        *,
        client: Client | None = None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.shape, self.on_wait = run, shape, on_wait
        self.member = self.directory = self.source = ""
        self.members: list[str] = []  # who was there when we attached
        self._client = client or connect()
        self.lanes: list[Lane] = []
        contribution = state = 0
        for lane in shape.lanes:
            here = slice(contribution, contribution + lane.contribution)
            self.lanes.append(Lane(here, slice(state, state + lane.state)))
            contribution, state = here.stop, state + lane.state
        self._segments: list[SharedVector] = []
        self._is_open = False
        try:
            self._exchange = self._share(contribution)
            self._states = [self._share(state) for _ in range(2)]
            self._sent = self._share(contribution) if shape.needs_sent else None
        except BaseException:
            self._free()
            raise

    # -- memory ------------------------------------------------------------------------------

    def contribution(self, lane: int) -> Vector:
        """The lane's slice of the exchange buffer: our contribution; after a commit, the mean."""
        return self._exchange.array[self.lanes[lane].contribution]

    def sent(self, lane: int) -> Vector | None:
        """What the others decoded of our contribution to the last round, if asked for."""
        return None if self._sent is None else self._sent.array[self.lanes[lane].contribution]

    def state(self, lane: int) -> Vector:
        """The lane's state before its `round`."""
        at = self.lanes[lane]
        return self._states[at.active].array[at.state]

    def spare(self, lane: int) -> Vector:
        """The other buffer: for the next state; it holds the one before."""
        at = self.lanes[lane]
        return self._states[1 - at.active].array[at.state]

    # -- calls -------------------------------------------------------------------------------

    def attach(self) -> None:
        """Join the run with what the states now hold; on return they are where the run is."""
        shape = self.shape
        body = Attach(
            pid=os.getpid(),
            lanes=list(shape.lanes),
            exchange=self._exchange.name,
            states=[state.name for state in self._states],
            roots=[state_root(self.state(lane)).hex() for lane in range(len(self.lanes))],
            rounds=shape.rounds,
            sent=self._sent.name if self._sent is not None else "",
            layout=list(shape.layout),
            wire=shape.wire,
            min_members=shape.min_members,
            patience_s=shape.patience_s,
            settings=shape.settings,
            strategy=shape.strategy,
            every=shape.every,
            aggregator=shape.aggregator,
            sample=shape.sample,
            replicas_differ=shape.replicas_differ,
            verify=shape.verify,
        )
        try:
            attached = self._load("attach", body, Attached)
        except BaseException:
            self._free()
            raise
        self._is_open = True
        self.member, self.directory = attached.member, attached.directory
        self.source, self.members = attached.source, attached.members or [attached.member]
        self._unlink()
        for at in attached.lanes:
            self._adopt(at)
            self.announce(at.lane)

    def submit(
        self,
        lane: int,
        weight: float,
        *,
        elements: int = 0,
        topology: str = "all",
        is_new: bool = False,
        wish: tuple[str, int] = ("float32", 0),
        wait_s: float = 0.0,
    ) -> RoundResult:
        """Bring what the exchange buffer holds to the lane's round; wait for its end a while.

        elements: of this round's contributions, alike on all members; 0: as many as there can be.
        wish: codec and local steps that we would like next (runs with wire "auto").
        """
        at, (codec, every) = self.lanes[lane], wish
        body = SubmitRound(
            round=at.round,
            root=at.root,
            weight=weight,
            lane=lane,
            elements=elements,
            topology=topology,
            is_new=is_new,
            wish_codec=codec,
            wish_every=every,
            wait_s=wait_s,
        )
        return self._post("round", body, RoundResult, timeout_s=wait_s + CALL_WAIT_S)

    def outcome(self, lane: int, *, wait_s: float = ROUND_WAIT_S) -> RoundResult:
        """Wait a while for the end of the round that was submitted last."""
        at = self.lanes[lane]
        body = SubmitRound(at.round, at.root, fresh=False, lane=lane, wait_s=wait_s)
        result = self._post("round", body, RoundResult, timeout_s=wait_s + CALL_WAIT_S)
        if result.outcome == "committed" and result.round != at.round:  # its mean is applied
            raise ClientError(
                f"round {at.round} of run {self.run} never began: the call that did it failed",
                hint="leave the run and join again",
            )
        return result

    def advance(self, lane: int, round_: int, root: bytes | None = None) -> None:
        """The spare buffer holds the state before `round_`: it is ours now, and others may have it.

        root: its hash, if the caller has computed it.
        """
        root = root or state_root(self.spare(lane))
        self._adopt(StateAt(round_, root.hex(), 1 - self.lanes[lane].active, lane))
        self.announce(lane)

    def stay(self, lane: int, round_: int) -> None:
        """The state before `round_` is what it was: nobody brought anything to the last round."""
        self.lanes[lane].round = round_
        self.announce(lane)

    def fetch(self, lane: int, *, at_least: int, root: str = "") -> None:
        """Load the run's state of a lane and make it ours."""
        body = FetchState(1 - self.lanes[lane].active, at_least, root, lane)
        self._adopt(self._load("fetch", body, StateAt))
        self.announce(lane)

    def turn(self, lane: int, round_: int) -> str:
        """Sampled runs: are we in this round? "in", "out" (it is over), or "waiting"."""
        body = AskTurn(round_, lane)
        return self._post("turn", body, TurnAnswer, timeout_s=ROUND_WAIT_S + CALL_WAIT_S).turn

    def verdict(self, duty: Duty) -> bool:
        """The exchange buffer holds a contribution that we made anew; True if its bits are those
        that its member had committed to.
        """
        return self._post("verdict", duty, Checked).is_same

    def announce(self, lane: int) -> None:
        """Offer the lane's state to others."""
        at = self.lanes[lane]
        body = StateAt(at.round, at.root, at.active, lane)
        self._client.call("POST", path_of(self.run, "state"), body, timeout_s=CALL_WAIT_S)

    def report(self, report: Report) -> Metric:
        """Record figures in metrics.jsonl."""
        return self._post("report", report, Metric)

    def leave(self, *, finished: bool) -> None:
        """Leave the run and free the memory. Safe to do twice."""
        if self._is_open:
            with suppress(ClientError):  # the daemon may be gone, and with it the run
                self._post("leave", Leave(finished), Run)
        self._free()

    def note(self, text: str) -> None:
        """Say something to the person who reads the log."""
        print(f"shoal: {self.run}: {text}", file=sys.stderr, flush=True)

    # -- inside ------------------------------------------------------------------------------

    def _adopt(self, at: StateAt) -> None:
        lane = self.lanes[at.lane]
        lane.round, lane.root, lane.active = at.round, at.root, at.buffer

    def _post(
        self, verb: str, body: object, reply: type[T], *, timeout_s: float = CALL_WAIT_S
    ) -> T:
        path = path_of(self.run, verb)
        return self._client.call("POST", path, body, reply=reply, timeout_s=timeout_s)

    def _load(self, verb: str, body: object, reply: type[T]) -> T:
        """Post what may take hours; say now and then how far it is, and that we are still here."""
        ended = threading.Event()

        def say() -> None:
            while not ended.wait(SAY_S):
                self.on_wait()
                with suppress(ClientError):
                    loading = get_run(self._client, self.run).loading
                    if loading is not None:
                        self.note(f"{loading:.0%} of the state is here")

        thread = threading.Thread(target=say, name="shoal-load", daemon=True)
        thread.start()
        try:
            return self._post(verb, body, reply, timeout_s=LOAD_WAIT_S)
        finally:
            ended.set()
            thread.join()

    def _share(self, elements: int) -> SharedVector:
        try:
            self._segments.append(SharedVector(elements))
        except OSError as error:
            raise ClientError(
                f"no shared memory for {4 * elements:,} bytes: {error.strerror}",
                hint="make /dev/shm larger (of a container: --shm-size)",
            ) from error
        return self._segments[-1]

    def _unlink(self) -> None:
        for segment in self._segments:
            segment.unlink()

    def _free(self) -> None:
        self._is_open = False
        self._unlink()


def is_sound(vector: Vector) -> bool:
    """True if the daemon takes it: finite, nothing beyond CONTRIBUTION_MAX. No copy is made."""
    if vector.size == 0:
        return True
    low, high = float(vector.min()), float(vector.max())  # NaN comes through both
    return low >= -CONTRIBUTION_MAX and high <= CONTRIBUTION_MAX


def waits(result: RoundResult) -> str:
    """Say what a round waits for."""
    names = ", ".join(peer[-8:] for peer in result.waiting_for)
    return f"round {result.round} waits for {names or 'more members'}"
