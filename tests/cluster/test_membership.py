"""How old messages are, as an index tells it: what trimming keeps by."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from numbers_uring.cluster.collector.lookup import StreamState
from numbers_uring.cluster.collector.membership import Membership, record_before
from numbers_uring.cluster.comparison import Floor
from numbers_uring.cluster.index import Record, Records

STREAM_NS, EARLIER_NS = 2_000, 1_000


def records(*times: int, created_ns: int = STREAM_NS) -> list[Record]:
    return [
        Record(
            partition=0,
            partitions=1,
            stream_created_ns=created_ns,
            sequence=place + 1,
            message_time_ns=time_ns,
        )
        for place, time_ns in enumerate(times)
    ]


def index_of(*parts: list[Record]) -> Records:
    index = Records()
    for record in itertools.chain(*parts):
        index.append(record)
    return index


@settings(deadline=None)
@given(st.lists(st.integers(3_000, 3_100)), st.integers(2_990, 3_110))
def test_the_last_record_that_is_old_enough_is_found(times: list[int], limit_ns: int) -> None:
    times.sort()
    old = [place + 1 for place, time_ns in enumerate(times) if time_ns <= limit_ns]
    found = record_before(index_of(records(*times)), limit_ns)
    assert found == (Floor(old[-1], times[len(old) - 1], old[-1]) if old else None)


def test_records_of_an_earlier_stream_are_not_old_messages_of_this_one() -> None:
    earlier = records(1_500, 1_600, created_ns=EARLIER_NS)
    assert record_before(index_of(earlier, records(2_500)), 2_400) is None
    assert record_before(index_of(earlier, records(2_500)), 2_500) == Floor(1, 2_500, 1)


def test_a_record_without_a_time_is_not_old_enough_by_that() -> None:
    """A base has none, nor has a message that was skipped."""
    assert record_before(index_of(records(0)), 3_000) is None
    found = record_before(index_of(records(0, 2_500, 0, 2_600)), 2_550)
    assert found in {None, Floor(2, 2_500, 2)}
    assert record_before(index_of(records(2_500, 0)), 2_550) == Floor(1, 2_500, 1)


def test_an_empty_index_has_no_record() -> None:
    assert record_before(Records(), 3_000) is None


def test_trimming_looks_at_the_index_as_it_is_now(tmp_path: Path) -> None:
    files = SimpleNamespace(log_path=tmp_path / "numbers.0.log", records=Records())
    membership = Membership(
        cast("Any", SimpleNamespace(_nc=None)),
        cast("Any", [SimpleNamespace(partition=0, files=files)]),
        [StreamState(*[STREAM_NS] * len(StreamState._fields))],
        tmp_path,
        say=print,
        inform=print,
    )
    (source,) = membership.trimmer.sources
    assert source.record_before(2_550) is None
    files.records = index_of(records(2_500, 2_600))
    assert source.record_before(2_550) == Floor(1, 2_500, 1)
