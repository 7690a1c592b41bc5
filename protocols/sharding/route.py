"""Which stages a generation goes through: a chain of ready spans from the first layer to the last.

Pure. First form: the fewest hops; link delay and load are not looked at yet.
"""

from collections.abc import Collection, Iterable

from protocols.sharding.placement import Span
from wire.errors import ShoalError
from wire.ids import PeerId


class NoRoute(ShoalError):
    """Some layers of the model are on no node that is ready."""

    code = "no_route"
    hint = "`shoal models` shows which node is missing; `shoal serve` places the model again"


def find_route(n_layers: int, ready: Iterable[Span]) -> list[Span]:
    """Return the shortest chain covering layers 0 to `n_layers`, lowest peer IDs first.

    A stage is run whole: a chain goes from the end of one span to the start of the next.
    Raises NoRoute, which says how far the ready spans reach.
    """
    by_start: dict[int, list[Span]] = {}
    for span in ready:
        by_start.setdefault(span.start, []).append(span)
    best: dict[int, list[Span]] = {0: []}
    for at in range(n_layers):
        for span in by_start.get(at, []) if at in best else []:
            route = [*best[at], span]
            known = best.get(span.end)
            if span.end <= n_layers and (known is None or _rank(route) < _rank(known)):
                best[span.end] = route
    if n_layers not in best:
        raise NoRoute(f"no ready node goes on from layer {max(best)} of {n_layers}")
    return best[n_layers]


def find_replacement(
    lost: Span, ready: Iterable[Span], *, without: Collection[PeerId]
) -> Span | None:
    """Return another ready node with exactly the lost span, or None."""
    same = (
        s for s in ready if (s.start, s.end) == (lost.start, lost.end) and s.peer not in without
    )
    return min(same, key=lambda span: span.peer, default=None)


def _rank(route: list[Span]) -> tuple[int, list[str]]:
    return len(route), [span.peer for span in route]
