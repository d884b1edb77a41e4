"""Which connections in bulk have their turns in a look, by the sizes that they have sent."""

import random

from numbers_uring.limits import BULK_BYTES, BULK_SHARE_BYTES
from numbers_uring.reactor.bulk_turns import BulkTurns

LOOK_BYTES = 4 * BULK_BYTES


def look(turns: BulkTurns, ready: list[int | None], sizes: dict[int, int]) -> list[int]:
    """Have one look, and return who was received from."""
    taken = []
    for connection in turns.order(ready):
        taken.append(connection)
        turns.note(connection, sizes[connection])
    return taken


def test_of_many_in_bulk_a_look_takes_a_share() -> None:
    """Each look costs something for each of them, so that it has to be worth it."""
    clients = 4096
    turns = BulkTurns(clients, LOOK_BYTES)
    ready: list[int | None] = list(range(clients))
    sizes = dict.fromkeys(range(clients), BULK_BYTES)
    turns.begin_pass()
    assert len(look(turns, ready, sizes)) == clients, "no one knew them"
    taken: list[int] = []
    while len(taken) < clients:
        turns.begin_pass()
        some = look(turns, ready, sizes)
        assert len(some) == clients * BULK_SHARE_BYTES // BULK_BYTES
        taken += some
    assert sorted(taken) == ready


def test_no_client_in_bulk_is_forgotten() -> None:
    chance = random.Random(1)
    clients = 20
    turns = BulkTurns(clients, LOOK_BYTES)
    sizes = dict.fromkeys(range(clients), BULK_BYTES)
    assert len(look(turns, list(range(clients)), sizes)) == clients
    waited = [0] * clients
    for _ in range(2000):
        ready: list[int | None] = [each for each in range(clients) if chance.random() < 0.7]
        chance.shuffle(ready)
        turns.begin_pass()
        taken = look(turns, ready, sizes)
        most_bytes = max(LOOK_BYTES, len(ready) * BULK_SHARE_BYTES)
        assert 0 < len(set(taken)) == len(taken) <= -(-most_bytes // BULK_BYTES)
        for each in ready:
            assert each is not None
            waited[each] = 0 if each in taken else waited[each] + 1
        assert max(waited) <= clients


def test_a_client_is_in_bulk_by_what_it_sent_last() -> None:
    turns = BulkTurns(3, BULK_BYTES)
    sizes = {0: BULK_BYTES, 1: BULK_BYTES, 2: 10}
    turns.begin_pass()
    assert look(turns, [0, 1, 2], sizes) == [0, 1, 2], "no one knew them"
    turns.begin_pass()
    assert look(turns, [0, 1, 2], sizes | {0: BULK_BYTES - 1}) == [2, 0, 1]
    turns.begin_pass()
    assert look(turns, [1, 0, 2], sizes) == [0, 2, 1]
    turns.begin_pass()
    assert look(turns, [1, 0, 2], sizes) == [2, 0]
    turns.open(0)
    turns.begin_pass()
    assert look(turns, [1, 0], sizes) == [0, 1]


def test_another_look_follows_until_one_finds_something_quiet() -> None:
    turns = BulkTurns(3, BULK_BYTES)
    sizes = {0: BULK_BYTES, 1: BULK_BYTES, 2: 10}
    look(turns, [0, 1], sizes)
    for client, quiet in ((0, 2), (1, None)):
        turns.begin_pass()
        assert look(turns, [0, 1], sizes) == [client]
        assert turns.looks_again
        assert look(turns, [0, 1, quiet], sizes) == [quiet] * (quiet is not None)
        assert not turns.looks_again
    turns.begin_pass()
    assert look(turns, [0, 1], sizes) == [0]
    assert look(turns, [0, 1], sizes) == [1]
    assert look(turns, [0, 1], sizes) == []
    assert not turns.looks_again, "the round is over"
