"""numbers-uring check of a partition's log and index: what agrees, and what does not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from numbers_uring.cluster.index import RECORD_BYTES, Record
from numbers_uring.cluster.partitions import index_name, log_name, range_of
from support.logs import lines
from support.processes import assert_one_line_error, run_command

NUMBERS = [range_of(3, 8).first + 7 * number for number in range(100)]


def record(count: int, sequence: int, created_ns: int = 5) -> Record:
    return Record(
        partition=3,
        partitions=8,
        stream_created_ns=created_ns,
        sequence=sequence,
        log_bytes=10 * count,
        sum=sum(NUMBERS[:count]),
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of 100 numbers with three records beside it, which cover 90 of them."""
    log = tmp_path / log_name(3)
    log.write_bytes(lines(NUMBERS))
    write_index(log, record(0, 0), record(40, 2), record(90, 7))
    return log


def index_of(log: Path) -> Path:
    return log.with_name(index_name(3))


def write_index(log: Path, *records: Record) -> None:
    index_of(log).write_bytes(b"".join(each.pack() for each in records))


def test_a_log_and_its_index_are_checked_together_whichever_is_named(log: Path) -> None:
    for files in ([log], [index_of(log)], [log, index_of(log)]):
        done = run_command("check", *map(str, files))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            f"{log}: 100 numbers",
            f"{index_of(log)}: 3 records up to message 7 that the log agrees with",
            "1 file: 100 numbers, 100 distinct, clean",
        ]
    found = json.loads(run_command("check", "--json", str(log)).stdout)
    assert found["files"][0]["index"] == {
        "path": str(index_of(log)),
        "records": 3,
        "sequence": 7,
        "findings": [],
    }


def findings(log: Path) -> tuple[int, list[str]]:
    """Return how many records agree, and what is wrong, after a look at the exit code and text."""
    done = run_command("check", "--json", str(log))
    found = json.loads(done.stdout)
    index = found["files"][0]["index"]
    assert done.returncode == found["exit_code"] == 1
    text = run_command("check", str(log)).stdout
    assert text.endswith(", findings in 1 index\n")
    assert all(finding in text for finding in index["findings"])
    return index["records"], index["findings"]


def test_a_log_that_is_shorter_than_its_index_is_found(log: Path) -> None:
    log.write_bytes(lines(NUMBERS[:60]))
    assert findings(log) == (2, ["the log agrees up to byte 600 of 900, message 7"])


def test_a_log_with_another_number_than_its_index_is_found(log: Path) -> None:
    log.write_bytes(lines([*NUMBERS[:50], NUMBERS[50] + 1, *NUMBERS[51:]]))
    assert findings(log) == (2, ["the log has other numbers before byte 900, message 7"])
    # Behind the last record it is no business of the index.
    log.write_bytes(lines([*NUMBERS[:95], NUMBERS[95] + 1, *NUMBERS[96:]]))
    assert run_command("check", str(log)).returncode == 0


def test_a_damaged_record_is_found(log: Path) -> None:
    packed = index_of(log).read_bytes()
    index_of(log).write_bytes(packed[:-1])
    assert findings(log) == (2, [f"the record at byte {2 * RECORD_BYTES} has 79 bytes"])
    index_of(log).write_bytes(packed[:90] + b"x" + packed[91:])
    assert findings(log) == (1, [f"the record at byte {RECORD_BYTES} has a wrong checksum"])


def test_an_index_of_another_partition_is_found(log: Path) -> None:
    write_index(log, replace(record(0, 0), partition=4), replace(record(40, 1), partition=4))
    assert findings(log) == (0, ["it is of partition 4"])


def test_records_of_an_earlier_stream_are_not_compared(log: Path) -> None:
    old = replace(record(90, 9), sum=1)
    write_index(log, old, record(90, 2, created_ns=6), record(100, 3, created_ns=6))
    assert run_command("check", str(log)).returncode == 0


def test_an_index_without_its_log_and_one_that_cannot_be_read_are_one_line(log: Path) -> None:
    content = log.read_bytes()
    log.unlink()
    assert_one_line_error(run_command("check", str(index_of(log))), 3, f"cannot open {log}")
    log.write_bytes(content)
    index_of(log).unlink()
    index_of(log).mkdir()
    done = run_command("check", str(log))
    assert_one_line_error(done, 3, f"cannot read {index_of(log)}: it is not a regular file")


def test_a_repair_of_the_log_leaves_the_index_to_the_collector(log: Path) -> None:
    before = index_of(log).read_bytes()
    log.write_bytes(lines(NUMBERS) + b"12")
    assert run_command("check", str(log)).returncode == 1
    assert run_command("check", "--repair", str(log)).returncode == 0
    assert log.read_bytes() == lines(NUMBERS)
    log.write_bytes(lines(NUMBERS[:60]))
    assert run_command("check", "--repair", str(log)).returncode == 1
    assert index_of(log).read_bytes() == before


def test_a_name_alone_makes_no_index(tmp_path: Path) -> None:
    for name in ("numbers.log", "numbers.x.log", "numbers.3.log.1"):
        log = tmp_path / name
        log.write_bytes(lines(NUMBERS))
        (tmp_path / "numbers.3.index").write_bytes(b"no index")
        assert run_command("check", str(log)).returncode == 0
