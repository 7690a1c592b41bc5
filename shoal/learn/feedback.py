"""Error feedback: what a lossy codec left out of one contribution goes into the next.

Sources: Seide et al. 2014 and Karimireddy et al. 2019 (all of it: decay 1); SparseLoCo (Sarfi et
al. 2025) lets it fade (0.95), for top-k sends so little that the rest would grow old.
"""

import numpy as np

from shoal.learn.strategy import Turn, Vector, require

DECAYS = {"int4": 1.0, "topk": 0.95, "fedzip": 0.95}  # by codec; the others lose too little


class ErrorFeedback:
    """The residuals of one replica, by lane: e' = (decay * e + delta) - what the others got of it.

    They change in `settle` only, after a commit, so an aborted round leaves no trace.
    """

    def __init__(self, decay: float) -> None:
        require(0.0 <= decay <= 1.0, f"feedback is from 0 (off) to 1, not {decay}")
        self.decay = decay
        self._residuals: dict[int, Vector] = {}
        self._brought: dict[int, Vector] = {}

    def add(self, lane: int, delta: Vector) -> Vector:
        """Return the contribution: the delta and what is owed. Remembers it for `settle`."""
        residual = self._residuals.get(lane)
        if residual is not None:
            delta = np.add(delta, np.multiply(residual, np.float32(self.decay)))
        self._brought[lane] = delta
        return delta

    def settle(self, lane: int, sent: Vector) -> None:
        """The last contribution of this lane was committed, and `sent` is what arrived of it."""
        self._residuals[lane] = np.subtract(self._brought.pop(lane), sent)

    def after(self, lane: int, turn: Turn) -> None:
        """As `settle`, with what a turn tells; nothing if we brought nothing."""
        if turn.contributed:
            assert turn.sent is not None, "a strategy with feedback is told what was sent"
            self.settle(lane, turn.sent)

    def owed(self, lane: int) -> Vector | None:
        """Return what the others have not got of this lane; None before the first `settle`."""
        return self._residuals.get(lane)

    def export(self) -> dict[str, Vector]:
        """Return the residuals for a checkpoint."""
        return {f"residual-{lane:03d}": value for lane, value in self._residuals.items()}

    def restore(self, own: dict[str, Vector], sizes: dict[int, int]) -> None:
        """Take residuals back. sizes: elements by lane. Raises ValueError if one does not fit."""
        names = {f"residual-{lane:03d}": lane for lane in sizes}
        for name, value in own.items():
            require(name in names, f"no lane for {name[:32]!r}")
            require(value.shape == (sizes[names[name]],), f"{name} is of another model")
        self._residuals = {names[name]: value.copy() for name, value in own.items()}
