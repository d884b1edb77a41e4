"""Each disconnect gets a line, at a limited rate."""

from numbers_uring.addresses import Peer
from numbers_uring.limits import DISCONNECT_LOG_PER_S_MAX
from numbers_uring.server.disconnect_log import REASONS, DisconnectLog

PEER = Peer("::1", 4711)


class Told:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.fields: list[dict[str, object]] = []
        self.now_s = 50.0
        self.disconnects = DisconnectLog(self._say, lambda: self.now_s)

    def _say(self, text: str, **fields: object) -> None:
        self.texts.append(text)
        self.fields.append(fields)


def test_each_reason_is_told_with_the_peer() -> None:
    told = Told()
    for reason in REASONS:
        told.disconnects.note(PEER, reason, None)
    assert told.texts == [f"client [::1]:4711 disconnected: {text}" for text in REASONS.values()]
    assert told.fields[0] == {"peer": "[::1]:4711", "reason": "eof"}


def test_an_invalid_line_is_shown_as_python_would_write_it() -> None:
    told = Told()
    told.disconnects.note(PEER, "invalid", b"12345\r\n\xff\x1b")
    assert told.texts == [
        r"client [::1]:4711 disconnected: invalid line '12345\r\n\xff\x1b'",
    ]


def test_a_flood_is_cut_off_and_counted_and_the_next_second_is_told_again() -> None:
    told = Told()
    for _ in range(DISCONNECT_LOG_PER_S_MAX + 1000):
        told.disconnects.note(PEER, "eof", None)
    assert len(told.texts) == DISCONNECT_LOG_PER_S_MAX
    told.now_s += 1
    told.disconnects.note(PEER, "reset", None)
    assert told.texts[DISCONNECT_LOG_PER_S_MAX] == "1000 more clients disconnected"
    assert told.texts[-1].endswith("connection reset")
    told.disconnects.flush(0)
    assert len(told.texts) == DISCONNECT_LOG_PER_S_MAX + 2


def test_refused_clients_are_told_once_a_second_and_at_the_end() -> None:
    told = Told()
    told.disconnects.note_refused(0)
    told.disconnects.note_refused(2)
    told.disconnects.note_refused(5)
    told.disconnects.flush(5)
    told.disconnects.flush(5)
    assert told.texts == [
        "2 clients refused: all slots are taken",
        "3 clients refused: all slots are taken",
    ]
