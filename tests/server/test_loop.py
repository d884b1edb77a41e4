"""The loop, driven by a scripted reactor without sockets."""

import errno
import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from numbers_uring.addresses import Peer
from numbers_uring.config import Fsync, Terminate
from numbers_uring.errors import BackendError, SinkError
from numbers_uring.limits import CHUNK_BYTES_MAX, NO_SPACE_RETRY_S
from numbers_uring.reactor.contract import End
from numbers_uring.server import loop
from numbers_uring.server.server import Phase
from support.logs import lines
from support.scripted_reactor import Run, Step


@pytest.fixture(autouse=True)
def _waits_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a pass in which nothing comes last until something is due, in one wait."""
    monkeypatch.setattr(loop, "WAIT_S_MAX", 1e9)


def report(unique: int, duplicate: int, total: int) -> str:
    return f"Received {unique} unique numbers, {duplicate} duplicates. Unique total: {total}"


def test_everything_taken_in_is_on_file_before_the_server_waits_again(tmp_path: Path) -> None:
    run = Run(tmp_path, [[0, (0, lines([1]))], [(0, lines([2, 1]))], [(0, b"terminate\n")]])
    seen: list[bytes] = []
    run.reactor.on_wait = lambda: seen.append(run.file)
    run.server.run()
    assert seen == [b"", lines([1]), lines([1, 2])]


def test_terminate_stops_at_once_and_the_drain_is_taken_in(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        [[0, 1, (0, lines([1]) + b"terminate\n" + lines([2])), (1, lines([3]))]],
        [(1, lines([4, 1])), (1, End.EOF)],
    )
    run.server.run()
    assert run.file == lines([1, 4])
    assert run.reports == [(report(2, 1, 2), True)]
    assert run.reactor.disconnected == [0]
    assert run.server.statistics.ended == {"stop": 1, "eof": 1}
    assert run.server.stopped_by == "terminate"


def test_a_signal_stops_the_server(tmp_path: Path) -> None:
    passes: list[list[Step]] = []
    run = Run(tmp_path, passes, [(0, lines([3]))])
    passes.append([0, (0, lines([1])), run.stop_now, (0, lines([2])), (0, lines([9]))])
    run.server.run()
    assert run.file == lines([1, 2, 3])
    assert run.server.stopped_by == "SIGTERM"


def test_an_invalid_line_ends_its_connection_and_no_other(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        [
            [0, 1, (0, lines([1]) + b"bad\n" + lines([2])), (1, lines([3]))],
            [(0, lines([9])), (1, lines([4]) + b"terminate\n")],
        ],
    )
    run.server.run()
    assert run.file == lines([1, 3, 4])
    assert run.reactor.disconnected == [0, 1]
    assert run.server.statistics.ended == {"invalid": 1, "stop": 1}


def test_each_end_is_counted_by_its_reason(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        [
            [0, 1, 2, (0, lines([1])), (1, b"12345"), (2, b"terminate")],
            [(0, End.EOF), (1, End.EOF), (2, End.RESET)],
            [0, 1, (0, End.RESET), (1, b"terminate\n")],
        ],
    )
    run.server.run()
    assert run.file == lines([1])
    assert run.server.statistics.ended == {"eof": 1, "incomplete": 2, "reset": 1, "stop": 1}
    assert run.server.statistics.accepted == 5
    assert run.server.statistics.received_bytes == len(lines([1]) + b"12345" + b"terminate") + 10


def test_reports_come_on_time_and_add_up(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        [[0, (0, lines([1, 2, 1]))], [], [(0, lines([3]))], [], [(0, b"terminate\n")]],
    )
    run.server.run()
    assert run.reports == [
        (report(2, 1, 2), False),
        (report(1, 0, 3), False),
        (report(0, 0, 3), True),
    ]
    assert run.reactor.waits == [10, 10, 10, 10, 10]


def test_reports_come_under_full_load(tmp_path: Path) -> None:
    passes: list[list[Step]] = [[0]]
    run = Run(tmp_path, passes)
    passes.extend([run.stall(4), (0, lines([number]))] for number in range(10))
    passes.append([(0, b"terminate\n")])
    run.server.run()
    assert [line for line, _ in run.reports] == [
        report(3, 0, 3),
        report(2, 0, 5),
        report(3, 0, 8),
        report(2, 0, 10),
        report(0, 0, 10),
    ]


def test_after_a_stall_there_is_one_report_and_the_grid_is_kept(tmp_path: Path) -> None:
    passes: list[list[Step]] = [[0, (0, lines([1]))]]
    run = Run(tmp_path, passes)
    passes += [[run.stall(47), (0, lines([2]))], [(0, lines([3]))], [], [(0, b"terminate\n")]]
    run.server.run()
    assert [line for line, _ in run.reports] == [
        report(2, 0, 2),
        report(1, 0, 3),
        report(0, 0, 3),
    ]
    assert run.reactor.waits[2:] == [3, 3, 10]


def test_a_report_that_cannot_be_written_is_folded_into_the_next(tmp_path: Path) -> None:
    passes: list[list[Step]] = [[0, (0, lines([1, 1]))]]
    run = Run(tmp_path, passes)
    run.reader_is_there = False

    def reader_comes() -> None:
        run.reader_is_there = True

    passes += [[], [(0, lines([2]))], [], [reader_comes, (0, lines([3]))], []]
    passes += [[(0, b"terminate\n")]]
    run.server.run()
    assert [line for line, _ in run.reports] == [report(3, 1, 3), report(0, 0, 3)]
    assert run.server.statistics.reports_dropped == 2


def test_an_idle_connection_is_disconnected_a_working_one_is_not(tmp_path: Path) -> None:
    passes: list[list[Step]] = [[0, 1]]
    run = Run(tmp_path, passes, idle_timeout_s=5)
    passes += [
        [run.stall(3), (0, lines([1])), (1, b"1")],
        [],  # until 5
        [(0, b"000")],
        [],  # until 8
        [2, (2, b"terminate\n")],
    ]
    run.server.run()
    assert run.reactor.disconnected == [1, 0, 2]
    assert run.server.statistics.ended["idle"] == 2


@pytest.mark.parametrize("late", [False, True], ids=["in this pass", "in the next one"])
@pytest.mark.parametrize(
    ("piece", "reason"), [(b"x", "invalid"), (lines([1]) + b"x", "invalid"), (b"1", "idle")]
)
def test_a_client_is_disconnected_once_and_for_the_first_reason(
    tmp_path: Path, piece: bytes, reason: str, late: bool
) -> None:
    passes: list[list[Step]] = [[0]]
    run = Run(tmp_path, passes, idle_timeout_s=5)
    run.reactor.closes_late = late
    passes += [[run.stall(5), (0, piece)], [1, (1, b"terminate\n")]]
    run.server.run()
    assert run.reactor.disconnected == [0, 1]
    assert run.server.statistics.ended == Counter({reason: 1, "stop": 1})


class Disk:
    """A stand-in for os.write on a disk that has room for so many bytes."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def __call__(self, fd: int, data: memoryview) -> int:
        if self.free_bytes == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = os.write(fd, data[: self.free_bytes])
        self.free_bytes -= size
        return size


