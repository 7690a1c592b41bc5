"""One model in the processes of a `torchrun`: what rank 0 reads and writes, the others follow."""

from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.learn.strategy import Vector
from shoal.pytorch.ranks import Order, Ranks
from shoal.pytorch.staging import Staging, TrainingError


class Leader:
    """The model as `shoal.replica` takes it, for the process that speaks to the daemon."""

    def __init__(self, staging: Staging, ranks: Ranks) -> None:
        self._staging, self._ranks = staging, ranks

    def read(self, start: int, stop: int) -> Callable[[], Vector]:
        """See `Staging.read`."""
        if self._staging.is_sharded:
            self._ranks.tell(Order.READ, start, stop)
        return self._staging.read(start, stop)

    def write(self, start: int, values: Vector) -> None:
        """Set elements in every process."""
        self._ranks.tell(Order.WRITE, start, len(values))
        self._ranks.share(values)
        self._staging.write(start, values)


@dataclass
class Follower:
    """What the other processes know: when something is due next, and where the run is.

    evaluate, save: what they do when rank 0 does. restore: the same, after joining.
    """

    staging: Staging
    ranks: Ranks
    evaluate: Callable[[], object]
    save: Callable[[], None]
    restore: Callable[[], object]
    due: int = 0
    round: int = 0
    offset: int = 0
    member: str = ""
    directory: str = ""
    members: list[str] = field(default_factory=list[str])

    def obey(self) -> None:
        """Do what rank 0 says until it is done. Raises TrainingError if it has failed."""
        while True:
            order, first, second, third = self.ranks.hear()
            match order:
                case Order.READ:
                    self.staging.read(first, second)()
                case Order.WRITE:
                    values = self.staging.scratch(second)
                    self.ranks.share(values)
                    self.staging.write(first, values)
                case Order.EVALUATE:
                    self.evaluate()
                case Order.SAVE:
                    self.save()
                case Order.JOINED:
                    self.member = self.ranks.share_text("")
                    self.directory = self.ranks.share_text("")
                    if first:
                        self.restore()
                case Order.WAIT:
                    continue
                case Order.DONE:
                    self.due, self.round, self.offset = first, second, third
                    self.members = self.ranks.share_text("").split(",")
                    return
                case Order.FAILED:
                    raise TrainingError("rank 0 of this torchrun has failed: see its log")
