"""What a command tells its operator: the standard library's logging, a line each on one stream."""

import json
import logging
import os
import sys
import threading
import warnings
from datetime import UTC, datetime

from numbers_uring.config import LogFormat
from numbers_uring.errors import UnexpectedError
from numbers_uring.limits import DIAGNOSTIC_CHARACTERS_MAX, LAST_REPORT_WAIT_S
from numbers_uring.system.stdio import PROGRAM, LineWriter


class Diagnostics:
    """Logs to `lines`: one line each, as text or as a JSON object. Calling it logs a warning.

    Fields are for programs: only the JSON has them, beside time (UTC), level and message. Nothing
    waits for the reader, and a line that can't be written is dropped; only an error, which usually
    is the last line, waits LAST_REPORT_WAIT_S.
    """

    def __init__(
        self,
        lines: LineWriter,
        *,
        form: LogFormat = LogFormat.TEXT,
        level_min: int = logging.INFO,
    ) -> None:
        self._handler = _LineHandler(lines)
        self._handler.setLevel(level_min)
        self._logger = logging.Logger(PROGRAM)
        self._logger.addHandler(self._handler)
        self._stamped = False
        self.form = form

    @property
    def form(self) -> LogFormat:
        """How lines are written from now on."""
        return self._form

    @form.setter
    def form(self, form: LogFormat) -> None:
        self._form = form
        self._handler.setFormatter(
            _JsonFormatter() if form is LogFormat.JSON else _TextFormatter(stamped=self._stamped)
        )

    @property
    def level_min(self) -> int:
        """The level, as in logging, below which nothing is written."""
        return self._handler.level

    @level_min.setter
    def level_min(self, level: int) -> None:
        self._handler.setLevel(level)

    def stamp_lines(self, fd: int) -> None:
        """Begin each line of text with the time, unless the reader of `fd` adds it or sees it.

        That is for services: a terminal is read as the lines come, and the journal has the time.
        """
        self._stamped = not (os.isatty(fd) or _is_journal(fd))
        self.form = self.form

    def take_over(self) -> None:
        """Log what else would be written to standard error.

        That is what libraries log, from warnings on, and the failures of threads and where nothing
        can be raised, which are otherwise tracebacks; one that no one expected has its traceback
        behind it as debug lines.
        """
        logging.getLogger().addHandler(self._handler)
        threading.excepthook = self._log_thread_failure
        sys.unraisablehook = self._log_unraisable
        if not sys.warnoptions:
            # Python's own warnings are for developers, and come after a failure that was told.
            warnings.simplefilter("ignore")

    def log_traceback(self, error: BaseException) -> None:
        """Log where the error was raised, line by line, at the level debug."""
        import traceback  # noqa: PLC0415 - seldom needed

        for line in traceback.format_exception(error):
            self.debug(line)

    def _log_unraisable(self, hook: "sys.UnraisableHookArgs") -> None:
        error = hook.exc_value
        if isinstance(error, Exception):
            where = f" {hook.err_msg.removeprefix('Exception ignored ')}" if hook.err_msg else ""
            self.warning(f"ignored a failure{where}: {UnexpectedError(error)}")
            self.log_traceback(error)

    def _log_thread_failure(self, hook: threading.ExceptHookArgs) -> None:
        name = hook.thread.name if hook.thread is not None else "unnamed"
        if isinstance(hook.exc_value, Exception):
            self.error(f"the thread {name} has failed: {UnexpectedError(hook.exc_value)}")
            self.log_traceback(hook.exc_value)

    def __call__(self, text: str, **fields: object) -> None:
        self._log(logging.WARNING, text, fields)

    def debug(self, text: str, **fields: object) -> None:
        self._log(logging.DEBUG, text, fields)

    def info(self, text: str, **fields: object) -> None:
        self._log(logging.INFO, text, fields)

    def warning(self, text: str, **fields: object) -> None:
        self._log(logging.WARNING, text, fields)

    def error(self, text: str, **fields: object) -> None:
        self._log(logging.ERROR, text, fields)

    def _log(self, level: int, text: str, fields: dict[str, object]) -> None:
        self._logger.log(level, text, extra={"fields": fields})


class _LineHandler(logging.Handler):
    """Writes each record with a LineWriter."""

    def __init__(self, lines: LineWriter) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:
            record.msg = f"a message that can't be formatted: {error!r}"
            record.args = None
            line = self.format(record)
        is_last = record.levelno >= logging.ERROR and record.name == PROGRAM
        self._lines.write(line, wait_s=LAST_REPORT_WAIT_S if is_last else 0)


def _is_journal(fd: int) -> bool:
    """Return whether `fd` is the journal's stream; JOURNAL_STREAM is of systemd.exec(5)."""
    try:
        state = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{state.st_dev}:{state.st_ino}"


def _time_text(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return time.replace("+00:00", "Z")


class _TextFormatter(logging.Formatter):
    def __init__(self, *, stamped: bool) -> None:
        super().__init__()
        self._stamped = stamped

    def format(self, record: logging.LogRecord) -> str:
        if record.name != PROGRAM:
            mark = f"{record.name}: "
        else:
            mark = "error: " if record.levelno == logging.ERROR else ""
        stamp = f"{_time_text(record)} " if self._stamped else ""
        return f"{stamp}{PROGRAM}: {mark}{_message(record)}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {"logger": record.name} if record.name != PROGRAM else record.__dict__["fields"]
        line = {
            "time": _time_text(record),
            "level": record.levelname.lower(),
            "message": _message(record),
            **fields,
        }
        return json.dumps(line, ensure_ascii=False, default=str)


def _message(record: logging.LogRecord) -> str:
    """Make of it one printable line, short enough to be written whole."""
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        text = f"{text}: {record.exc_info[1]!r}"
    text = " ".join(text.split())[:DIAGNOSTIC_CHARACTERS_MAX]
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
