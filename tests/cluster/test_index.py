"""The index of a log: records, what is read of damaged ones, and what stays of many."""

import os
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbers_uring.cluster.index import (
    RECORD_BYTES,
    Record,
    Records,
    read_index,
    read_records,
    thinned,
)
from numbers_uring.limits import INDEX_LOG_BYTES_PER_RECORD, INDEX_RECORDS_KEPT, PARTITIONS_MAX

BASE = Record(partition=3, partitions=7, stream_created_ns=10**18)

u64 = st.integers(0, 2**64 - 1)
any_record = st.builds(
    lambda partitions, partition, count, **others: Record(
        partitions=partitions, partition=partition % partitions, log_bytes=10 * count, **others
    ),
    st.integers(1, PARTITIONS_MAX),
    st.integers(0, PARTITIONS_MAX),
    st.integers(0, (2**64 - 1) // 10),
    stream_created_ns=u64,
    sequence=u64,
    message_time_ns=u64,
    sum=u64,
)


def growing(count: int, *, step_bytes: int = 10, created_ns: int = 10**18) -> list[Record]:
    return [
        replace(
            BASE,
            stream_created_ns=created_ns,
            sequence=5 * at,
            message_time_ns=at,
            log_bytes=step_bytes * at,
            sum=at * at,
        )
        for at in range(count)
    ]


def packed(records: list[Record]) -> bytes:
    return b"".join(record.pack() for record in records)


@given(any_record)
def test_a_record_is_the_same_after_it_was_packed(record: Record) -> None:
    assert len(record.pack()) == RECORD_BYTES == 80
    assert Record.unpack(record.pack()) == record


def test_a_record_is_packed_as_documented() -> None:
    record = Record(
        partition=1,
        partitions=2,
        stream_created_ns=3,
        sequence=4,
        message_time_ns=5,
        log_bytes=60,
        sum=7,
    )
    expected = "4e55490101000200030000000000000004000000000000000500000000000000"
    expected += "3c000000000000000600000000000000070000000000000000000000" + "00" * 16
    assert record.pack()[:-4].hex() == expected


def test_no_bit_of_a_record_can_flip_unnoticed() -> None:
    good = growing(3)[2].pack()
    for bit in range(8 * RECORD_BYTES):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="checksum"):
            Record.unpack(bad)


def test_what_is_no_record_is_named() -> None:
    good = BASE.pack()
    for bad, words in (
        (good[:-1], "79 bytes"),
        (b"", "0 bytes"),
        (good[:-4] + b"\0\0\0\0", "a wrong checksum"),
        (_sealed(b"NUI\2" + good[4:]), "another version"),
        (replace(BASE, partition=7).pack(), "values that no collector writes"),
        (replace(BASE, partitions=PARTITIONS_MAX + 1).pack(), "values that no collector writes"),
    ):
        with pytest.raises(ValueError, match=words):
            Record.unpack(bad)


def _sealed(packed: bytes) -> bytes:
    return packed[:-4] + zlib.crc32(packed[:-4]).to_bytes(4, "little")


def test_an_index_that_was_torn_anywhere_keeps_its_whole_records() -> None:
    records = growing(4)
    whole = packed(records)
    for size in range(len(whole) + 1):
        reading = read_records(whole[:size])
        assert list(reading.records) == records[: size // RECORD_BYTES]
        assert (reading.damage is None) == (size % RECORD_BYTES == 0)


@given(st.integers(0, 8 * 4 * RECORD_BYTES - 1))
def test_no_record_is_believed_behind_a_flipped_bit(bit: int) -> None:
    records = growing(4)
    bad = bytearray(packed(records))
    bad[bit // 8] ^= 1 << bit % 8
    reading = read_records(bytes(bad))
    place = bit // 8 // RECORD_BYTES
    assert list(reading.records) == records[:place]
    assert reading.damage is not None
    assert f"record at byte {place * RECORD_BYTES}" in reading.damage


@pytest.mark.parametrize(
    "second",
    [
        replace(growing(3)[2], partition=4),
        replace(growing(3)[2], partitions=8),
        growing(3)[1],
        growing(2)[0],
        replace(growing(3)[2], log_bytes=0),
    ],
    ids=["other partition", "other number", "same", "earlier", "shorter log"],
)
def test_a_record_that_cannot_follow_is_damage(second: Record) -> None:
    reading = read_records(packed([growing(2)[1], second]))
    assert list(reading.records) == [growing(2)[1]]
    assert "do not follow" in (reading.damage or "")


def test_the_records_of_the_last_stream_are_told_from_those_before() -> None:
    old, new = growing(3), growing(2, created_ns=2 * 10**18)
    records = read_records(packed([*old, *new])).records
    assert records.of_last_stream() == new
    assert read_records(packed(old)).records.of_last_stream() == old
    assert Records().of_last_stream() == []


def test_a_missing_index_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_index(tmp_path / "missing")


def of(records: list[Record]) -> Records:
    return read_records(packed(records)).records


def test_a_short_index_is_not_thinned() -> None:
    records = growing(INDEX_RECORDS_KEPT)
    assert list(thinned(of(records))) == records


def test_the_newest_records_stay_and_of_the_others_one_for_some_bytes_of_the_log() -> None:
    step_bytes = INDEX_LOG_BYTES_PER_RECORD // 4 // 10 * 10
    records = growing(INDEX_RECORDS_KEPT + 100, step_bytes=step_bytes)
    kept = list(thinned(of(records)))
    assert kept[-INDEX_RECORDS_KEPT:] == records[-INDEX_RECORDS_KEPT:]
    assert kept[0] == records[0]
    chunks = [record.log_bytes // INDEX_LOG_BYTES_PER_RECORD for record in kept]
    older = chunks[:-INDEX_RECORDS_KEPT]
    assert older == sorted(set(older)) == list(range(len(older)))
    assert list(thinned(of(kept))) == kept


def test_bases_and_what_a_copy_is_compared_by_stay() -> None:
    records = [*growing(50), *growing(INDEX_RECORDS_KEPT + 50, created_ns=2 * 10**18)]
    kept = list(thinned(of(records), lambda sequences: {sequences[0], sequences[7]}))
    new = records[50:]
    assert kept == [records[0], new[0], new[7], *new[-INDEX_RECORDS_KEPT:]]


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a device"])
def test_what_is_no_file_is_neither_waited_for_nor_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "numbers.3.index"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="it is not a regular file"):
        read_index(path)