def test_on_a_full_disk_clients_are_held_back_and_served_later(tmp_path: Path) -> None:
    disk = Disk(25)
    passes: list[list[Step]] = [[0, (0, lines(range(5)))], [(0, lines([9]) + b"terminate\n")]]
    run = Run(tmp_path, passes, calls={"write": disk})
    contents: list[bytes] = []
    held: list[tuple[bool, float]] = []

    def look() -> None:
        held.append((run.server.held_back, run.server.held_back_s))
        contents.append(run.file)
        assert len(run.reactor.waits) == 1, "something was received while there is no space"
        if len(run.reactor.slept) == 3:
            disk.free_bytes = 1000

    run.reactor.on_sleep = look
    run.server.run()
    assert run.reactor.slept == [NO_SPACE_RETRY_S] * 3
    assert held == [(True, NO_SPACE_RETRY_S * passed) for passed in (1, 2, 3)]
    assert (run.server.held_back, run.server.held_back_s) == (False, 3 * NO_SPACE_RETRY_S)
    assert contents == [lines([0, 1])] * 3
    assert run.file == lines([*range(5), 9])
    assert [text.split(":")[0].split(" the log")[0] for text in run.said] == [
        "no space for",
        "there is space for",
    ]


def test_reports_go_on_while_clients_are_held_back(tmp_path: Path) -> None:
    disk = Disk(0)
    passes: list[list[Step]] = [[0, (0, lines(range(5)))], [(0, b"terminate\n")]]
    run = Run(tmp_path, passes, calls={"write": disk})

    def make_room_later() -> None:
        if run.reactor.now_s >= 1021:
            disk.free_bytes = 1000

    run.reactor.on_sleep = make_room_later
    run.server.run()
    assert [line for line, _ in run.reports] == [
        report(5, 0, 5),
        report(0, 0, 5),
        report(0, 0, 5),
    ]


