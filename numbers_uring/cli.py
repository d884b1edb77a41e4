"""The command line: options to a Config, and the only place where the parts are put together."""

import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from numbers_uring import __version__
from numbers_uring.bitmap import Bitmap, allocate
from numbers_uring.check_command import check
from numbers_uring.config import (
    BATCH_BYTES,
    DESCRIPTORS_RESERVED,
    LAST_REPORT_WAIT_S,
    RECEIVE_BYTES_PYTHON,
    Config,
    ExitCode,
    Fsync,
    StartError,
    WhenFull,
)
from numbers_uring.console import (
    PROGRAM,
    STDERR,
    STDOUT,
    Lines,
    diagnostics,
    open_standard_streams,
)
from numbers_uring.epoll_reactor import EpollReactor
from numbers_uring.intake import Intake
from numbers_uring.kernel import Kernel, PythonKernel
from numbers_uring.listeners import address_text, listen
from numbers_uring.load_command import LOAD_HELP, load_and_print, load_options, load_parameters
from numbers_uring.native_kernel import VARIANT_NAMES, variants
from numbers_uring.numbers_log import LogError, NumbersLog
from numbers_uring.reactor import BackendError, Reactor
from numbers_uring.resume import StopRequestedError, resume
from numbers_uring.ring_probe import why_not
from numbers_uring.server import Server
from numbers_uring.signals import Requests
from numbers_uring.uring_reactor import UringReactor

