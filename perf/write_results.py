"""Puts what perf/bench.py has printed into perf/RESULTS.md, part by part.

    python perf/bench.py sends > build/bench/sends.md
    python perf/write_results.py build/bench/sends.md

`sends`, the file's name, is the part: its place is between "<!-- sends -->" and "<!-- end -->" in
RESULTS.md. Other parts stay as they are, so each has the machine and the date of its own run.
"""

import re
from pathlib import Path

import click

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def with_part(results: str, part: str, printed: str) -> str:
    """Return the text with another content of one part. Raises ClickException without its place."""
    begin, end = f"<!-- {part} -->\n", "<!-- end -->\n"
    before, found, rest = results.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise click.ClickException(f"{RESULTS.name} has no place for {part}")
    # The machine's line begins what is printed: a paragraph of its own.
    content = re.sub(r"\n{3,}", "\n\n", printed.strip())
    return f"{before}{begin}\n{content}\n\n{end}{after}"


@click.command(help=__doc__)
@click.argument(
    "printed", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
def main(printed: tuple[Path, ...], results: Path) -> None:
    text = results.read_text()
    for file in printed:
        text = with_part(text, file.stem, file.read_text())
    results.write_text(text)


if __name__ == "__main__":
    main()
