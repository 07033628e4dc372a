"""The sequence protocol of a static slot."""

from __future__ import annotations

import threading

import pytest

from engines.rdma.placement import PeerLost, ProtocolError, Slot, lay_out, wait_for


def wait(words, expected, *, alive=lambda: True, timeout=5.0):
    wait_for(words, 0, expected, alive=alive, timeout=timeout, what="slot of 'w'")


@pytest.fixture
def words():
    return memoryview(bytearray(8)).cast("Q")


def test_the_expected_sequence_is_ready(words):
    words[0] = 7
    wait(words, 7)


def test_a_larger_sequence_is_a_protocol_error(words):
    words[0] = 8
    with pytest.raises(ProtocolError, match="slot of 'w': expected sequence 7, found 8"):
        wait(words, 7)


def test_a_stale_sequence_waits_until_time_is_up(words):
    words[0] = 6
    with pytest.raises(PeerLost, match=r"step 7 did not come within 0\.05 s"):
        wait(words, 7, timeout=0.05)


def test_a_stale_sequence_waits_for_the_fresh_one(words):
    words[0] = 6
    looks = []

    def alive():
        looks.append(1)
        words[0] = 7  # arrives while the reader is waiting
        return True

    wait(words, 7, alive=alive)
    assert looks == [1]


def test_a_dead_peer_ends_the_wait(words):
    with pytest.raises(PeerLost, match="the other rank ended before step 1"):
        wait(words, 1, alive=lambda: False)


def test_what_a_peer_wrote_before_it_died_still_counts(words):
    def dies_after_writing():
        words[0] = 1
        return False

    wait(words, 1, alive=dies_after_writing)


def test_a_writer_in_another_thread_is_seen(words):
    writer = threading.Thread(target=words.__setitem__, args=(0, 3))
    writer.start()
    wait(words, 3)
    writer.join()


@pytest.mark.parametrize(
    ("nbytes", "tail", "span"), [(0, 0, 8), (1, 8, 16), (7, 8, 16), (8, 8, 16), (9, 16, 24)], ids=str
)
def test_the_tail_follows_the_payload_at_the_next_word(nbytes, tail, span):
    slot = Slot(0, nbytes)
    assert (slot.tail, slot.span) == (tail, span)


def test_slots_start_on_cache_lines():
    assert [slot.offset for slot in lay_out([1, 56, 57, 0])] == [0, 64, 128, 256]
