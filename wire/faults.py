"""When something goes wrong: undo a step, and find the error inside nurseries' groups."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import trio


def root_cause(error: BaseException) -> BaseException:
    """Return the one error inside nested groups; a group of several as it is."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    if len(inner) == 1:
        return root_cause(inner[0])
    return error


class OnFailure:
    """Undoes or counts something if an error of the kind leaves the `with` block, and lets it pass.

    As it stands, a cancellation is a failure, too.
    """

    def __init__(self, act: Callable[[], object], of: type[BaseException] = BaseException) -> None:
        self._act, self._of = act, of

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, self._of):
            self._act()


@asynccontextmanager
async def open_helpers() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery for tasks that serve the block and end with it.

    What the block raises leaves as it is, and not in the group that a nursery makes of it.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:  # whatever it is: it is raised again below
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