def test_a_stop_while_the_disk_is_full_says_what_is_lost(tmp_path: Path) -> None:
    passes: list[list[Step]] = [[0, (0, lines(range(5)))]]
    run = Run(tmp_path, passes, [(0, lines([77]))], calls={"write": Disk(25)})
    run.reactor.on_sleep = run.stop_now
    with pytest.raises(SinkError, match=r"no space .* 3 counted numbers are lost"):
        run.server.run()
    assert not run.reactor.drained
    assert run.file == lines([0, 1])
    assert run.reports == [(report(5, 0, 5), True)]


def test_a_disk_that_has_space_soon_delays_a_stop_and_loses_nothing(tmp_path: Path) -> None:
    disk = Disk(25)
    drain: list[Step] = [(1, lines(range(5, 9)))]
    run = Run(
        tmp_path, [[0, 1, (0, lines(range(5)) + b"terminate\n")]], drain, calls={"write": disk}
    )

    def make_room() -> None:
        disk.free_bytes = 1000

    run.reactor.on_sleep = make_room
    run.server.run()
    assert run.file == lines(range(9))


def test_a_disk_that_fills_during_the_drain_is_said(tmp_path: Path) -> None:
    run = Run(
        tmp_path, [[0, 1, (0, b"terminate\n")]], [(1, lines(range(10)))], calls={"write": Disk(55)}
    )
    with pytest.raises(SinkError, match="5 counted numbers are lost"):
        run.server.run()
    assert run.file == lines(range(5))


