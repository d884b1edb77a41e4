"""The benchmark of waiting packets measures the server, and not its own sleep."""

import threading
import time
from pathlib import Path

from support.waiting import DEADLINE_S
from waiting_packets import Watch


def test_one_slow_pass_makes_no_later_one_look_slow(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    watch = Watch(log)
    slow_s, found_s = 0.4, []
    for size in range(1, 6):
        writer = threading.Timer(slow_s if size == 1 else 0.001, log.write_bytes, (b"x" * size,))
        begin_s = time.monotonic()
        writer.start()
        found_s.append(watch.wait(size, begin_s))
        writer.join(DEADLINE_S)
    assert found_s[0] is not None
    assert found_s[0] >= slow_s
    measured_s = [each for each in found_s[1:] if each is not None]
    assert measured_s
    assert max(measured_s) < slow_s / 2


def test_a_time_that_was_slept_through_is_unknown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    watch = Watch(log)
    writer = threading.Timer(0.1, log.write_bytes, (b"x",))
    begin_s = time.monotonic()
    writer.start()
    assert watch.wait(1, begin_s) is not None
    writer.join(DEADLINE_S)
    assert watch.wait(1, time.monotonic()) is None
    assert watch.wait(1, time.monotonic()) is not None
