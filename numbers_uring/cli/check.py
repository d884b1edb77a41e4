"""The command `check`: its options, and how it prints findings and repairs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from json import dumps
from pathlib import Path

import click

from numbers_uring import __version__
from numbers_uring.cli.help import Command
from numbers_uring.cli.progress import bar_of_bytes
from numbers_uring.cluster.collector.index_check import IndexFindings, check_index, log_of
from numbers_uring.errors import ExitCode, SinkError
from numbers_uring.ingest.bitmap import allocate
from numbers_uring.ingest.native import variants
from numbers_uring.log.check import Findings, check_logs, open_logs
from numbers_uring.log.repair import Repair, repair_logs
from numbers_uring.system.stdio import PROGRAM

Indexes = Mapping[Path, IndexFindings | None]
"""What was found of each log's index, by the path of the log; None where there is none."""


def _different_files(
    _context: click.Context, _parameter: click.Parameter, paths: tuple[Path, ...]
) -> tuple[Path, ...]:
    named = [path for path in paths if log_of(path) == path]
    paths = (*named, *{log_of(path): None for path in paths if log_of(path) not in named})
    for first, second in combinations(paths, 2):
        try:
            same = first.samefile(second)
        except OSError:
            continue  # Opening it fails, too, with an error that says why.
        if same:
            raise click.BadParameter(f"'{first}' and '{second}' are the same file.")
    return paths


