"""`shoal.Trainer`: averaging over the swarm in a plain PyTorch loop (DiLoCo).

    with shoal.Trainer(model, run="mine", rounds=10, sync_every=25) as trainer:
        while not trainer.done:
            loss = ...; loss.backward(); optimizer.step(); optimizer.zero_grad()
            trainer.step(loss)

Every `sync_every` steps the pseudo-gradient (outer minus local parameters) goes through shared
memory to the daemon, which averages it over the live members; then every member makes the same
outer Nesterov step, in numpy float32 without fused operations, so that all replicas stay
bit-identical on any mix of processors. The inner optimizer is the user's own and is never sent;
neither are buffers such as batch-norm statistics.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch's annotations are incomplete; what it hands us ends in numpy arrays at once.

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Literal, TypeVar

import numpy as np
import torch

from shoal.learn.exact import CONTRIBUTION_MAX, Vector, nesterov
from shoal.client import Client, connect
from shoal.errors import ClientError
from shoal.lifeline import watch
from shoal.runs import (
    Attach,
    Attached,
    FetchState,
    Leave,
    Metric,
    Report,
    RoundResult,
    Run,
    StateAt,
    SubmitRound,
    path_of,
)
from shoal.shared import SharedVector

ATTACH_WAIT_S = 120.0  # seconds to join, the download of a state included
ROUND_WAIT_S = 60.0  # seconds for one answer; the daemon says "waiting" after 20 s
FETCH_WAIT_S = 120.0  # seconds to load a state
CALL_WAIT_S = 30.0  # seconds for anything small

T = TypeVar("T")
Wire = Literal["float32", "int8"]


class TrainingError(ClientError):
    """The model or the settings do not fit the run."""


class Trainer:
    """A model's membership in a run. Use it in one thread; close it, or use `with`.

    model: its trainable parameters are averaged; on return from the constructor they are the
        run's current ones. All members must build it with the same seed, or the first round
        begins with the parameters of one of them.
    rounds, sync_every: the run ends after `rounds` averagings, `sync_every` steps apart.
    weight: this member's share in the mean, for example its batch size.
    evaluate: called after each round; its result is recorded as the validation loss.
    Raises shoal.errors.ClientError if the daemon is not there or refuses.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        run: str,
        rounds: int,
        sync_every: int = 25,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.5,
        wire: Wire = "int8",
        min_members: int = 1,
        patience_s: float = 20.0,
        weight: float = 1.0,
        evaluate: Callable[[], float] | None = None,
        client: Client | None = None,
    ) -> None:
        watch()  # a child of the daemon ends with it
        self.run, self.rounds, self.sync_every = run, rounds, sync_every
        self.round = 0  # averagings that this model has taken part in or caught up with
        self.steps = 0  # local steps made by this process
        self.last: RoundResult | None = None
        self._outer = (outer_lr, outer_momentum)
        self._weight, self._evaluate = weight, evaluate
        self._client = client or connect()
        self._model = model
        self._elements = sum(p.numel() for p in _trainable(model))
        if not self._elements:
            raise TrainingError("the model has no trainable parameters")
        self._losses: list[float] = []
        self._is_open = True
        self._exchange = SharedVector(self._elements)
        self._states = [SharedVector(2 * self._elements) for _ in range(2)]
        self._active = 0  # which of the two states is ours; the other is scratch
        try:
            self._join(wire, min_members, patience_s)
        except BaseException:
            self._free()
            raise

    # -- what a training loop uses -----------------------------------------------------------

    @property
    def done(self) -> bool:
        """True once the run has had all its rounds."""
        return self.round >= self.rounds

    @property
    def root(self) -> str:
        """SHA-256 of the outer parameters and momentum: equal on all members, every round."""
        return self._root

    @property
    def parameters_hash(self) -> str:
        """SHA-256 of the outer parameters alone."""
        return hashlib.sha256(self._phi.astype("<f4", copy=False).data).hexdigest()

    @property
    def global_step(self) -> int:
        """Local steps as the run counts them: a member that joins late starts where the run is."""
        return self.round * self.sync_every + self.steps % self.sync_every

    def step(self, loss: torch.Tensor | float | None = None) -> bool:
        """Call it after each optimizer step; every `sync_every` calls it averages.

        Returns True when the run is done. Waits as long as the round has no quorum.
        """
        if self.done:
            return True
        if loss is not None:
            self._losses.append(float(loss.detach() if isinstance(loss, torch.Tensor) else loss))
        self.steps += 1
        if self.steps % self.sync_every == 0:
            self._sync()
        return self.done

    def report(self, *, val_loss: float | None = None, note: str = "") -> Metric:
        """Record a figure in metrics.jsonl, with the mean loss since the last one."""
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        body = Report(self.global_step, self.round, loss, val_loss, note)
        return self._post("report", body, Metric)

    def close(self) -> None:
        """Leave the run and free the shared memory. A finished run stays served to joiners."""
        if not self._is_open:
            return
        with suppress(ClientError):  # the daemon may be gone, and with it the run
            self._post("leave", Leave(self.done), Run)
        self._free()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- joining -----------------------------------------------------------------------------

    def _join(self, wire: str, min_members: int, patience_s: float) -> None:
        self._phi[:] = self._flat()
        self._momentum[:] = 0
        self._root = _hash(self._state)
        body = Attach(
            pid=os.getpid(),
            exchange=self._exchange.name,
            states=[state.name for state in self._states],
            elements=self._elements,
            wire=wire,
            rounds=self.rounds,
            min_members=min_members,
            patience_s=patience_s,
            round=0,
            root=self._root,
            settings=self._settings,
        )
        attached = self._post("attach", body, Attached, timeout_s=ATTACH_WAIT_S)
        self.member, self.directory = attached.member, attached.directory
        for vector in (self._exchange, *self._states):
            vector.unlink()
        if attached.fetched:
            self._take_other(attached.round, attached.root)
        self._announce()
        if attached.fetched:
            self._catch_up()
        else:
            self._report_round()

    def _catch_up(self) -> None:
        """Enter the round that is going on, without data: nobody waits for us, and from its end
        on we are exact.
        """
        self._note(f"loaded the state before round {self.round}")
        while not self.done and not self._average(0.0):
            continue
        self._report_round()

    def _take_other(self, round_: int, root: str) -> None:
        """The scratch buffer holds a newer state: make it ours and load it into the model."""
        self._active = 1 - self._active
        self.round = round_
        self._root = root
        load_vector(self._model, self._phi)

    # -- a round -----------------------------------------------------------------------------

    def _sync(self) -> None:
        delta = np.subtract(self._phi, self._flat())
        weight = self._weight
        if not bool((np.abs(delta) <= np.float32(CONTRIBUTION_MAX)).all()):  # NaN neither
            self._note("the parameters are not finite or beyond 1e29: nothing of us in this round")
            weight = 0.0
        self._exchange.array[:] = delta
        while not self.done:
            if self._average(weight):
                break
            weight = 0.0  # our steps were made from a state that the run has left behind
        self._report_round()

    def _average(self, weight: float) -> bool:
        """Take part in one round. False if we were behind; then the newer state is loaded."""
        fresh = True
        while True:
            body = SubmitRound(self.round, self._root, weight, fresh)
            result = self._post("round", body, RoundResult, timeout_s=ROUND_WAIT_S)
            if result.outcome != "waiting":
                break
            waiting_for = ", ".join(peer[-8:] for peer in result.waiting_for)
            self._note(f"round {self.round} waits for {waiting_for or 'more members'}")
            fresh = False
        if result.outcome == "behind":
            self._note(f"behind: loading the state before round {result.at_least} or later")
            self._fetch(result)
            return False
        self.last = result
        self._outer_step()
        return True

    def _outer_step(self) -> None:
        lr, momentum = self._outer
        scratch = self._states[1 - self._active].array
        phi, buffer = nesterov(
            self._phi, self._momentum, self._exchange.array, lr=lr, momentum=momentum
        )
        scratch[: self._elements] = phi
        scratch[self._elements :] = buffer
        self._take_other(self.round + 1, _hash(scratch))
        self._announce()

    def _fetch(self, result: RoundResult) -> None:
        body = FetchState(1 - self._active, result.at_least, result.root)
        found = self._post("fetch", body, StateAt, timeout_s=FETCH_WAIT_S)
        self._take_other(found.round, found.root)
        self._announce()

    def _announce(self) -> None:
        body = StateAt(self.round, self._root, self._active)
        self._client.call("POST", path_of(self.run, "state"), body, timeout_s=CALL_WAIT_S)

    def _report_round(self) -> None:
        self.report(val_loss=self._evaluate() if self._evaluate is not None else None)

    @property
    def _settings(self) -> str:
        """What members must have alike, or each would make another step of the same mean."""
        lr, momentum = self._outer
        return f"sync_every={self.sync_every} outer_lr={lr:.9g} outer_momentum={momentum:.9g}"

    # -- vectors -----------------------------------------------------------------------------

    @property
    def _state(self) -> Vector:
        return self._states[self._active].array

    @property
    def _phi(self) -> Vector:
        return self._state[: self._elements]

    @property
    def _momentum(self) -> Vector:
        return self._state[self._elements :]

    def _flat(self) -> Vector:
        """Copy the model's parameters into one vector. Raises TrainingError if they changed."""
        vector = flatten(self._model)
        if len(vector) != self._elements:
            raise TrainingError(
                f"the model has {len(vector)} trainable parameters, it joined with {self._elements}"
            )
        return vector

    # -- the daemon --------------------------------------------------------------------------

    def _post(
        self, verb: str, body: object, reply: type[T], *, timeout_s: float = CALL_WAIT_S
    ) -> T:
        return self._client.call(
            "POST", path_of(self.run, verb), body, reply=reply, timeout_s=timeout_s
        )

    def _note(self, text: str) -> None:
        print(f"shoal: {self.run}: {text}", file=sys.stderr, flush=True)

    def _free(self) -> None:
        self._is_open = False
        for vector in (self._exchange, *self._states):
            vector.unlink()


def flatten(model: torch.nn.Module) -> Vector:
    """Copy a model's trainable parameters into one float32 vector, in the model's order."""
    return np.concatenate([p.detach().float().cpu().reshape(-1).numpy() for p in _trainable(model)])


def load_vector(model: torch.nn.Module, vector: Vector) -> None:
    """Copy a vector that `flatten` made into a model of the same shape."""
    start = 0
    with torch.no_grad():
        for parameter in _trainable(model):
            stop = start + parameter.numel()
            parameter.copy_(torch.from_numpy(vector[start:stop].copy()).view_as(parameter))
            start = stop


def _trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _hash(vector: Vector) -> str:
    return hashlib.sha256(vector.astype("<f4", copy=False).data).hexdigest()
