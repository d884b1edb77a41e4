"""The README as a package index shows it, where links to files of the repository lead nowhere."""

import re

_IMAGE = re.compile(r"\[?!\[([^]]*)\]\(([^)\s]+)\)(?:\]\([^)]+\))?")
_LINK = re.compile(r"(?<!!)\[((?:`[^`]*`|[^]`])+)\]\((?![a-z]+:|#)([^)\s]+)\)")


def index_readme(text: str, source: str | None, version: str) -> str:
    """Return `text`, in Markdown, without links that are relative.

    They lead to the tag of `version` in the repository at the URL `source`, whose layout is that of
    the usual hosts. Without a URL only the words of links remain, and the captions of pictures.
    """
    if source is None:
        return _LINK.sub(r"\1", _IMAGE.sub(r"*\1*", text))
    base = source.rstrip("/")
    text = _IMAGE.sub(rf"[![\1]({base}/raw/v{version}/\2)]({base}/blob/v{version}/\2)", text)
    return _LINK.sub(rf"[\1]({base}/blob/v{version}/\2)", text)
