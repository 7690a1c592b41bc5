"""Work on models that goes on while somebody watches: adding, pinning, verifying."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

import trio

from shoal.library import BadPart, KnownModel, LibraryProgress

JOBS_MAX = 64  # begun and not yet running
INTERVAL_S = 0.25  # between two words on the progress


@dataclass
class Job:
    """What is known of one piece of work."""

    name: str
    state: str
    done_bytes: int = 0
    total_bytes: int = 0
    model: KnownModel | None = None
    checked: int = 0
    bad: list[BadPart] = field(default_factory=list[BadPart])
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None

    def say(self, state: str, total_bytes: int = 0) -> None:
        """Another state begins."""
        self.state, self.done_bytes, self.total_bytes = state, 0, total_bytes

    def report(self, state: str, done_bytes: int, total_bytes: int) -> None:
        """What a child says of its progress."""
        if state != self.state:
            self.say(state)
        self.total_bytes, self.done_bytes = total_bytes, done_bytes

    def progress(self, done_bytes: int) -> None:
        """So much of it is done."""
        self.done_bytes = done_bytes

    def view(self) -> LibraryProgress:
        """Return the progress as it is now."""
        return LibraryProgress(
            self.state,
            self.name,
            self.done_bytes,
            self.total_bytes,
            self.model,
            self.checked,
            list(self.bad),
        )


class Jobs:
    """Owns the tasks of the work: a generator that is closed cannot wait for its own."""

    def __init__(self) -> None:
        # Full: wait. The control server has no more clients than that.
        self._to_do, self._begun = trio.open_memory_channel[Callable[[], Awaitable[None]]](JOBS_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what is begun, until cancelled."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            async for work in self._begun:
                nursery.start_soon(work)

    async def follow(
        self, job: Job, work: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[LibraryProgress]:
        """Do the work and yield its progress, at the end "done"; closing it cancels the work.

        Raises what the work raises.
        """

        async def run() -> None:
            with job.scope:
                try:
                    await work()
                    job.state = "done"
                except Exception as error:  # a boundary: one job, told to who watches it
                    job.error = error
            job.over.set()

        await self._to_do.send(run)
        try:
            while not job.over.is_set():
                yield job.view()
                with trio.move_on_after(INTERVAL_S):
                    await job.over.wait()
            if job.error is not None:
                raise job.error
            yield job.view()
        finally:
            job.scope.cancel()
