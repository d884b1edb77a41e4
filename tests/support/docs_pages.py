"""What the documentation is made of: its pages, their commands, their links."""

import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
_LONG = re.compile(
    r"(?:taskset [^|;&]*)?(?:(?:\S*/)?numbers-uring serve|make serve"
    r"|(?:\S*/)?python\b.* -m numbers_uring serve"
    r"|prometheus |haproxy (?!-c ))"
)


@dataclass(frozen=True)
class Command:
    """A part of a block. One that stays is left running beside the next ones."""

    text: str
    stays: bool


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_blocks(text: str) -> str:
    return _FENCE.sub("", text)


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Return each block of commands, with the pattern of its output where the page shows one.

    That is the block of text which follows at most one paragraph later, right after the commands or
    after a line that ends in a colon; "…" stands for anything.
    """
    found = []
    fences = list(_FENCE.finditer(text))
    for fence, following in zip_longest(fences, fences[1:]):
        if fence[1] != "sh":
            continue
        output = None
        if following is not None and following[1] == "text":
            between = text[fence.end() : following.start()].strip()
            if not between or (between.endswith(":") and "\n\n" not in between):
                output = ".*".join(map(re.escape, following[2].split("…")))
        found.append((fence[2], output))
    return found


def commands(block: str) -> list[Command]:
    """Cut a block where a command stays."""
    parts: list[Command] = []
    for line in re.findall(r"(?:.*\\\n)*.*\n", block):
        stays = _LONG.match(line) is not None
        if parts and not stays and not parts[-1].stays:
            parts[-1] = Command(parts[-1].text + line, stays=False)
        else:
            parts.append(Command(line, stays))
    return parts


def links(text: str) -> list[str]:
    """Return where the links and pictures of a page lead, but for other sites."""
    return [
        link for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)) if "://" not in link
    ]


def anchors(text: str) -> set[str]:
    """Return the names by which GitHub lets the headings of a page be linked to."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}
