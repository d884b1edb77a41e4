"""What workers and the accepting loop tell each other, whichever comes first."""

import sys
from itertools import count
from types import FrameType
from typing import Any
from unittest.mock import Mock

import pytest

from numbers_uring.server.workers import Workers


class Interrupted:
    """Calls `other` before one instruction of `code`, as another thread may."""

    def __init__(self, code: object, instruction: int, other: Any) -> None:
        self.was = False
        self._code = code
        self._left = instruction
        self._other = other

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        # Python 3.12 looks once, in settrace, whether any frame asks for its instructions.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is not self._code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if self._left == 0:
                self.was = True
                self._other()
            self._left -= 1
        return self._trace


@pytest.mark.parametrize("noticed_before", [False, True])
def test_a_notice_at_any_moment_is_taken_now_or_the_next_time(noticed_before: bool) -> None:
    for instruction in count():
        workers = Workers(0, make=Mock(), make_intake=Mock(), wake=Mock())
        if noticed_before:
            workers._notify()
        interrupted = Interrupted(Workers.take_notice.__code__, instruction, workers._notify)
        with interrupted:
            taken = workers.take_notice()
        if not interrupted.was:
            assert instruction > 3
            return
        # Where it is taken, the accepting loop looks at the workers after that.
        assert taken or workers.take_notice(), instruction
        assert not workers.take_notice() or taken
