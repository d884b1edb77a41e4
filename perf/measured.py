"""What the rounds of a benchmark gave: contenders that take turns, and their table."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from bench import spread


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run gave."""

    numbers_per_s: float
    cpu_ns_per_number: dict[str, float]
    """Processor time of each part of a cluster."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to be measured: each run gives one measurement or more, by name.

    `base` is the contender that it is compared with.
    """

    name: str
    run: Callable[[], dict[str, Measurement]]
    base: str


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one scenario: a measurement a round, in the order of the rounds."""

    table: str
    scenario: str
    contender: str
    what: str
    base: str
    rounds: list[Measurement]


def take_turns(
    table: str, scenario: str, contenders: Sequence[Contender], rounds: int
) -> list[Row]:
    """Run each contender once a round, in an order that turns; print and return the figures."""
    rows: dict[tuple[str, str], Row] = {}
    for round_ in range(rounds):
        turn = round_ % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            for what, measurement in contender.run().items():
                key = (contender.name, what)
                if key not in rows:
                    rows[key] = Row(table, scenario, contender.name, what, contender.base, [])
                rows[key].rounds.append(measurement)
    order = [contender.name for contender in contenders]
    found = sorted(rows.values(), key=lambda row: order.index(row.contender))
    _print(found)
    return found


def _print(rows: Sequence[Row]) -> None:
    by_key = {(row.contender, row.what): row for row in rows}
    parts = list(dict.fromkeys(part for row in rows for part in row.rounds[0].cpu_ns_per_number))
    click.echo(f"\n### {rows[0].table}: {rows[0].scenario}\n")
    columns = ["", "what", "M numbers/s", "ratio", *(f"{part}, CPU ns/number" for part in parts)]
    click.echo(f"| {' | '.join(columns)} |")
    click.echo(f"|{'---|' * len(columns)}")
    for row in rows:
        base = by_key[row.base, row.what]
        rates = spread([one.numbers_per_s / 1e6 for one in row.rounds])
        pairs = zip(row.rounds, base.rounds, strict=True)
        ratio = statistics.median(one.numbers_per_s / other.numbers_per_s for one, other in pairs)
        cells = [row.contender, row.what, rates, "1" if base is row else f"{ratio:.2f}"]
        for part in parts:
            spent = [one.cpu_ns_per_number.get(part) for one in row.rounds]
            known = [each for each in spent if each is not None]
            cells.append(spread(known) if known else "-")
        click.echo(f"| {' | '.join(cells)} |")
