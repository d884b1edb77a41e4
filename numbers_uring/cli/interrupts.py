"""Recognizes an interrupt behind another error; imports nothing, so that it is always there."""


def is_interrupt(error: BaseException) -> bool:
    """Return whether the error came of a KeyboardInterrupt.

    Up to Python 3.11 an interrupt in a `__set_name__`, as while a module is imported, becomes a
    RuntimeError; and what is closed because of an interrupt may fail.
    """
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, KeyboardInterrupt):
        origin = origin.__cause__ or origin.__context__
    return origin is not None
