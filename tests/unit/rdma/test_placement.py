"""Static placement: layout, signals, credit, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from engines.rdma.device import Access, Descriptor, InvalidDescriptor, Signal
from engines.rdma.placement import (
    ProtocolError,
    ShapeChanged,
    Slot,
    TornWrite,
    UnsafeSignal,
    check_shape,
    choose_signal,
    immediate,
    lay_out,
    read_offer,
    require,
)
from engines.rdma.tensors import Payload, Tensor

PAYLOAD = Payload("p", (Tensor("w", (100,), "uint8"), Tensor("v", (3, 5), "float32")))
DESCRIPTOR = Descriptor("d", 0, 1, 4096, 64, 7, int(Access.REMOTE_WRITE))


@pytest.mark.parametrize(
    ("nbytes", "tail", "span"), [(0, 0, 8), (1, 8, 16), (7, 8, 16), (8, 8, 16), (9, 16, 24)], ids=str
)
def test_the_tail_follows_the_payload_at_the_next_word(nbytes, tail, span):
    slot = Slot(0, nbytes)
    assert (slot.tail, slot.span, slot.written) == (tail, span, span)


def test_a_check_lies_between_payload_and_tail_and_an_immediate_needs_neither():
    assert (Slot(0, 9, Signal.DEBUG).end, Slot(0, 9, Signal.DEBUG).tail) == (16, 24)
    assert Slot(0, 9, Signal.IMM).written == 9


def test_slots_start_on_cache_lines():
    assert [slot.offset for slot in lay_out([1, 56, 57, 0])] == [0, 64, 128, 256]


def device(*, in_order):
    return SimpleNamespace(provider="verbs", in_order=in_order)


@pytest.mark.parametrize(
    ("wanted", "in_order", "chosen"),
    [
        ("auto", True, "tail"),
        ("auto", False, "imm"),
        ("tail", True, "tail"),
        ("imm", True, "imm"),
        ("imm", False, "imm"),
        ("debug", False, "debug"),
    ],
)
def test_the_signal_follows_from_the_wish_and_the_device(wanted, in_order, chosen):
    assert choose_signal(wanted, device(in_order=in_order)) == chosen


def test_a_tail_is_refused_where_bytes_may_be_placed_in_any_order():
    with pytest.raises(UnsafeSignal, match=r"'tail' needs bytes placed in order, which provider 'verbs' .* use 'imm'"):
        choose_signal("tail", device(in_order=False))


def test_an_immediate_tells_tensors_and_steps_apart():
    seen = {immediate(index, step) for index in (0, 1, 65535) for step in (1, 2, 65535, 65536)}
    assert len(seen) == 12
    assert all(0 <= imm < 2**32 for imm in seen)


def test_a_tensor_that_changed_its_shape_or_type_is_refused_by_name():
    declared = Tensor("w", (3, 5), "float32")
    check_shape(declared, Tensor("other name", (3, 5), "float32"))
    with pytest.raises(ShapeChanged, match=r"'w' was placed statically as float32\[3, 5\] and is now float32\[5, 3\]"):
        check_shape(declared, Tensor("w", (5, 3), "float32"))
    with pytest.raises(ShapeChanged, match=r"now int32\[3, 5\]; place it dynamically"):
        check_shape(declared, Tensor("w", (3, 5), "int32"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nonsense", "an offer must be JSON"),
        ("[]", "an offer must have exactly the fields layout, slots"),
        ('{"layout": "x"}', "an offer must have exactly the fields layout, slots"),
        ('{"layout": "x", "slots": 5}', "'slots' of an offer must be str, got int"),
        ('{"layout": "x", "slots": "{}"}', "a descriptor must have exactly the fields"),
        (
            json.dumps({"layout": "x", "slots": DESCRIPTOR.to_json().replace("4096", "-1")}),
            "'address' of a descriptor must be a 64-bit",
        ),
    ],
)
def test_a_malformed_offer_is_refused(text, what):
    with pytest.raises(InvalidDescriptor, match=what):
        read_offer(text, ("layout", "slots"))


def test_too_little_memory_or_the_wrong_kind_is_refused_before_the_first_write():
    assert require(DESCRIPTOR, nbytes=64, access=Access.REMOTE_WRITE, what="slots") is DESCRIPTOR
    with pytest.raises(InvalidDescriptor, match="slots: the peer offers 64 bytes where 65 are needed"):
        require(DESCRIPTOR, nbytes=65, access=Access.REMOTE_WRITE, what="slots")
    with pytest.raises(InvalidDescriptor, match=r"not open for .*REMOTE_READ"):
        require(DESCRIPTOR, nbytes=1, access=Access.REMOTE_READ, what="slots")


@pytest.mark.parametrize("signal", ["tail", "debug", "imm"])
def test_a_tensor_of_a_later_step_is_a_protocol_error(ranks, signal):
    pair = ranks("zero-copy", [PAYLOAD], signal=signal)
    sending = pair.sender._edges
    for index in range(2):
        sending.post(index, 3)
    with pytest.raises(ProtocolError, match=r"zero-copy w: expected .*1"):
        next(pair.receiver.step_operation(1))


@pytest.mark.parametrize("signal", ["tail", "debug", "imm"])
def test_a_stale_step_is_waited_past(ranks, signal):
    pair = ranks("zero-copy", [PAYLOAD], signal=signal)
    pair.step(1)
    waiting = pair.receiver.step_operation(2)
    assert next(waiting) == next(waiting) == "zero-copy w"


def test_no_slot_is_written_before_its_last_content_was_released(ranks):
    pair = ranks("zero-copy", [PAYLOAD])
    pair.step(1)
    pair.produce(seed=1)
    # Step 3 while nobody has released step 2: the sender must not touch the slots.
    before = [bytes(pair.receiver._edges.tensor(index)) for index in range(2)]
    sending = pair.sender.step_operation(3)
    assert next(sending) == next(sending) == "zero-copy p: release"
    assert [bytes(pair.receiver._edges.tensor(index)) for index in range(2)] == before


def test_a_release_of_a_step_that_was_never_sent_is_a_protocol_error(ranks):
    pair = ranks("zero-copy", [PAYLOAD])
    pair.receiver._edges.release(9)
    with pytest.raises(ProtocolError, match="zero-copy p: release: expected step 0, found 9"):
        next(pair.sender.step_operation(1))


def test_a_payload_that_comes_after_its_sequence_is_caught_by_the_check(ranks):
    pair = ranks("zero-copy", [PAYLOAD], signal="debug")
    receiving = pair.receiver._edges
    pair.sender._edges.post(0, 1)
    receiving.tensor(0)[5] ^= 1  # as if that byte were still on its way
    with pytest.raises(TornWrite, match="zero-copy w: sequence 1 was there before the payload"):
        next(pair.receiver.step_operation(1))


def test_ends_that_lay_out_different_tensors_do_not_join(ranks):
    pair = ranks("zero-copy", [PAYLOAD])
    other = Payload("q", (Tensor("w", (100,), "uint8"),))
    offer = pair.sender.offer(other, pair.producer.sources(other))
    pair.receiver.offer(PAYLOAD)
    with pytest.raises(ProtocolError, match="the two ends lay out different tensors"):
        pair.receiver.accept(offer)
