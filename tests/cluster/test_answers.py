"""When a request is sent again, and when a server is left, as seen from what it answers."""

import random

import pytest

from numbers_uring.cluster import answers
from numbers_uring.cluster.answers import Order, Unanswered
from numbers_uring.limits import BROKER_ASK_AGAIN_S, BROKER_LEAVE_S


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(answers, "time", made)
    return made


def test_a_request_is_not_sent_again_while_earlier_ones_are_answered(clock: Clock) -> None:
    """Against the plain rule, for answers in any order."""
    dice = random.Random(1)
    order = Order()
    sent: dict[int, float] = {}
    answered: list[tuple[int, float]] = []
    for _ in range(3000):
        clock.now_s += dice.expovariate(20)
        if dice.random() < 0.5 or not sent:
            sent[order.note_request()] = clock.now_s
        else:
            number = dice.choice(list(sent))
            if dice.random() < 0.9:
                del sent[number]
            order.note_answer(number)
            answered.append((number, clock.now_s))
        for number in dice.sample(list(sent), min(3, len(sent))):
            moved = [at_s for other, at_s in answered[-200:] if other < number]
            due_s = max([sent[number], *moved]) + BROKER_ASK_AGAIN_S
            found_s = order.due_s(number, sent[number])
            assert found_s == due_s or max(found_s, due_s) <= clock.now_s


def test_a_server_without_answers_is_left_and_the_next_one_has_twice_the_time(
    clock: Clock,
) -> None:
    kind = Unanswered()
    clock.now_s += 1000
    assert not kind.too_long(), "nothing was asked"
    kind.note_request()
    clock.now_s += BROKER_LEAVE_S - 0.1
    kind.note_request()
    assert not kind.too_long()
    clock.now_s += 0.2
    assert kind.too_long()
    kind.forget()
    kind.note_request()
    clock.now_s += 2 * BROKER_LEAVE_S - 0.1
    assert not kind.too_long()
    clock.now_s += 0.2
    assert kind.too_long()
    kind.note_answer()
    kind.note_request()
    clock.now_s += BROKER_LEAVE_S
    assert kind.too_long()
