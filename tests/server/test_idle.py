from numbers_uring.server.idle import IdleTimeouts


def test_a_connection_is_due_when_its_time_is_up_and_only_once() -> None:
    clock = IdleTimeouts(5)
    clock.touch(1, 100)
    assert clock.next_due_s() == 105
    assert list(clock.take_due(104.9)) == []
    assert list(clock.take_due(105)) == [1]
    assert list(clock.take_due(200)) == []
    assert clock.next_due_s() is None


def test_whoever_sends_a_line_goes_to_the_end_of_the_queue() -> None:
    clock = IdleTimeouts(5)
    clock.touch(1, 100)
    clock.touch(2, 101)
    clock.touch(1, 102)
    assert clock.next_due_s() == 106
    assert list(clock.take_due(106.5)) == [2]
    assert list(clock.take_due(107)) == [1]


def test_a_closed_connection_is_never_due() -> None:
    clock = IdleTimeouts(5)
    clock.touch(1, 100)
    clock.forget(1)
    clock.forget(1)
    assert list(clock.take_due(1000)) == []


def test_time_in_which_nobody_was_listened_to_is_not_idleness() -> None:
    clock = IdleTimeouts(5)
    clock.touch(1, 100)
    clock.touch(2, 101)
    clock.touch_all(200)
    assert list(clock.take_due(204)) == []
    assert sorted(clock.take_due(205)) == [1, 2]
