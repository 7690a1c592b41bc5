"""What went wrong, out of the groups that nurseries wrap errors in."""


def root_cause(error: BaseException) -> BaseException:
    """Return the one error inside nested groups; a group of several as it is."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    if len(inner) == 1:
        return root_cause(inner[0])
    return error