_ENVIRONMENT_PREFIX = "NUMBERS_URING"
AUTO_BACKEND = "epoll"
"""What --backend auto takes where a ring can be had: perf/RESULTS.md has the figures."""
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Seconds(click.FloatRange):
    """Seconds as a fraction; `nan` and `inf`, which float() takes, are no times."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not seconds < 1e9:
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """A TCP number server for Linux: takes in nine-digit numbers, keeps each once."""


cli.add_command(check)


@cli.command(context_settings={"show_default": True})
@click.option(
    "--backend",
    type=click.Choice(["auto", "epoll", "uring"]),
    default="auto",
    help="How the sockets are served; auto takes the best one there is.",
)
@click.option(
    "--kernel",
    type=click.Choice(["auto", "native", *VARIANT_NAMES, "python"]),
    default="auto",
    help="What parses and de-duplicates. native: the fastest compiled variant that the CPU runs, "
    "which auto takes; the variants can be named, too; python: their slow specification.",
)
@click.option(
    "--host",
    metavar="HOST",
    default="127.0.0.1",
    help="Address or name to listen on, IPv4 or IPv6; 0.0.0.0 or :: for every interface.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4000,
    help="TCP port to listen on; 0 takes a free one, named in the start line.",
)
@click.option(
    "--max-clients",
    "--concurrent-connections",
    "max_clients",
    type=click.IntRange(1, 1_000_000),
    default=5,
    envvar=[
        f"{_ENVIRONMENT_PREFIX}_SERVE_MAX_CLIENTS",
        f"{_ENVIRONMENT_PREFIX}_SERVE_CONCURRENT_CONNECTIONS",
    ],
    metavar="N",
    help="Clients served at once.",
)
@click.option(
    "--when-full",
    type=click.Choice([choice.value for choice in WhenFull]),
    default=WhenFull.WAIT.value,
    help="A client beyond --max-clients waits until one leaves, or is disconnected at once.",
)
@click.option(
    "--log-file",
    type=click.Path(path_type=Path),
    default="numbers.log",
    help="The file that gets each number once, one a line; created anew at start.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Keep the log of an earlier run: its numbers count as seen, a torn last line is cut.",
)
@click.option(
    "--fsync",
    type=click.Choice([choice.value for choice in Fsync]),
    default=Fsync.INTERVAL.value,
    help="What a power cut or a crash of the system may lose (a crash of the server alone loses "
    "nothing that was taken in before it last waited). always: nothing, the disk has each number "
    "before the server waits again; interval: about the last second; never: whatever the system "
    "has not written yet, minutes perhaps.",
)
@click.option(
    "--write-behind",
    type=click.Choice(["on", "off"]),
    default="on",
    help="on: have the log written to disk as it grows and drop it from the page cache; faster for "
    "long runs, small in memory. off: leave that to the system, which takes bursts that are faster "
    "than the disk for as long as it has memory.",
)
@click.option(
    "--report-interval",
    type=_Seconds(min=0, min_open=True),
    default=10.0,
    help="Seconds between two reports on standard output.",
)
@click.option(
    "--idle-timeout",
    type=_Seconds(min=0),
    default=0.0,
    help="Disconnect a client this many seconds after its last complete line; 0 never does.",
)
@click.version_option(__version__, prog_name=PROGRAM)
def serve(
    backend: str,
    kernel: str,
    host: str,
    port: int,
    max_clients: int,
    when_full: str,
    log_file: Path,
    resume: bool,
    fsync: str,
    write_behind: str,
    report_interval: float,
    idle_timeout: float,
) -> None:
    """Take in numbers over TCP until a client says "terminate", or SIGTERM or SIGINT comes.

    Clients send lines of exactly nine decimal digits, each ended by a newline. Every number that is
    new goes to the log file, repeats are only counted, and any other line ends its client's
    connection. Counts are reported on standard output; all else is said on standard error.

    Every option can also be set from the environment: NUMBERS_URING_SERVE_PORT=5000 stands for
    --port 5000.

    Exit status: 0 stopped as asked and everything is on file, 1 the system failed the backend, 2
    wrong usage, 3 could not start, 4 the log failed.
    """
    _serve(
        Config(
            backend=backend,
            kernel=kernel,
            host=host,
            port=port,
            connections_max=max_clients,
            when_full=WhenFull(when_full),
            log_path=log_file.absolute(),
            resume=resume,
            fsync=Fsync(fsync),
            write_behind=write_behind == "on",
            report_interval_s=report_interval,
            idle_timeout_s=idle_timeout,
        )
    )


@cli.command(help=LOAD_HELP, context_settings={"show_default": True})
@load_options
def load(*, as_json: bool, **options: Any) -> int:
    """Run one load."""
    parameters = load_parameters(options)
    raise_descriptor_limit(parameters.clients, "--clients")
    return load_and_print(parameters, as_json=as_json, say=diagnostics(Lines(STDERR)))


def _serve(config: Config) -> None:
    begin_s = time.monotonic()
    say = diagnostics(Lines(STDERR))
    stdout = Lines(STDOUT)

    def report(line: str, last: bool) -> bool:
        return stdout.write(line, wait_s=LAST_REPORT_WAIT_S if last else 0)

    with ExitStack() as parts:
        kernel = choose_kernel(config.kernel)
        backend, make_reactor = choose_backend(config.backend, say)
        if make_reactor is EpollReactor and isinstance(kernel, PythonKernel):
            make_reactor = partial(EpollReactor, receive_bytes=RECEIVE_BYTES_PYTHON)
        requests = Requests(say)
        raise_descriptor_limit(config.connections_max)
        bitmap = allocate()
        listeners = listen(config.host, config.port)
        try:
            reactor = make_reactor(
                listeners,
                requests.wakeup_fd,
                connections_max=config.connections_max,
                when_full=config.when_full,
                warn=say,
            )
        except OSError as error:
            raise StartError(f"cannot set up the backend {backend}: {error.strerror}") from error
        parts.callback(reactor.close)
        intake = Intake(
            kernel,
            reactor.arena,
            bitmap.memory,
            connections_max=config.connections_max,
            batch_bytes=BATCH_BYTES,
        )
        log = NumbersLog(
            config.log_path,
            say=say,
            fsync=config.fsync,
            write_behind=config.write_behind,
            wake=requests.wake,
        )
        parts.callback(log.close)
        if config.resume:
            resume(
                log,
                kernel,
                bitmap.memory,
                say=say,
                stop_requested=lambda: requests.stop is not None,
            )
        else:
            log.truncate()
        server = Server(
            reactor,
            intake,
            log,
            requests,
            connections_max=config.connections_max,
            report_interval_s=config.report_interval_s,
            idle_timeout_s=config.idle_timeout_s,
            report=report,
            say=say,
        )
        say(
            f"listening on {' and '.join(map(address_text, listeners))}, backend {backend}, "
            f"kernel {kernel.variant}, {bitmap_text(bitmap)}, "
            f"at most {config.connections_max} clients, log {log.path}, "
            f"started in {time.monotonic() - begin_s:.2f} s"
        )
        server.run()
        requests.ignore_stops()
        ended = server.statistics.ended
        say(
            f"stopped by {server.stopped_by}: {log.written_lines} numbers written to {log.path}, "
            f"{server.statistics.accepted} clients served, {reactor.refused} refused, "
            f"{ended['invalid']} disconnected for an invalid line, "
            f"{ended['idle']} for being idle, {ended['incomplete']} left within a line"
        )


def bitmap_text(bitmap: Bitmap) -> str:
    """Say, for the start line, on what pages the bitmap lies."""
    share = 100 * bitmap.huge_bytes // len(bitmap.memory)
    if share == 0:
        return "no huge pages"
    return "huge pages" if share >= 95 else f"huge pages for {share} % of the bitmap"


def choose_kernel(name: str) -> Kernel:
    """Return the kernel asked for; `auto` and `native` are the fastest compiled variant.

    Raises StartError where this CPU does not run it.
    """
    if name == "python":
        return PythonKernel()
    found = variants()
    for kernel in found:
        if name in {"auto", "native", kernel.variant}:
            return kernel
    raise StartError(f"this CPU does not run the kernel {name}, only {found[0].variant} and slower")


def choose_backend(
    name: str, say: Callable[[str], None], auto: str = AUTO_BACKEND
) -> tuple[str, Callable[..., Reactor]]:
    """Return the backend asked for and its reactor's class; for `auto`, what `auto` says, or epoll.

    A ring is tried before it is taken, and for `auto` in any case: `say` is told why none can be
    had. Raises StartError.
    """
    if name == "epoll":
        return "epoll", EpollReactor
    reason = why_not()
    if reason is not None and name == "uring":
        raise StartError(f"cannot use io_uring (--backend epoll works): {reason}")
    if reason is not None:
        say(f"cannot use io_uring, taking epoll: {reason}")
    elif name == "uring" or auto == "uring":
        return "uring", UringReactor
    return "epoll", EpollReactor


def raise_descriptor_limit(connections_max: int, option: str = "--max-clients") -> None:
    """See to it that `connections_max` clients, set by `option`, fit. Raises StartError."""
    needed = connections_max + DESCRIPTORS_RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartError(
            f"{option} {connections_max} needs {needed} file descriptors, "
            f"and the hard limit is {hard} (ulimit -Hn)"
        )
    target = needed if hard == resource.RLIM_INFINITY else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError) as error:
        raise StartError(
            f"cannot raise the limit of file descriptors to {target}: {error}"
        ) from error


def _fail(text: str, code: int) -> NoReturn:
    diagnostics(Lines(STDERR))(f"error: {text}")
    sys.exit(code)


def main() -> NoReturn:
    """Run the command; every failure is one line on standard error and an ExitCode."""
    open_standard_streams()
    try:
        code = cli.main(
            prog_name=PROGRAM, auto_envvar_prefix=_ENVIRONMENT_PREFIX, standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else PROGRAM
        _fail(f"{error.format_message()} Try '{command} --help'.", error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except StartError as error:
        _fail(str(error), ExitCode.NOT_STARTED)
    except StopRequestedError:
        sys.exit(ExitCode.CLEAN)
    except BackendError as error:
        _fail(str(error), ExitCode.BACKEND_FAILED)
    except LogError as error:
        _fail(str(error), ExitCode.LOG_FAILED)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(128 + 2)
    sys.exit(code if isinstance(code, int) else ExitCode.CLEAN)
