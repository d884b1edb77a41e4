"""What copies of a partition mean together: differences, who has what, and what can be trimmed."""

import re
from dataclasses import replace

import pytest

from numbers_uring.cluster.checkpoints import Point
from numbers_uring.cluster.comparison import Floor, disagreements, passed_by, trim_floor
from numbers_uring.cluster.values import Copy, Settings

STREAM_NS = 1_700_000_000_000_000_000
SETTINGS = Settings(partitions=8, copies=2, keep_s=1.0)


def copy_at(name: str, sequence: int, *, altered_from: int = 1 << 60) -> Copy:
    """Return a copy of partition 3 whose messages have a number each."""
    points = tuple(
        Point(each, each, 7 * each + (each >= altered_from)) for each in range(1, sequence + 1)
    )
    return Copy(
        partition=3,
        copy=name,
        run=f"run-{name}",
        host=f"host-{name}",
        log=f"/logs-{name}/numbers.3.log",
        place=name,
        state="collecting",
        stream_created_ns=STREAM_NS,
        sequence=sequence,
        message_time_ns=STREAM_NS + sequence,
        log_bytes=10 * sequence,
        count=sequence,
        sum=7 * sequence,
        points=points,
    )


def test_copies_that_agree_at_all_they_share_do_not_differ() -> None:
    assert disagreements([copy_at("a", 5), copy_at("b", 9), copy_at("c", 0)]) == []


def test_each_pair_that_differs_is_named_with_the_messages_between_which_it_began() -> None:
    found = disagreements([copy_at("a", 9), copy_at("b", 9, altered_from=4), copy_at("c", 9)])
    assert [(each.one.copy, each.other.copy) for each in found] == [("a", "b"), ("b", "c")]
    assert found[0].text == (
        "partition 3: copy a (/logs-a/numbers.3.log on host-a) and copy b (/logs-b/numbers.3.log "
        "on host-b) differ: equal up to message 3 of the stream numbers-3, different at message 4"
    )


def test_copies_of_something_else_do_not_differ() -> None:
    altered = copy_at("b", 9, altered_from=1)
    for stranger in (replace(altered, partition=4), replace(altered, stream_created_ns=1)):
        assert disagreements([copy_at("a", 9), stranger]) == []


def test_the_copy_that_has_most_of_what_is_missing_is_the_one_to_copy() -> None:
    copies = [copy_at("a", 5), copy_at("b", 9), copy_at("c", 8), copy_at("d", 5)]
    assert passed_by(copies, copies[0], 6) == copies[1]


@pytest.mark.parametrize(
    "other",
    [
        copy_at("b", 5),
        copy_at("a", 9),
        copy_at("b", 9, altered_from=4),
        replace(copy_at("b", 9), partition=4),
        replace(copy_at("b", 9), stream_created_ns=1),
    ],
    ids=["behind", "itself", "differs", "of another partition", "of another stream"],
)
def test_a_copy_that_does_not_help_is_not_named(other: Copy) -> None:
    assert passed_by([other], copy_at("a", 5), 6) is None


def test_a_stream_is_needed_from_the_position_of_its_slowest_copy_on() -> None:
    copies = [copy_at("a", 9), copy_at("b", 4), copy_at("c", 7)]
    for first in (1, 4, 5):
        assert trim_floor(copies, SETTINGS, STREAM_NS, first) == Floor(4, STREAM_NS + 4, 4)


def test_a_copy_that_lacks_what_is_gone_already_holds_nothing_unless_it_is_starting() -> None:
    copies = [copy_at("a", 9), copy_at("b", 4), copy_at("c", 7)]
    assert trim_floor(copies, SETTINGS, STREAM_NS, 6) == Floor(7, STREAM_NS + 7, 7)
    starting = [copies[0], replace(copies[1], state="starting"), copies[2]]
    assert trim_floor(starting, SETTINGS, STREAM_NS, 6) == Floor(4, STREAM_NS + 4, 4)


@pytest.mark.parametrize(("shared", "up_to"), [((), 0), ((2,), 2), ((2, 3), 3), ((2, 3, 4), 4)])
def test_a_stream_is_needed_from_the_last_message_on_up_to_which_all_pairs_were_compared(
    shared: tuple[int, ...], up_to: int
) -> None:
    slow = copy_at("b", 4)
    slow = replace(slow, points=tuple(each for each in slow.points if each.sequence in shared))
    # The others share more with each other.
    copies = [copy_at("a", 9), slow, copy_at("c", 7)]
    assert trim_floor(copies, SETTINGS, STREAM_NS, 1) == Floor(4, STREAM_NS + 4, up_to)


@pytest.mark.parametrize(
    ("copies", "settings", "why"),
    [
        (
            [copy_at("a", 9), copy_at("b", 9)],
            Settings(partitions=8, keep_s=1.0),
            "was not asked for",
        ),
        ([copy_at("a", 9), copy_at("b", 9)], Settings(partitions=8, copies=2), "was not asked for"),
        ([], SETTINGS, "0 of 2 copies can go on"),
        ([copy_at("a", 9)], SETTINGS, "1 of 2 copies can go on"),
        ([copy_at("a", 9), copy_at("b", 0)], SETTINGS, "1 of 2 copies can go on"),
        ([copy_at("a", 9), copy_at("b", 9, altered_from=9)], SETTINGS, "differ"),
        (
            [copy_at("a", 9), copy_at("b", 9), copy_at("c", 9, altered_from=1)],
            SETTINGS,
            "differ",
        ),
        (
            [copy_at("a", 9), copy_at("b", 9), replace(copy_at("c", 9), stream_created_ns=1)],
            SETTINGS,
            r"copy c \(.*\) is of another stream",
        ),
    ],
)
def test_a_stream_is_not_trimmed_and_the_reason_is_named(
    copies: list[Copy], settings: Settings, why: str
) -> None:
    found = trim_floor(copies, settings, STREAM_NS, 3)
    assert isinstance(found, str)
    assert re.search(why, found), found
