"""How fast an answer came, and where the time went. Pure: times are passed in."""

from dataclasses import dataclass

from protocols.sharding.generate import Generation
from shoal import models as shapes


@dataclass
class Pace:
    """When tokens came; all times in seconds of one clock. `asked`: when the question came."""

    asked: float
    _first: float = 0.0
    _last: float = 0.0
    _tokens: int = 0
    _after_first: int = 0
    _trips: int = 0  # after the first one

    def arrived(self, tokens: int, now: float) -> None:
        """Note the tokens of one round trip."""
        if self._tokens:
            self._trips += 1
            self._after_first += tokens
        else:
            self._first = now
        self._tokens += tokens
        self._last = now

    def trace(self, name: str, generation: Generation) -> shapes.Trace:
        """Return how the answer came about."""
        hops = [
            shapes.Hop(
                hop.peer,
                hop.start,
                hop.end,
                hop.codec,
                round(timing.link_ms, 3),
                round(timing.compute_ms, 3),
            )
            for hop, timing in zip(generation.route, generation.timings, strict=True)
        ]
        step_ms = 1000 * _ratio(self._last - self._first, self._trips)
        known_ms = sum(hop.link_ms + hop.compute_ms for hop in hops)
        return shapes.Trace(
            model=name,
            route=hops,
            replaced_hops=generation.replaced,
            first_token_s=round(self._first - self.asked, 4) if self._tokens else 0.0,
            tokens_per_s=round(_ratio(self._tokens, self._last - self.asked), 2),
            decode_tokens_per_s=round(_ratio(self._after_first, self._last - self._first), 2),
            step_ms=round(step_ms, 3),
            rest_ms=round(max(0.0, step_ms - known_ms), 3),
            reused_tokens=generation.reused_tokens,
            drafted=generation.drafted,
            accepted=generation.accepted,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
