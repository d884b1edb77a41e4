"""Finds words that our texts avoid, and prose that is too wide: plain_words.py, run by `make lint`.

Every line of the sources, tests and pages is looked at, code as well: names are words, too.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("numbers_uring", "native", "perf", "share", "tests", "deploy", "docs")
SUFFIXES = {".c", ".h", ".md", ".py", ".service", ".socket", ".yml"}
WIDTH = 100

AVOIDED = {
    "anybody": "anyone",
    "as it goes": "as it runs",
    "assembly": "run",
    "beat": "heartbeat",
    "beats": "heartbeats",
    "can be had": "is available",
    "can't be had": "is not available",
    "console": "stdio",
    "crew": "workers",
    "disconnect_lines": "disconnect_log",
    "goodbye": "what it says or does",
    "idle clock": "idle timeouts",
    "know that": "called when",
    "let_go": "finish_close",
    "nobody": "no one, no client",
    "occupy": "set_connections_elsewhere",
    "of late": "recently",
    "patience": "the time that it waits",
    "relief": "what to do",
    "say whether": "return whether",
    "says whether": "returns whether",
    "somebody": "someone, another process",
    "surroundings": "host facts",
    "trials": "probes",
    "trouble": "the error",
    "utils": "what the module does",
    "whoever": "the client, another process",
    "wish": "what it is",
}
"""Each word that no file has, and what to write in its place."""


def problems(path: Path) -> Iterator[str]:
    """Yield a line for each avoided word of a file, and for each line of prose that is too wide."""
    words = "|".join(f"[{word[0].upper()}{word[0]}]{word[1:]}" for word in AVOIDED)
    # A part of a name_like_this is a word; an ALL_CAPS name may be Linux's.
    pattern = re.compile(rf"(?<![A-Za-z])(?:{words})(?![A-Za-z])")
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path.relative_to(ROOT)}:{number}"
        for found in pattern.findall(line):
            yield f"{where}: {found!r}: write {AVOIDED[found.lower()]!r}"
        fenced ^= line.startswith("```")
        prose = path.suffix == ".md" and not fenced and not line.startswith(("|", "[!["))
        if prose and len(line) > WIDTH and " " in line[:WIDTH].strip():
            yield f"{where}: {len(line)} columns of prose, more than {WIDTH}"


def main() -> None:
    """Print all problems; exit 1 if there are any."""
    files = [*ROOT.glob("*.md"), *(file for each in FOLDERS for file in (ROOT / each).rglob("*"))]
    texts = [file for file in files if file.suffix in SUFFIXES and file != Path(__file__)]
    found = [problem for file in sorted(texts) for problem in problems(file)]
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
