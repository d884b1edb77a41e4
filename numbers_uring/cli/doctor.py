"""The command `doctor`: the options of the server it checks for, and how it prints findings."""

from json import dumps
from typing import Any

import click

from numbers_uring import __version__
from numbers_uring.cli.environment import ENVIRONMENT_PREFIX
from numbers_uring.cli.help import Command, option_group
from numbers_uring.cli.serve import serve_config
from numbers_uring.cli.serve_options import serve_options
from numbers_uring.doctor.checks import Check, Diagnosis, Severity
from numbers_uring.errors import ExitCode
from numbers_uring.system.stdio import PROGRAM

_HELP = """
Check whether `serve` with the same options would start on this host.

The doctor tries each step of the start and undoes it at once. It creates and changes nothing: no
log, no socket file. A running server is not disturbed; its address and its log are then in use,
which is a finding. With --resume the doctor also reads both ends of the log, and with --seen those
of its plain files.

Every option can also be set from the environment, by its variable of `serve`:
NUMBERS_URING_SERVE_PORT=5000 stands for --port 5000.

Exit status: 0 a server would start, 1 a server would not start, 2 wrong usage, 3 the findings
cannot be written.
"""


_EXAMPLES = (
    ("Check whether a server with the default options would start:", "doctor"),
    (
        "Check whether one with your server's options would, and print JSON:",
        "doctor --host 0.0.0.0 --resume --json",
    ),
)


@click.command(
    cls=Command,
    help=_HELP,
    examples=_EXAMPLES,
    # The server's variables, because the doctor checks the server's options.
    context_settings={"auto_envvar_prefix": f"{ENVIRONMENT_PREFIX}_SERVE"},
)
@option_group(
    "Result",
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        envvar=f"{ENVIRONMENT_PREFIX}_DOCTOR_JSON",
        allow_from_autoenv=False,
        help="Print the findings as one JSON object.",
    ),
)
@serve_options
@click.version_option(__version__, prog_name=PROGRAM)
def doctor(*, as_json: bool, **options: Any) -> int:
    """Examine the system for one server."""
    # Here, so that a server does not wait for what only the doctor imports.
    from numbers_uring.doctor.examination import examine

    diagnosis = examine(serve_config(options))
    code = ExitCode.CLEAN if diagnosis.would_start else ExitCode.FAILED
    click.echo(_json(diagnosis, code) if as_json else _text(diagnosis))
    return code


def _json(diagnosis: Diagnosis, code: ExitCode) -> str:
    return dumps(
        {
            "exit_code": code,
            "would_start": diagnosis.would_start,
            "error": diagnosis.error,
            "backend": diagnosis.backend,
            "kernel": diagnosis.kernel,
            "findings": {
                check.name: {
                    "verdict": check.severity.value,
                    "text": check.text,
                    "advice": check.advice,
                    "values": check.values,
                }
                for check in diagnosis.checks
            },
        }
    )


def _text(diagnosis: Diagnosis) -> str:
    width = max(len(check.name) for check in diagnosis.checks)
    lines = [line for check in diagnosis.checks for line in _lines(check, width)]
    if diagnosis.would_start:
        verdict = f"would start: backend {diagnosis.backend}, kernel {diagnosis.kernel}"
    else:
        verdict = f"would not start: {diagnosis.error}"
    return "\n".join([*lines, f"serve {_printable(verdict)}"])


def _lines(check: Check, width: int) -> list[str]:
    mark = "PROBLEM" if check.severity is Severity.PROBLEM else check.severity.value
    lines = [f"{mark:<7}  {check.name:<{width}}  {_printable(check.text)}"]
    if check.advice is not None:
        lines.append(f"{'':7}  {'':{width}}  -> {_printable(check.advice)}")
    return lines


def _printable(text: str) -> str:
    """Names of files may have line ends and escapes in them."""
    return text if text.isprintable() else ascii(text)[1:-1]
