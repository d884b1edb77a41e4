"""The core without I/O, on each kernel."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbers_uring.ingest.intake import Intake
from numbers_uring.ingest.kernel import Kernel, PythonKernel, Verdict
from numbers_uring.ingest.native import variants
from numbers_uring.limits import BITMAP_BYTES, CHUNK_BYTES_MAX, HEADROOM_BYTES
from support.logs import lines

KERNELS: list[Kernel] = [PythonKernel(), variants()[0]]
CONNECTIONS = 3


class Driver:
    """An intake with its arena, fed with pieces of bytes as a reactor would."""

    def __init__(self, kernel: Kernel) -> None:
        self.arena = bytearray(HEADROOM_BYTES + CHUNK_BYTES_MAX)
        self.intake = Intake(
            kernel,
            self.arena,
            bytearray(BITMAP_BYTES),
            connections_max=CONNECTIONS,
            batch_bytes=CHUNK_BYTES_MAX,
        )
        for connection in range(CONNECTIONS):
            self.intake.open(connection)

    def receive(self, connection: int, piece: bytes) -> int:
        # What an earlier piece left in the headroom must not matter.
        self.arena[:HEADROOM_BYTES] = b"9" * HEADROOM_BYTES
        self.arena[HEADROOM_BYTES : HEADROOM_BYTES + len(piece)] = piece
        return self.intake.receive(connection, HEADROOM_BYTES, len(piece))

    def take(self) -> bytes:
        taken = bytes(self.intake.batch)
        self.intake.discard(len(taken))
        return taken


@pytest.fixture(params=KERNELS, ids=lambda kernel: kernel.variant)
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


def test_a_new_number_is_batched_and_a_repeat_only_counted(driver: Driver) -> None:
    assert driver.receive(0, lines([1, 2, 1])) == Verdict.MORE
    assert driver.receive(1, lines([2, 3])) == Verdict.MORE
    assert driver.take() == lines([1, 2, 3])
    assert (driver.intake.unique, driver.intake.duplicate) == (3, 2)


def test_connections_do_not_mix(driver: Driver) -> None:
    first, second = lines([123_456_789]), lines([987_654_321])
    for cut in range(1, len(first)):
        assert driver.receive(0, first[:cut]) == Verdict.MORE
        assert driver.receive(1, second[: 10 - cut]) == Verdict.MORE
        assert driver.receive(0, first[cut:]) == Verdict.MORE
        assert driver.receive(1, second[10 - cut :]) == Verdict.MORE
    assert driver.take() == first + second


def test_a_slot_used_again_starts_without_a_tail(driver: Driver) -> None:
    driver.receive(0, b"12345")
    assert driver.intake.has_tail(0)
    driver.intake.open(0)
    assert not driver.intake.has_tail(0)
    assert driver.receive(0, b"6789\n") == Verdict.INVALID


def test_a_tail_ends_with_its_line(driver: Driver) -> None:
    driver.receive(0, b"12345678")
    driver.receive(0, b"9")
    assert driver.intake.has_tail(0)
    assert not driver.intake.completed_a_line
    driver.receive(0, b"\n")
    assert not driver.intake.has_tail(0)
    assert driver.intake.completed_a_line
    assert driver.take() == lines([123_456_789])


def test_terminate_is_found_however_it_is_cut(driver: Driver) -> None:
    for cut in range(1, 10):
        driver.intake.open(0)
        assert driver.receive(0, b"terminate\n"[:cut]) == Verdict.MORE
        assert driver.receive(0, b"terminate\n"[cut:]) == Verdict.TERMINATE


def test_the_rest_of_a_batch_that_was_written_in_part_stays_in_order(driver: Driver) -> None:
    driver.receive(0, lines(range(10)))
    driver.intake.discard(30)
    assert bytes(driver.intake.batch) == lines(range(3, 10))
    driver.receive(0, lines([77]))
    assert driver.take() == lines([*range(3, 10), 77])


def test_the_longest_piece_fits_exactly(driver: Driver) -> None:
    data = lines(range(CHUNK_BYTES_MAX // 10))
    rest = CHUNK_BYTES_MAX - len(data)
    assert driver.receive(0, data + b"0" * rest) == Verdict.MORE
    assert driver.intake.free_bytes < 10
    with pytest.raises(ValueError, match="room"):
        driver.receive(1, lines(range(1000)))


def test_a_number_is_new_once_whatever_connection_it_comes_from(driver: Driver) -> None:
    for connection in range(CONNECTIONS):
        driver.receive(connection, lines([0, 999_999_999]))
    assert driver.take() == lines([0, 999_999_999])
    assert driver.intake.duplicate == 2 * (CONNECTIONS - 1)


@settings(max_examples=40, deadline=None)
@given(
    stream=st.lists(
        st.one_of(
            st.integers(0, 30).map(lambda number: b"%09d\n" % number),
            st.sampled_from([b"terminate\n", b"12345678\n", b"1234567890\n", b"x", b"\n", b"12"]),
        ),
        max_size=20,
    ).map(b"".join),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_how_a_stream_is_cut_does_not_matter(stream: bytes, cuts: list[int]) -> None:
    whole, pieces = DRIVERS
    for driver in DRIVERS:
        driver.intake.open(0)
    before = pieces.intake.unique, pieces.intake.duplicate
    whole_before = whole.intake.unique, whole.intake.duplicate
    verdict_whole = whole.receive(0, stream)
    verdict = int(Verdict.MORE)
    for begin, end in pairwise(sorted({0, len(stream), *(c for c in cuts if c < len(stream))})):
        verdict = pieces.receive(0, stream[begin:end])
        if verdict != Verdict.MORE:
            break
    assert verdict == verdict_whole
    assert pieces.take() == whole.take()
    assert pieces.intake.has_tail(0) == whole.intake.has_tail(0)
    assert (pieces.intake.unique - before[0], pieces.intake.duplicate - before[1]) == (
        whole.intake.unique - whole_before[0],
        whole.intake.duplicate - whole_before[1],
    )


DRIVERS = Driver(PythonKernel()), Driver(variants()[0])
"""The specification takes each stream whole, the compiled kernel takes it in pieces."""
