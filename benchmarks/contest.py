"""The same orders to several systems in turn, so that noise of the machine hits all alike."""

from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

from benchmarks.orders import Failed
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

    def rounds(self, count: int, order: str, **arguments: Any) -> dict[str, list[Any]]:
        """Give an order so many times to each, one round to warm up not counted."""
        answers: dict[str, list[Any]] = {name: [] for name in self.pairs}
        for number in range(count + 1):
            for name, pair in list(self.pairs.items()):
                try:
                    answer = pair.client.ask(order, **arguments)
                except Failed as error:
                    if name == "shoal":
                        raise
                    self._exclude(name, str(error))
                    continue
                if number:
                    answers[name].append(answer)
        return answers

    def _exclude(self, name: str, why: str) -> None:
        progress(f"{name} is out: {why}")
        self.pairs.pop(name, None)
        self.why[name] = why
