"""Every transport over a device moves every tensor, and copies as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from engines.rdma.events import Events, TransferFailed
from engines.rdma.executor import drive, together
from engines.rdma.placement import PeerLost, ProtocolError
from engines.rdma.tensors import Payload, Tensor
from engines.rdma.transports import ON_DEVICE
from engines.rdma.transports.request_driven import REQUEST, parse
from engines.rdma.transports.rpc_over_rdma import FRAGMENT
from harness.api import HarnessError

ODD = Payload(
    "odd",
    (
        Tensor("a", (3, 5), "float32"),
        Tensor("b", (7,), "int8"),
        Tensor("scalar", (), "float64"),
        Tensor("empty", (0, 4), "float16"),
        Tensor("large", (3 * FRAGMENT + 3,), "uint8"),
    ),
)
OTHER = Payload("other", (Tensor("one", (1000,), "int16"),))
COPIES = {"zero-copy": (0, 0), "copy": (1, 0), "rpc-over-rdma": (4, 4), "request-driven": (0, 0)}


def exhaust(operation):
    for _ in operation:
        continue


def arrived(pair):
    return all(np.array_equal(pair.receiver.received(i), source) for i, source in enumerate(pair.sources))


@pytest.mark.parametrize("name", ON_DEVICE)
def test_every_step_brings_its_own_bytes_and_copies_are_counted(ranks, name):
    pair = ranks(name, [ODD, OTHER])
    for step in (1, 2, 3):
        pair.produce(seed=step)
        pair.receiver.poison()
        for device in pair.devices:
            device.ledger.clear()
        pair.step(step)
        assert arrived(pair)
    # After the first step, in which request-driven learns what there is.
    assert tuple(device.ledger.nbytes / ODD.nbytes for device in pair.devices) == COPIES[name]


@pytest.mark.parametrize("placement", ["static", "dynamic"])
@pytest.mark.parametrize("name", ON_DEVICE)
def test_a_second_payload_needs_no_registration(ranks, name, placement):
    pair = ranks(name, [ODD, OTHER], placement=placement)
    pair.step(1)
    registered = [device.counters().registrations for device in pair.devices]
    pair.prepare(OTHER)
    pair.step(1)
    assert arrived(pair)
    assert [device.counters().registrations for device in pair.devices] == registered


def test_the_first_request_is_answered_with_a_clone_and_later_ones_are_not(ranks):
    pair = ranks("request-driven", [ODD])
    pair.step(1)
    assert pair.devices[0].ledger.sites == {"tensor to clone": ODD.nbytes}
    pair.step(2)
    assert pair.devices[0].ledger.nbytes == ODD.nbytes


def test_new_metadata_makes_the_receiver_ask_again(ranks):
    pair = ranks("request-driven", [ODD])
    pair.step(1)
    larger = Payload("odd", (*ODD.tensors[:1], Tensor("b", (70,), "int8"), *ODD.tensors[2:4]))
    pair.sender._payload, pair.sender._sources = larger, pair.producer.sources(larger)
    pair.receiver._payload = larger
    pair.sources = pair.sender._sources
    pair.produce(seed=4)
    pair.step(2)
    assert arrived(pair)
    assert pair.receiver._known[1].shape == (70,)


def test_a_request_of_the_next_step_may_overtake_the_end_of_this_one(ranks):
    pair = ranks("request-driven", [OTHER])
    pair.step(1)
    second, third = pair.receiver.step_operation(2), pair.receiver.step_operation(3)
    sending = pair.sender.step_operation(2)
    next(second)
    next(sending)  # has answered, and looked for the end of the step in vain
    look = pair.sender._events.message

    def look_late():
        exhaust(second)
        next(third)
        return look()

    pair.sender._events.message = look_late
    exhaust(sending)
    pair.sender._events.message = look
    exhaust(together([pair.sender.step_operation(3), third]))
    assert arrived(pair)


@pytest.mark.parametrize("name", ["zero-copy", "request-driven"])
def test_tensors_outside_registered_memory_are_refused(ranks, name):
    from engines.rdma.production import private_sources

    pair = ranks(name, [ODD])
    with pytest.raises(HarnessError, match="tensors must be produced in the registered arena"):
        pair.sender.offer(ODD, private_sources(ODD))


@pytest.mark.parametrize("name", ["zero-copy", "copy", "rpc-over-rdma"])
def test_a_peer_that_is_gone_ends_the_step(ranks, name):
    pair = ranks(name, [ODD])
    pair.receiver.close()
    pair.devices[1].close()
    with pytest.raises(PeerLost, match=name):
        exhaust(pair.sender.step_operation(1))


def test_a_request_that_will_never_come_ends_with_the_peers_life(ranks):
    pair = ranks("request-driven", [ODD])
    pair.receiver.close()
    pair.devices[1].close()
    with pytest.raises(PeerLost, match="request-driven odd: the other rank ended"):
        drive(pair.sender.step_operation(1), pair.devices[0], alive=pair.sender.channel.alive, timeout=1e9)


@pytest.mark.parametrize(
    ("message", "what"),
    [(b"", "a message of 0 bytes"), (bytes(136), "a message whose check is wrong")],
)
def test_a_message_that_is_none_of_ours_is_refused(message, what):
    with pytest.raises(ProtocolError, match=what):
        parse(message, "request-driven")


def test_a_request_for_a_tensor_that_is_not_there_is_refused(ranks):
    from engines.rdma.metadata import Metadata

    pair = ranks("request-driven", [ODD])
    with pytest.raises(ProtocolError, match="cannot be served: kind 1, tensor 99"):
        pair.sender._answer(99, REQUEST, Metadata(1, "uint8", (0,), 0, 0), 1)


def test_an_rpc_reply_of_another_step_is_refused(ranks):
    pair = ranks("rpc-over-rdma", [OTHER])
    operation = pair.sender.step_operation(2)
    pair.receiver.channel.send((1).to_bytes(8, "little"))
    with pytest.raises(ProtocolError, match="the reply is not that of step 2"):
        exhaust(operation)


def test_a_request_that_fails_is_an_error_with_its_status(ranks):
    pair = ranks("zero-copy", [OTHER])
    channel, events = pair.sender.channel, Events(pair.sender.channel, "test")
    target = pair.devices[1].describe(pair.receiver._landing)
    ticket = channel.write(pair.sender._words, target, offset=0, at=target.nbytes, nbytes=8)
    events.expect(ticket)
    with pytest.raises(TransferFailed, match=r"test: write of 8 B: remote access error") as caught:
        events.finished(ticket)
    assert caught.value.status == "remote access error"
