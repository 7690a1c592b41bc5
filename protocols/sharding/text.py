"""Text that comes token by token: which tokens are still without text, where an answer stops.

Pure; the tokenizer itself is in another process (front.py).
"""

from dataclasses import dataclass, field

_CONTEXT_TOKENS = 5  # before the fresh ones: how a token reads depends on its neighbours


@dataclass
class Tail:
    """The end of a text as token ids: `before` has been shown, `fresh` not yet."""

    before: list[int]
    fresh: list[int] = field(default_factory=list[int])

    @classmethod
    def of_prompt(cls, prompt: list[int]) -> "Tail":
        """Start after a prompt."""
        return cls(prompt[-_CONTEXT_TOKENS:])

    def add(self, token: int) -> None:
        """Take the next token."""
        self.fresh.append(token)

    def shown(self) -> None:
        """Everything so far has been turned into text."""
        self.before = (self.before + self.fresh)[-_CONTEXT_TOKENS:]
        self.fresh = []


@dataclass
class Stops:
    """Cuts a text at the first of some strings, also when it comes in pieces."""

    strings: list[str]
    _held: str = ""
    found: bool = False

    def feed(self, piece: str) -> str:
        """Take a piece; return what can be shown: nothing that may be the start of a stop."""
        text = self._held + piece
        cuts = [at for at in (text.find(stop) for stop in self.strings) if at >= 0]
        if cuts:
            self.found, self._held = True, ""
            return text[: min(cuts)]
        keep = max((_overlap(text, stop) for stop in self.strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back: the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` begin `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if stop.startswith(text[-n:])), 0)
