"""A random script of clients gives the same on every backend, with one reactor and several."""

import random

import pytest

from sweep.differential import is_invalid, make_play, play_for, valid_lines

_SECONDS = 10


@pytest.mark.usefixtures("ring")
def test_all_servers_do_what_the_model_does() -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"from seed {seed}")
    assert play_for(_SECONDS, seed) >= 1


def test_a_seed_gives_the_same_script_each_time() -> None:
    assert make_play(7) == make_play(7)
    assert make_play(7) != make_play(8)


@pytest.mark.parametrize(
    ("data", "numbers", "invalid"),
    [
        (b"", [], False),
        (b"000000001\n000000002\n", [1, 2], False),
        (b"000000001\n0000", [1], False),
        (b"000000001\n000000002", [1], False),
        (b"000000001\nx000000002\n", [1], True),
        (b"000000001\n1234567890", [1], True),
        (b"termin", [], False),
        (b"Termin", [], True),
    ],
)
def test_the_model_knows_the_protocol(data: bytes, numbers: list[int], invalid: bool) -> None:
    found, rest = valid_lines(data)
    assert found == numbers
    assert is_invalid(rest) is invalid
