"""Counts in sentences: 1 number, 2 numbers."""


def counted(count: int, noun: str) -> str:
    """Return the count and the noun, which gets an s unless there is exactly one."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def counted_and(count: int, noun: str, singular: str, plural: str) -> str:
    """Return `counted` with the verb behind it, as in: 1 line is, 2 lines are."""
    return f"{counted(count, noun)} {singular if count == 1 else plural}"
