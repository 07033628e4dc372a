"""Placements and metadata, for any tensors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.rdma.executor import together
from engines.rdma.metadata import DTYPES, InvalidMetadata, Metadata
from engines.rdma.production import Producer
from engines.rdma.providers import open_device
from engines.rdma.tensors import Payload, Tensor, fill
from engines.rdma.transports import ON_DEVICE, Setting, capacity, receiving_end, sending_end

u64 = st.integers(0, 2**64 - 1)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
tensors = st.builds(Tensor, st.text(max_size=8), shapes, st.sampled_from(DTYPES))
payloads = st.lists(tensors, min_size=1, max_size=6).map(lambda found: Payload("p", tuple(found)))
hows = st.one_of(
    st.builds(dict, signal=st.sampled_from(["auto", "tail", "imm", "debug"])), st.just({"placement": "dynamic"})
)


@given(
    st.builds(
        Metadata,
        sequence=u64,
        dtype=st.sampled_from(DTYPES),
        shape=st.lists(st.integers(0, 100), max_size=8).map(tuple),
        rkey=st.integers(0, 2**32 - 1),
        address=u64,
        flags=st.integers(0, 2**16 - 1),
    )
)
def test_a_block_says_what_was_packed(metadata):
    assert Metadata.unpack(metadata.pack()) == metadata


@given(st.binary(min_size=128, max_size=128))
def test_any_bytes_are_no_block_or_are_refused(block):
    try:
        found = Metadata.unpack(block)
    except InvalidMetadata:
        return
    assert found is None or found.pack()[:96] == block[:96]


@pytest.mark.parametrize("name", ON_DEVICE)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(payload=payloads, how=hows, steps=st.integers(1, 3))
def test_every_byte_of_every_step_arrives(name, payload, how, steps):
    setting = Setting((payload,), **how)
    devices = [open_device("shm", capacity([name], setting, rank=rank)) for rank in (0, 1)]
    sender, receiver = sending_end(name, devices[0], setting), receiving_end(name, devices[1], setting)
    try:
        sources = Producer(devices[0], setting).sources(payload)
        sender.channel.connect(receiver.channel.address())
        receiver.channel.connect(sender.channel.address())
        to_receiver, to_sender = sender.offer(payload, sources), receiver.offer(payload)
        sender.accept(to_sender)
        receiver.accept(to_receiver)
        for step in range(1, steps + 1):
            for index, source in enumerate(sources):
                fill(source, seed=step, payload="p", index=index)
            receiver.poison()
            for _ in together([sender.step_operation(step), receiver.step_operation(step)]):
                continue
            for index, source in enumerate(sources):
                assert np.array_equal(receiver.received(index), source)
    finally:
        for part in (sender, receiver, *devices):
            part.close()
