"""Registered memory: what there is, what it counts, and what is not taken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from engines.rdma.conformance.case import CAPACITY, case
from engines.rdma.conformance.expectations import equal, expect, refused
from engines.rdma.conformance.pair import EVERYTHING
from engines.rdma.device import Access, OutOfMemory, ProviderUnavailable, Status

if TYPE_CHECKING:
    from engines.rdma.conformance.pair import Pair


@case()
def regions_are_aligned_zeroed_and_apart(pair: Pair) -> None:
    """Also those that follow a reset, where something else lay before."""
    device = pair.near.device
    for _ in range(2):
        regions = []
        for nbytes, align in ((0, 64), (1, 64), (3, 8), (4096, 4096), (100_000, 64), (64, 256)):
            region = device.allocate(nbytes, access=EVERYTHING, align=align)
            equal((region.nbytes, region.view.nbytes, region.view.format), (nbytes, nbytes, "B"), "the region")
            equal(region.offset % align, 0, f"an offset of {region.offset} modulo its alignment {align}")
            expect(bytes(region.view) == bytes(nbytes), "fresh memory is not zero")
            regions.append(region)
        for index, region in enumerate(regions):
            region.view[:] = bytes([index + 1]) * region.nbytes
        for index, region in enumerate(regions):
            expect(bytes(region.view) == bytes([index + 1]) * region.nbytes, "two regions overlap")
        device.reset()


@case()
def views_are_the_memory_itself(pair: Pair) -> None:
    """What numpy writes is sent, what arrives numpy sees: no copy on either side."""
    import numpy as np

    source = pair.near.region(4000)
    memory, target = pair.far.published(4000)
    sent, arrived = np.frombuffer(source.view, np.float32), np.frombuffer(memory.view, np.float32)
    sent[:] = np.arange(1000)
    pair.end_of(pair.near.channel.write(source, target, offset=0, at=0, nbytes=4000))
    expect((arrived == np.arange(1000)).all(), "an array over the target does not show what was written")


@case()
def an_arena_that_is_too_small_says_so(pair: Pair) -> None:
    """And goes on serving what fits."""
    device = pair.near.device
    refused(OutOfMemory, lambda: device.allocate(2 * CAPACITY, access=EVERYTHING), f"{2 * CAPACITY} bytes")
    taken = 0
    while taken <= CAPACITY:
        try:
            device.allocate(CAPACITY // 8, access=EVERYTHING)
        except OutOfMemory:
            break
        taken += CAPACITY // 8
    expect(CAPACITY // 2 <= taken <= CAPACITY, f"an arena of {CAPACITY} bytes gave {taken}")
    device.reset()
    equal(device.allocate(CAPACITY // 2, access=EVERYTHING).nbytes, CAPACITY // 2, "bytes after a reset")


@case()
def memory_with_gaps_and_memory_that_cannot_be_written_are_not_registered(pair: Pair) -> None:
    """Tensors must be contiguous: they are copied by their owner, who counts it, or not at all."""
    import numpy as np

    whole = np.frombuffer(pair.near.region(4096).view, np.float32).reshape(32, 32)
    before = pair.near.device.counters().registrations
    for what, buffer in (
        ("every second element", memoryview(whole[:, ::2])),
        ("a transposed matrix", memoryview(whole.T)),
        ("a slice of a buffer with a step", pair.near.region(64).view[::2]),
        ("read-only memory", memoryview(bytes(64))),
    ):
        refused(
            ProviderUnavailable,
            lambda buffer=buffer: pair.near.device.register(buffer, access=EVERYTHING),
            f"registering {what}",
        )
    equal(pair.near.device.counters().registrations, before + 1, "registrations (one region was allocated)")


@case()
def memory_of_the_arena_is_registered_in_place(pair: Pair) -> None:
    """A part of a region, as a region of its own with rights of its own."""
    import numpy as np

    whole = pair.near.region(4096)
    part = np.frombuffer(whole.view, np.float32)[16:32]
    region = pair.near.device.register(memoryview(part), access=Access.LOCAL_WRITE)
    part[:] = 7
    memory, target = pair.far.published(64)
    ticket = pair.near.channel.write(region, target, offset=0, at=0, nbytes=64)
    equal(pair.status_of(ticket), Status.SUCCESS, "a write from a part of the arena")
    equal(bytes(memory.view), part.tobytes(), "what arrived")


@case()
def registrations_are_counted_and_do_not_grow_with_use(pair: Pair) -> None:
    """Constant after the warm-up; bytes as long as they are registered."""
    device = pair.near.device
    start = device.counters()
    source = pair.near.region(1000)
    other = pair.near.region(24)
    _, target = pair.far.published(1000)
    warm = device.counters()
    equal(warm.registrations - start.registrations, 2, "registrations for two regions")
    equal(warm.registered_bytes - start.registered_bytes, 1024, "bytes registered for two regions")
    for step in range(50):
        pair.near.channel.write(source, target, offset=0, at=0, nbytes=1000, imm=step)
        pair.arrival()
        pair.near.channel.read(other, target, offset=0, at=0, nbytes=24)
        pair.near.channel.send(b"note")
        pair.message()
    used = device.counters()
    equal(used.registrations, warm.registrations, "registrations after 50 steps")
    equal(used.registered_bytes, warm.registered_bytes, "registered bytes after 50 steps")
    device.reset()
    equal(device.counters().registered_bytes, start.registered_bytes, "registered bytes after a reset")
    equal(device.counters().registrations, used.registrations, "registrations ever made, after a reset")


@case()
def a_descriptor_says_what_a_region_is_and_survives_json(pair: Pair) -> None:
    """And differs from that of every other region."""
    from engines.rdma.device import Descriptor

    found = []
    for nbytes, access in ((64, EVERYTHING), (0, Access.REMOTE_READ), (4096, Access.REMOTE_WRITE)):
        region, descriptor = pair.far.published(nbytes, access)
        equal(Descriptor.from_json(descriptor.to_json()), descriptor, "a descriptor through JSON")
        equal(json.loads(descriptor.to_json())["nbytes"], nbytes, "bytes in JSON")
        equal((descriptor.nbytes, descriptor.access), (region.nbytes, int(access)), "bytes and rights")
        equal((descriptor.device, descriptor.epoch), (pair.far.device.uid, region.epoch), "device and epoch")
        found.append((descriptor.region, descriptor.rkey))
    equal(len(set(found)), 3, "distinct regions and keys")
