import socket

import pytest

from emulation.softroce import switch
from emulation.softroce.switch import Switch

EVERYBODY = b"\xff" * 6


def address(number):
    return bytes([0x52, 0x54, 0, 0, 0, number])


def frame(to, sender, content=b"content"):
    return to + address(sender) + content


def sent(end, *frames):
    end.sendall(b"".join(len(f).to_bytes(4, "big") + f for f in frames))


def received(end):
    length = int.from_bytes(end.recv(4, socket.MSG_WAITALL), "big")
    return end.recv(length, socket.MSG_WAITALL)


def silent(end):
    end.settimeout(0.05)
    with pytest.raises(TimeoutError):
        end.recv(1)
    end.settimeout(10)
    return True


@pytest.fixture
def ends():
    made = Switch(3)
    for end in made.ends:
        end.settimeout(10)
    yield made.ends
    made.close()


def test_a_frame_for_everybody_or_for_somebody_unknown_reaches_all_others(ends):
    for target in (EVERYBODY, address(9)):
        sent(ends[0], frame(target, 0))
        assert [received(end) for end in ends[1:]] == [frame(target, 0)] * 2
    assert silent(ends[0])


def test_a_frame_for_somebody_who_was_heard_reaches_nobody_else(ends):
    sent(ends[1], frame(EVERYBODY, 1))
    assert received(ends[0]) == received(ends[2]) == frame(EVERYBODY, 1)
    sent(ends[0], frame(address(1), 0))
    assert received(ends[1]) == frame(address(1), 0)
    assert silent(ends[2])


def test_frames_that_come_in_pieces_or_together_are_passed_on_whole(ends):
    first, second = frame(EVERYBODY, 0, b"a" * 4200), frame(EVERYBODY, 0, b"b")
    stream = b"".join(len(f).to_bytes(4, "big") + f for f in (first, second))
    for start in range(0, len(stream), 999):
        ends[0].sendall(stream[start : start + 999])
    for end in ends[1:]:
        assert [received(end), received(end)] == [first, second]


def test_a_guest_that_does_not_read_loses_frames_and_the_others_none(ends, monkeypatch):
    monkeypatch.setattr(switch, "ROOM", 1 << 16)
    ends[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
    for number in range(300):
        content = number.to_bytes(2, "big") + bytes(4000)
        sent(ends[0], frame(EVERYBODY, 0, content))
        assert received(ends[2]) == frame(EVERYBODY, 0, content)


def test_a_guest_that_is_gone_leaves_the_others_joined(ends):
    ends[1].shutdown(socket.SHUT_RDWR)
    sent(ends[0], frame(EVERYBODY, 0))
    assert received(ends[2]) == frame(EVERYBODY, 0)
    sent(ends[2], frame(address(0), 2))
    assert received(ends[0]) == frame(address(0), 2)
