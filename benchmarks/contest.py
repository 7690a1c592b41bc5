"""The same orders to several systems in turn, so that noise of the machine hits all alike."""

from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

from benchmarks.orders import Answer, Failed
from benchmarks.report import progress
from benchmarks.systems import Missing, Pair


class Start(Protocol):
    """Starts a pair of children."""

    def __call__(self) -> AbstractContextManager[Pair]:
        """Start it, and end it at the end of the block."""
        ...


class Contest:
    """Systems by name. A rival that fails is out, with the reason in `why`; ours may not fail."""

    def __init__(self, stack: ExitStack) -> None:
        self.pairs = dict[str, Pair]()
        self.why = dict[str, str]()
        self._stack = stack

    def enter(self, name: str, start: Start) -> None:
        """Start a system; it ends with the stack."""
        try:
            self.pairs[name] = self._stack.enter_context(start())
        except Missing as error:
            self._exclude(name, str(error))

    def ask(self, name: str, order: str, **arguments: Any) -> Answer | None:
        """Give one system an order; None if it is out, or goes out by failing at this."""
        if name not in self.pairs:
            return None
        try:
            return self.pairs[name].client.ask(order, **arguments)
        except Failed as error:
            if name == "shoal":
                raise
            self._exclude(name, str(error))
            return None

    def rounds(self, count: int, order: str, **arguments: Any) -> dict[str, list[Answer]]:
        """Give an order so many times to each, one round to warm up not counted."""
        answers: dict[str, list[Answer]] = {name: [] for name in self.pairs}
        for number in range(count + 1):
            for name, got in answers.items():
                answer = self.ask(name, order, **arguments)
                if number and answer is not None:
                    got.append(answer)
        return answers

    def _exclude(self, name: str, why: str) -> None:
        progress(f"{name} is out: {why}")
        self.pairs.pop(name, None)
        self.why[name] = why