_EXAMPLES = (
    ("Check the log of a server, which may be running:", "check numbers.log"),
    ("Check the parts of a rotated log together:", "check numbers.log.1.gz numbers.log"),
    ("Cut a torn last line, and drop bad lines and duplicates:", "check --repair numbers.log"),
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument(
    "files",
    metavar="FILE...",
    type=click.Path(path_type=Path),
    nargs=-1,
    required=True,
    callback=_different_files,
)
@click.option(
    "--repair",
    is_flag=True,
    help="Replace each file with findings by a copy of its whole lines of nine digits, without "
    "numbers that occur earlier in the files. A file that a server uses, or that is compressed, is "
    "refused.",
)
@click.option("--json", is_flag=True, help="Print the findings as one JSON object.")
@click.version_option(__version__, prog_name=PROGRAM)
def check(files: tuple[Path, ...], repair: bool, json: bool) -> int:
    """Check that each line of FILE has nine digits and that no number occurs twice.

    Several files are taken as parts of one log, in the order given: no number may occur in two of
    them. A torn tail is what a crash may leave at the end: a part of a line, zero bytes, or both.
    The log of a running server can be checked, and may then end within a line. A rotated log may be
    compressed by gzip: offsets are those of the log before that, and --repair refuses it.

    A log numbers.P.log of a cluster is compared with each record of the index numbers.P.index
    beside it, and an index stands for its log. A collector mends an index at its next start.

    Every option can also be set from the environment: NUMBERS_URING_CHECK_JSON=1 stands for --json.

    Exit status: 0 clean, or repaired; 1 findings; 2 wrong usage; 3 a file cannot be read, or is in
    use and cannot be repaired; 4 a repair failed: only files reported as repaired were changed.
    """
    repairs: list[Repair] = []
    failure: SinkError | None = None
    with open_logs(files, lock=repair) as logs:
        kernel, bitmap = variants()[0], allocate().memory
        findings = check_logs(logs, kernel, bitmap, bar_of_bytes)
        indexes = {log.path: check_index(log, bitmap) for log in logs}
        if repair:
            try:
                for repair_done in repair_logs(findings, kernel, bitmap, bar_of_bytes):
                    repairs.append(repair_done)
            except SinkError as error:
                failure = error
    code = ExitCode.CLEAN
    if failure is not None:
        code = ExitCode.LOG_FAILED
    elif len(repairs) < sum(not found.clean for found in findings) or any(
        index is not None and index.findings for index in indexes.values()
    ):
        code = ExitCode.FAILED
    if json:
        click.echo(_json(findings, indexes, repairs, code, failure))
    else:
        click.echo(_text(findings, indexes, repairs))
    if failure is not None:
        raise failure
    return code


def _json(
    findings: Sequence[Findings],
    indexes: Indexes,
    repairs: Sequence[Repair],
    code: ExitCode,
    failure: SinkError | None,
) -> str:
    def total(count: Callable[[Findings], int]) -> int:
        return sum(map(count, findings))

    return dumps(
        {
            "exit_code": code,
            "error": None if failure is None else str(failure),
            "numbers": total(lambda found: found.scan.lines),
            "distinct": total(lambda found: found.scan.unique),
            "files": [
                {
                    "path": str(found.log.path),
                    "bytes": found.scan.size_bytes,
                    "compressed": found.log.compressed,
                    "numbers": found.scan.lines,
                    "duplicates": found.duplicates,
                    "repeated_from_earlier_files": found.repeated,
                    "bad_lines": found.scan.bad_lines,
                    "first_bad_offset": found.scan.first_bad_offset,
                    "torn_bytes": found.scan.torn_bytes,
                    "repaired": repair is not None,
                    "hard_links_left": 0 if repair is None else repair.hard_links,
                    "attributes_lost": [] if repair is None else repair.lost_attributes,
                    "index": _index_json(indexes[found.log.path]),
                }
                for found, repair in _with_repairs(findings, repairs)
            ],
        }
    )


def _index_json(index: IndexFindings | None) -> dict[str, object] | None:
    if index is None:
        return None
    return {
        "path": str(index.path),
        "records": index.records,
        "sequence": index.sequence,
        "findings": index.findings,
    }


def _with_repairs(
    findings: Sequence[Findings], repairs: Sequence[Repair]
) -> Iterator[tuple[Findings, Repair | None]]:
    for found in findings:
        yield found, next((one for one in repairs if one.findings == found), None)


def _text(findings: Sequence[Findings], indexes: Indexes, repairs: Sequence[Repair]) -> str:
    lines = []
    for found, repair in _with_repairs(findings, repairs):
        line = f"{_printable(found.log.path)}: {_describe(found)}"
        lines.append(line if repair is None else f"{line}; {_describe_repair(repair)}")
        index = indexes[found.log.path]
        if index is not None:
            lines.append(f"{_printable(index.path)}: {_describe_index(index)}")
    bad_indexes = sum(bool(index and index.findings) for index in indexes.values())
    repaired = [repair.findings for repair in repairs]
    return "\n".join([*lines, _summary(findings, bad_indexes, repaired)])


def _printable(path: Path) -> str:
    name = str(path)
    return name if name.isprintable() else ascii(name)


def _describe_index(index: IndexFindings) -> str:
    agreeing = f"{_count(index.records, 'record')} up to message {index.sequence}"
    return "; ".join([f"{agreeing} that the log agrees with", *index.findings])


def _describe_repair(repair: Repair) -> str:
    text = "repaired"
    if repair.hard_links:
        text += f"; {_count(repair.hard_links, 'other hard link')} to the file as it was"
    if repair.lost_attributes:
        text += f"; without the extended attributes {', '.join(repair.lost_attributes)}"
    return text


def _describe(found: Findings) -> str:
    scan = found.scan
    parts = [_count(scan.lines, "number")]
    if found.duplicates:
        parts.append(_count(found.duplicates, "duplicate"))
    if found.repeated:
        parts.append(f"{found.repeated} repeated from earlier files")
    if scan.torn_bytes:
        parts.append(f"torn tail of {_count(scan.torn_bytes, 'byte')}")
    if scan.bad_lines == 1:
        parts.append(f"bad line at byte {scan.first_bad_offset}")
    elif scan.bad_lines:
        parts.append(f"{scan.bad_lines} bad lines, the first at byte {scan.first_bad_offset}")
    return ", ".join(parts)


def _summary(findings: Sequence[Findings], bad_indexes: int, repaired: Sequence[Findings]) -> str:
    numbers = sum(found.scan.lines for found in findings)
    distinct = sum(found.scan.unique for found in findings)
    found_in = sum(not found.clean for found in findings)
    text = (
        f"{_count(len(findings), 'file')}: {_count(numbers, 'number')}, {distinct} distinct, "
        f"{'findings in ' + _count(found_in, 'file') if found_in else 'clean'}"
    )
    if bad_indexes:
        text = text.removesuffix(", clean")
        text += f", findings in {bad_indexes} {'index' if bad_indexes == 1 else 'indexes'}"
    if not repaired:
        return text
    duplicates = sum(found.scan.duplicates for found in repaired)
    bad_lines = sum(found.scan.bad_lines for found in repaired)
    torn_bytes = sum(found.scan.torn_bytes for found in repaired)
    return (
        f"{text}; repaired {_count(len(repaired), 'file')}, dropped "
        f"{_count(duplicates, 'duplicate')}, {_count(bad_lines, 'bad line')} "
        f"and {_count(torn_bytes, 'torn byte')}"
    )


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