def test_a_backend_that_fails_leaves_a_complete_log_and_a_last_report(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    run = Run(tmp_path, [[0, (0, lines(range(7))), fail]])
    with pytest.raises(BackendError, match="Cannot allocate memory"):
        run.server.run()
    assert run.file == lines(range(7))
    assert run.reports == [(report(7, 0, 7), True)]


def test_a_failed_write_is_final_and_says_what_is_lost(tmp_path: Path) -> None:
    def refuse(_fd: int, _data: memoryview) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run = Run(tmp_path, [[0, (0, lines(range(7)))]], calls={"write": refuse})
    with pytest.raises(SinkError, match="7 counted numbers are lost"):
        run.server.run()
    assert run.reports == [(report(7, 0, 7), True)]


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
def test_a_failed_sync_is_final(tmp_path: Path, fsync: Fsync) -> None:
    def refuse(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run = Run(
        tmp_path,
        [[0, (0, lines(range(7)) + b"terminate\n")]],
        fsync=fsync,
        calls={"fdatasync": refuse},
    )
    with pytest.raises(SinkError, match="sync"):
        run.server.run()
    assert run.file == lines(range(7))
    run.log.close()


def test_a_rotation_leaves_what_came_before_in_the_old_file(tmp_path: Path) -> None:
    passes: list[list[Step]] = []
    run = Run(tmp_path, passes)
    old = run.path.with_suffix(".1")

    def rotate() -> None:
        run.path.rename(old)
        run.requests.reopen = True

    passes += [[0, (0, lines([1])), rotate, (0, lines([2]))], [(0, lines([3, 1]))]]
    passes += [[(0, b"terminate\n")]]
    run.server.run()
    assert old.read_bytes() == lines([1, 2])
    assert run.file == lines([3])


def test_times_in_which_clients_are_held_back_add_up(tmp_path: Path) -> None:
    disk = Disk(0)
    passes: list[list[Step]] = [[0, (0, lines([1, 2]))]]
    run = Run(tmp_path, passes, calls={"write": disk})
    passes += [[run.stall(5), (0, lines([3]))], [(0, b"terminate\n")]]

    def make_room_for_one_batch() -> None:
        disk.free_bytes = 20 if len(run.reactor.slept) == 1 else 10

    run.reactor.on_sleep = make_room_for_one_batch
    run.server.run()
    assert run.file == lines([1, 2, 3])
    assert run.server.held_back_s == 2 * NO_SPACE_RETRY_S


def test_a_rotation_to_a_disk_with_space_ends_the_holding_back_at_once(tmp_path: Path) -> None:
    disk = Disk(25)
    run = Run(tmp_path, [[0, (0, lines(range(5)))], [(0, b"terminate\n")]], calls={"write": disk})
    old = run.path.with_suffix(".1")

    def rotate() -> None:
        run.path.rename(old)
        disk.free_bytes = 1000
        run.requests.reopen = True

    run.reactor.on_sleep = rotate
    run.server.run()
    assert len(run.reactor.slept) == 1
    assert old.read_bytes() + run.file == lines(range(5))


def test_more_new_lines_than_a_batch_holds_are_all_on_file(tmp_path: Path) -> None:
    count = CHUNK_BYTES_MAX // 10
    pieces = [lines(range(i * count, (i + 1) * count)) for i in range(5)]
    run = Run(tmp_path, [[0, *((0, piece) for piece in pieces)], [(0, b"terminate\n")]])
    run.server.run()
    assert run.file == b"".join(pieces)


# Phases.


def test_a_run_is_served_and_stopped_and_in_between_perhaps_held_back(tmp_path: Path) -> None:
    disk = Disk(25)
    passes: list[list[Step]] = [[0, (0, lines(range(5)))], [(0, lines([9]) + b"terminate\n")]]
    run = Run(tmp_path, passes, [(0, lines([10]))], calls={"write": disk})
    seen: list[list[Phase]] = []

    def make_room() -> None:
        seen.append(list(run.phases))
        disk.free_bytes = 1000

    run.reactor.on_sleep = make_room
    run.server.run()
    assert seen == [[Phase.SERVING, Phase.HELD_BACK]]
    assert run.phases == [Phase.SERVING, Phase.HELD_BACK, Phase.SERVING, Phase.STOPPING]


def test_a_reload_begins_before_the_log_is_reopened_and_ends_after_it(tmp_path: Path) -> None:
    entered: list[tuple[Phase, bool]] = []

    def rotate() -> None:
        run.path.rename(run.path.with_suffix(".1"))
        run.requests.reopen = True

    passes: list[list[Step]] = [[0, (0, lines([1])), rotate], [(0, b"terminate\n")]]
    run: Run = Run(
        tmp_path, passes, on_phase=lambda phase: entered.append((phase, run.path.exists()))
    )
    run.server.run()
    assert entered == [
        (Phase.SERVING, True),
        (Phase.RELOADING, False),
        (Phase.SERVING, True),
        (Phase.STOPPING, True),
    ]


def test_a_reload_without_space_leaves_the_clients_held_back(tmp_path: Path) -> None:
    run = Run(tmp_path, [[0, (0, lines(range(5)))]], calls={"write": Disk(25)})

    def reload_then_stop() -> None:
        run.requests.reopen = len(run.reactor.slept) == 1
        if not run.requests.reopen:
            run.stop_now()

    run.reactor.on_sleep = reload_then_stop
    with pytest.raises(SinkError, match="no space"):
        run.server.run()
    assert run.phases == [
        *(Phase.SERVING, Phase.HELD_BACK),
        *(Phase.RELOADING, Phase.HELD_BACK),
        Phase.STOPPING,
    ]


def test_whatever_ends_the_run_is_a_stop(tmp_path: Path) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run = Run(tmp_path, [[0, (0, lines([1]))]], calls={"write": fail})
    with pytest.raises(SinkError):
        run.server.run()
    assert run.phases == [Phase.SERVING, Phase.STOPPING]


# Signs of life.


def test_heartbeats_are_in_time_while_nothing_comes_and_while_much_does(tmp_path: Path) -> None:
    at_s: list[float] = []
    passes: list[list[Step]] = [[], [], [0]]
    run: Run = Run(
        tmp_path,
        passes,
        heartbeat=lambda: at_s.append(run.reactor.now_s),
        heartbeat_interval_s=2.0,
    )
    passes += [[run.stall(0.5), (0, lines([number]))] for number in range(8)]
    passes.append([(0, b"terminate\n")])
    run.server.run()
    assert at_s == [1002.0, 1004.0, 1006.0, 1008.0]
    assert max(run.reactor.waits) == 2.0


def test_the_loop_sends_heartbeats_while_clients_are_held_back(tmp_path: Path) -> None:
    at_s: list[float] = []
    disk = Disk(0)
    passes: list[list[Step]] = [[0, (0, lines(range(5)))], [(0, b"terminate\n")]]
    run: Run = Run(
        tmp_path,
        passes,
        calls={"write": disk},
        heartbeat=lambda: at_s.append(run.reactor.now_s),
        heartbeat_interval_s=0.25,
    )

    def make_room_later() -> None:
        if run.reactor.now_s >= 1003:
            disk.free_bytes = 1000

    run.reactor.on_sleep = make_room_later
    run.server.run()
    assert max(later - sooner for sooner, later in pairwise([1000.0, *at_s])) <= 0.25


def test_a_loop_that_is_stuck_sends_no_heartbeat(tmp_path: Path) -> None:
    at_s: list[float] = []

    def stuck(fd: int, data: memoryview) -> int:
        run.reactor.now_s += 60
        assert not at_s
        return os.write(fd, data)

    run: Run = Run(
        tmp_path,
        [[0, (0, lines([1]))], [(0, b"terminate\n")]],
        calls={"write": stuck},
        heartbeat=lambda: at_s.append(run.reactor.now_s),
        heartbeat_interval_s=1.0,
    )
    run.server.run()
    assert at_s == [1060.0]


# Who may stop it.


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_where_only_local_clients_may_stop_it_another_ones_terminate_is_an_invalid_line(
    tmp_path: Path, host: str
) -> None:
    run = Run(
        tmp_path,
        [
            [0, (0, lines([1]) + b"terminate\n" + lines([2]))],
            [1, (1, lines([3]) + b"terminate\n")],
        ],
        terminate=Terminate.LOCAL,
    )
    run.reactor.peers[0] = Peer(host, 1)
    run.server.run()
    assert run.file == lines([1, 3])
    assert run.server.statistics.ended == {"invalid": 1, "stop": 1}
    assert run.server.stopped_by == "terminate"


# Several requests at once.


def test_a_stop_that_comes_beside_another_request_is_not_slept_over(tmp_path: Path) -> None:
    # Taking the one quiets the descriptor that tells of both.
    for name in ("take_reopen", "take_report"):
        folder = tmp_path / name
        folder.mkdir()
        run = Run(folder, [])
        take = getattr(run.requests, name)

        def take_and_stop(run: Run = run, take: Callable[[], bool] = take) -> bool:
            run.stop_now()
            return take()

        setattr(run.requests, name, take_and_stop)
        run.server.run()
        assert run.reactor.waits == []


def slow_syncs(run: list[Run], seconds: float, sizes: list[int]) -> Callable[[int], None]:
    def sync(fd: int) -> None:
        run[0].reactor.now_s += seconds
        sizes.append(os.fstat(fd).st_size)

    return sync


def test_before_an_append_that_takes_long_all_that_is_there_is_taken_in(tmp_path: Path) -> None:
    """What the first sync keeps waiting is in the second one, however many passes that takes."""
    run: list[Run] = []
    sizes: list[int] = []
    passes: list[list[Step]] = [[0], [(0, lines([0]))]]
    passes += [[(0, lines([number]))] for number in range(1, 8)]
    passes += [[], [(0, b"terminate\n")], []]
    calls = {"fdatasync": slow_syncs(run, 0.02, sizes)}
    run.append(Run(tmp_path, passes, fsync=Fsync.ALWAYS, calls=calls))
    run[0].server.run()
    assert sizes[:2] == [10, 80]


def test_taking_in_before_a_slow_append_is_bounded_in_time(tmp_path: Path) -> None:
    run: list[Run] = []
    sizes: list[int] = []
    passes: list[list[Step]] = [[0], [(0, lines([0]))]]
    calls = {"fdatasync": slow_syncs(run, 0.02, sizes)}
    run.append(Run(tmp_path, passes, fsync=Fsync.ALWAYS, calls=calls))
    passes += [[run[0].stall(0.006), (0, lines([number]))] for number in range(1, 9)]
    passes += [[(0, b"terminate\n")]]
    run[0].server.run()
    # A pass takes 6 ms, and the last append took 20: four more come behind the first.
    assert sizes[:2] == [10, 60]


def test_a_quick_append_follows_each_pass(tmp_path: Path) -> None:
    run: list[Run] = []
    sizes: list[int] = []
    passes: list[list[Step]] = [[0]]
    passes += [[(0, lines([number]))] for number in range(4)]
    passes += [[(0, b"terminate\n")]]
    calls = {"fdatasync": slow_syncs(run, 0.001, sizes)}
    run.append(Run(tmp_path, passes, fsync=Fsync.ALWAYS, calls=calls))
    run[0].server.run()
    assert sizes[:4] == [10, 20, 30, 40]
