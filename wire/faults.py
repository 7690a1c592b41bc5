"""When something goes wrong: undo a step, and find the error inside nurseries' groups."""

from collections.abc import Callable


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
