"""How samples of perf and py-spy are read."""

from collections import Counter

import pytest

from numbers_uring.profiling.flame_graph import Frame, Origin
from numbers_uring.profiling.stacks import perf_stacks, py_spy_stacks

NAMED = """
\tffffffff81bb296d _copy_to_iter ([kernel.kallsyms])
\tffffffff82088464 tcp_recvmsg_locked.part.0 ([kernel.kallsyms])
\tffffffffc0288464 nf_hook ([nf_conntrack])
\t          10a974 __libc_recv (/usr/lib/x86_64-linux-gnu/libc.so.6)
\t           3b1c8 sock_recv_into (/usr/lib/python3.13/lib-dynload/_socket.cpython-313-x86_64.so)
\t           92b61 _PyEval_EvalFrameDefault (/usr/lib/libpython3.13.so.1.0)
\t              85 py::EpollReactor._receive:/opt/numbers_uring/reactor/epoll.py (/tmp/perf-7.map)
\t          2bc5f0 py_trampoline_evaluator (/usr/lib/libpython3.13.so.1.0)
\t              85 py::_run_code:<frozen runpy> (/tmp/jitted-7-448.so)
\t           27249 __libc_start_call_main@@GLIBC_2.34 (/usr/lib/x86_64-linux-gnu/libc.so.6)

"""

UNNAMED = """
            9a1c nu_ingest_avx2 (/opt/numbers_uring/_native.abi3.so)
          1c5b12 cfunction_call (/usr/bin/python3.11)
          250a3f _PyEval_Vector (/usr/bin/python3.11)
           27249 __libc_start_call_main (/usr/lib/x86_64-linux-gnu/libc.so.6)

"""


def python(name: str) -> Frame:
    return Frame(name, Origin.PYTHON)


def native(name: str) -> Frame:
    return Frame(name, Origin.NATIVE)


def library(name: str) -> Frame:
    return Frame(name, Origin.LIBRARY)


def linux(name: str) -> Frame:
    return Frame(name, Origin.LINUX)


def test_pythons_functions_are_named_and_its_interpreter_is_left_out() -> None:
    assert perf_stacks(NAMED.splitlines()) == Counter(
        [
            (
                library("__libc_start_call_main"),
                python("_run_code (runpy)"),
                python("EpollReactor._receive (epoll.py)"),
                library("sock_recv_into"),
                library("__libc_recv"),
                linux("nf_hook"),
                linux("tcp_recvmsg_locked"),
                linux("_copy_to_iter"),
            )
        ]
    )


# The letters are of the ABI: t is free-threaded, d a debug build.
@pytest.mark.parametrize(
    "interpreter", ["python3.11", "python3.14t", "python3.13d", "python3.15td"]
)
@pytest.mark.parametrize("place", ["/usr/bin/{}", "/usr/lib/lib{}.so.1.0"])
def test_without_names_the_interpreter_is_one_frame(interpreter: str, place: str) -> None:
    stack = UNNAMED.replace("/usr/bin/python3.11", place.format(interpreter))
    assert perf_stacks(stack.splitlines()) == Counter(
        [
            (
                library("__libc_start_call_main"),
                python("interpreter"),
                native("nu_ingest_avx2"),
            )
        ]
    )


def test_equal_stacks_are_counted_and_each_blank_line_ends_one() -> None:
    stacks = perf_stacks((UNNAMED + NAMED + UNNAMED).splitlines(keepends=True))
    assert sorted(stacks.values()) == [1, 2]


def test_what_has_no_symbol_is_named_by_where_it_is() -> None:
    lines = """
            9a1c [unknown] (/usr/lib/libz.so.1)
    7ffcd3c5a880 [unknown] ([unknown])
    7f42bfb49e80 [unknown] ([unknown])

ffffffff82084537 [unknown] ([unknown])

"""
    assert perf_stacks(lines.splitlines()) == Counter(
        [(library("unknown"), library("libz.so.1")), (linux("unnamed"),)]
    )


def test_a_function_that_calls_itself_stays_there_twice() -> None:
    lines = ["  85 py::walk:/a.py (/tmp/perf-7.map)", "  85 py::walk:/a.py (/tmp/perf-7.map)", ""]
    assert perf_stacks(lines) == Counter([(python("walk (a.py)"), python("walk (a.py)"))])


def test_a_stack_that_was_cut_short_does_not_count() -> None:
    whole = UNNAMED + NAMED
    assert perf_stacks(whole[: len(whole) * 3 // 4].splitlines()) == perf_stacks(
        UNNAMED.splitlines()
    )


def test_what_is_no_frame_makes_no_stack() -> None:
    assert not perf_stacks(["", "python 123/123", "", "Warning: something"])
    assert not py_spy_stacks(["", "\n", "Error: no such thing", "a (b.py) x"])


def test_py_spys_lines_are_read_without_line_numbers() -> None:
    lines = [
        "0x7f8cf7e4524a (libc.so.6);_run_code (<frozen runpy>:88);"
        "Intake.receive (numbers_uring/ingest/intake.py:51);"
        "_cffi_f_nu_ingest_avx2 (numbers_uring._native.c:1247);nu_ingest_avx2 (ingest_avx2.c:62);"
        "probe_block (ingest_ring.h:63);0x7f8cf7e45000 (libc.so.6) 11\n",
        "_run_code (<frozen runpy>:89);Intake.receive (numbers_uring/ingest/intake.py:52) 3\n",
        "_run_code (<frozen runpy>:90);Intake.receive (numbers_uring/ingest/intake.py:53) 4\n",
    ]
    outer = (python("_run_code (runpy)"), python("Intake.receive (intake.py)"))
    inner = ("_cffi_f_nu_ingest_avx2", "nu_ingest_avx2", "probe_block")
    assert py_spy_stacks(lines) == Counter(
        {(*outer, *map(native, inner), library("libc.so.6")): 11, outer: 7}
    )
