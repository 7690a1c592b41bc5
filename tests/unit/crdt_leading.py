"""Leading a session against a script instead of a peer."""

from collections.abc import Callable

from crdt import wire
from crdt.holding import Holding
from crdt.reconcile import lead
from crdt.wire import Hello, Range, Standing, Welcome
from tests.sim.crdt_pairs import GENESIS, NOW_MS, history, replica_of
from wire import codec

NONCE = b"a nonce!"
POOL = history(6000, 7)
ID = GENESIS.id
LAW = Holding(replica_of([])).law(NONCE)
Script = Callable[[wire.Request], wire.Answer]


def run(mine: Holding, script: Script, most: int = 5000) -> list[wire.Request]:
    """Lead a session whose answers are the script's; nothing is taken."""
    steps, asked = lead({ID: mine}, NONCE, lambda: NOW_MS), list[wire.Request]()
    answer: wire.Answer | None = None
    while len(asked) < most:
        try:
            effect = steps.send(answer)
        except StopIteration:
            return asked
        answer = None
        if isinstance(effect, wire.Request):
            asked.append(effect)
            answer = wire.decode_answer(codec.encode(script(effect)))
    raise AssertionError("the session does not end")


def differs(whole: Range) -> Welcome:
    return Welcome(NOW_MS, [Standing(ID[:8], LAW, whole)])


def holding(count: int = 100) -> Holding:
    return Holding(replica_of(POOL[:count]))


def after_hello(answer: wire.Answer, whole: Range | None = None) -> Script:
    def script(request: wire.Request) -> wire.Answer:
        return differs(whole or Range(0, 50)) if isinstance(request, Hello) else answer

    return script
