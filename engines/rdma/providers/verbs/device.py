"""A device over an RDMA adapter: memory that the adapter knows, and queue pairs to peers.

Every region is a registration of its own, exactly as long and with exactly the rights that were asked for, so that the
adapter itself refuses what is not allowed. Registering pins pages; a job allocates its regions once, and divides them
up further without the adapter.
"""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emulation import rdma_devices
from engines.rdma.arena import Arena
from engines.rdma.copies import CopyLedger
from engines.rdma.device import (
    Access,
    ChannelOptions,
    Counters,
    Descriptor,
    Operation,
    ProviderUnavailable,
    Region,
    Traits,
    Unavailable,
    check_buffer,
)
from engines.rdma.fork import Home
from engines.rdma.memory import anonymous
from engines.rdma.providers.verbs import bindings, gid, lifetime
from engines.rdma.providers.verbs.adapter import MemoryAccess, PortState
from engines.rdma.providers.verbs.channel import VerbsChannel

if TYPE_CHECKING:
    from engines.rdma.providers.verbs.adapter import Adapter, Memory, Port

LARGEST_WRITE = 1 << 30
"""Bytes of one work request where the adapter would take more: lengths are 32-bit numbers in every binding."""
SOFT_ROCE = "rdma_rxe"
SOFT_ROCE_RETRIES = 6
"""Most retries that Soft-RoCE counts: it takes 7, the most there are, for retries without end (measured, 6.12)."""
MOST_RETRIES = 7


@dataclass
class OwnMemory:
    """Memory of the provider's own that the adapter knows, for messages."""

    view: memoryview
    address: int
    lkey: int
    _memory: Memory
    _device: VerbsDevice

    def close(self) -> None:
        """Deregister it."""
        self._memory.close()
        self._device.count.registered_bytes -= self.view.nbytes


SOFT_ROCE_PAUSE = 100e-6
"""Seconds: yielding is not enough, as a guest that never halts keeps its host's processor from carrying its packets."""


class VerbsDevice:
    """A `Device` over an RDMA adapter."""

    def __init__(
        self,
        capacity: int,
        *,
        device: str | None = None,
        port: int = 1,
        gid_index: int | None = None,
        binding: str = "auto",
        in_order: bool | None = None,
        largest_write: int = LARGEST_WRITE,
    ) -> None:
        """Open an RDMA device with `capacity` bytes of arena.

        Args:
            capacity: bytes.
            device: its name; the first with an active port where that is None.
            port: from 1.
            gid_index: entry of the port's GID table; None chooses (`emulation.rdma_devices.choose_gid`).
            binding: `ibverbs`, `pyverbs`, or `auto` for the first that is installed.
            in_order: whether bytes of a write are placed in increasing address order. None says yes for Soft-RoCE,
                which does so, and no for adapters, which may reorder packets on the wire (adaptive routing) and their
                writes on the bus; say True only where neither is on.
            largest_write: bytes of one work request; longer transfers are cut.

        Raises:
            ProviderUnavailable: no library, no kernel support, no device, port down, no GID, or no memory to lock.
        """
        loaded = bindings.load(binding)
        name = _choose(bindings.devices(loaded), device, port)
        self.port = port
        self.adapter: Adapter = loaded.open(name)
        try:
            found = _check_port(self.adapter, port)
            address = gid.find(name, port, gid_index)
            self._memory = _arena_memory(capacity)
        except ProviderUnavailable:
            self.adapter.close()
            raise
        self.gid_index = address.index
        self.gid = self.adapter.gid(port, address.index)
        self.uid = secrets.token_hex(16)
        self.epoch = 1
        driver = next((known.driver for known in rdma_devices.devices() if known.name == name), "")
        ordered = driver == SOFT_ROCE if in_order is None else in_order
        self.traits = Traits(
            "verbs",
            in_order=ordered,
            largest_write=min(largest_write, found.largest_message),
            detail={
                "device": name,
                "driver": driver,
                "binding": loaded.name,
                "link layer": "Ethernet" if found.link_layer == 2 else "InfiniBand",
                "gid": f"{address.index}: {address.address}",
                "mtu": str(128 << found.mtu),
            },
        )
        self._pause = SOFT_ROCE_PAUSE if driver == SOFT_ROCE else 0.0
        self.most_retries = SOFT_ROCE_RETRIES if driver == SOFT_ROCE else MOST_RETRIES
        self.ledger = CopyLedger()
        self.home = Home("this verbs device")
        self.count = Counters()
        """Kept by the channels too; `counters` hands out a copy."""
        self._base = _address(self._memory)
        self._arena = Arena(0, capacity)
        self._touched = 0
        """End of the memory that was ever handed out, and may hold something."""
        self._regions: dict[int, tuple[Region, Memory]] = {}
        self._numbers = 0
        self._channels: list[VerbsChannel] = []
        self._closed = False
        lifetime.opened(self)

    def allocate(self, nbytes: int, *, access: Access, align: int = 64) -> Region:
        """A zeroed region of the arena, registered by itself."""
        self.home.check()
        offset = self._arena.take(nbytes, align)
        dirty = min(offset + nbytes, self._touched) - offset
        if dirty > 0:
            ctypes.memset(self._base + offset, 0, dirty)
        self._touched = max(self._touched, offset + nbytes)
        return self._register(self._base + offset, self._memory[offset : offset + nbytes], access)

    def register(self, buffer: memoryview, *, access: Access) -> Region:
        """Register memory in place, such as that of a numpy array or a tensor; it is kept alive."""
        self.home.check()
        check_buffer(buffer)
        view = buffer.cast("B")
        return self._register(_address(view) if view.nbytes else self._base, view, access)

    def _register(self, address: int, view: memoryview, access: Access) -> Region:
        # An adapter registers at least a byte: of an empty region, one that no peer may touch.
        rights = _rights(access) if view.nbytes else MemoryAccess(0)
        memory = self._pin(address, max(view.nbytes, 1), rights)
        region = Region(
            self._numbers, address, view.nbytes, memory.lkey, memory.rkey, access, self.epoch, view
        )  # fmt: skip
        self._numbers += 1
        self._regions[region.number] = (region, memory)
        self.count.registered_bytes += view.nbytes
        return region

    def _pin(self, address: int, nbytes: int, rights: MemoryAccess) -> Memory:
        try:
            memory = self.adapter.register(address, nbytes, rights)
        except OSError as error:
            raise ProviderUnavailable(
                Unavailable.MEMORY,
                f"{self.adapter.name} will not register {nbytes} bytes: {error} "
                f"(locked-memory limit: {_locked_memory()}; at most {self.adapter.limits.regions} regions)",
            ) from error
        self.count.registrations += 1
        return memory

    def own_memory(self, nbytes: int) -> OwnMemory:
        """Fresh memory for messages, which no peer may touch."""
        view = anonymous(nbytes)
        address = _address(view)
        memory = self._pin(address, nbytes, MemoryAccess.LOCAL_WRITE)
        self.count.registered_bytes += nbytes
        return OwnMemory(view, address, memory.lkey, memory, self)

    def describe(self, region: Region) -> Descriptor:
        """What a peer must know to reach `region`."""
        return Descriptor.of(region, self.uid)

    def owns(self, region: Region) -> bool:
        """Whether `region` is a live region of this device."""
        found = self._regions.get(region.number)
        return found is not None and found[0] is region

    def channel(self, options: ChannelOptions | None = None) -> VerbsChannel:
        """An unconnected end."""
        self.home.check()
        channel = VerbsChannel(self, options or ChannelOptions())
        self._channels.append(channel)
        return channel

    def forget(self, channel: VerbsChannel) -> None:
        """Of a channel that has closed itself."""
        self._channels.remove(channel)

    def count_request(self, operation: Operation, nbytes: int) -> None:
        """Count a request that was handed to the adapter."""
        count = self.count
        if operation is Operation.WRITE:
            count.writes += 1
            count.written_bytes += nbytes
        elif operation is Operation.READ:
            count.reads += 1
            count.read_bytes += nbytes
        else:
            count.sends += 1

    def idle(self) -> None:
        """Give way; to Soft-RoCE for a while, which needs the processor to move the bytes."""
        if self._pause:
            time.sleep(self._pause)
        else:
            os.sched_yield()

    def clock(self) -> float:
        """Wall time."""
        return time.perf_counter()

    def counters(self) -> Counters:
        """What it has done so far; `wire` is of the whole port, whoever else uses it."""
        return replace(self.count, wire=rdma_devices.wire_counters(self.adapter.name, self.port))

    def reset(self) -> None:
        """Deregister everything; a new epoch begins."""
        self.home.check()
        self.epoch += 1
        self._deregister()
        self._arena.reset()

    def _deregister(self) -> None:
        for region, memory in self._regions.values():
            memory.close()
            self.count.registered_bytes -= region.nbytes
        self._regions.clear()

    def close(self) -> None:
        """Close the channels, deregister everything, and give the adapter back."""
        if self._closed:
            return
        self._closed = True
        # A forked child has the parent's adapter in its hands: whatever it gave back, the parent would lose.
        if self.home.here:
            lifetime.closed(self)
            for channel in list(self._channels):
                channel.close()
            self._deregister()
            self.adapter.close()


def _choose(names: list[str], wanted: str | None, port: int) -> str:
    if wanted is None:
        there = {known.name: known for known in rdma_devices.devices()}
        active = [
            name for name in names
            if name in there and any(found.number == port and found.active for found in there[name].ports)
        ]  # fmt: skip
        return (active or names)[0]
    if wanted not in names:
        raise ProviderUnavailable(Unavailable.DEVICE, f"no RDMA device {wanted!r}; there are {', '.join(names)}")
    return wanted


def _check_port(adapter: Adapter, number: int) -> Port:
    try:
        port = adapter.port(number)
    except OSError as error:
        raise ProviderUnavailable(Unavailable.DEVICE, f"{adapter.name} has no port {number}: {error}") from error
    if port.state != PortState.ACTIVE:
        raise ProviderUnavailable(
            Unavailable.PORT,
            f"port {number} of {adapter.name} is {PortState(port.state).name}; bring its network interface up, "
            "or check the cable",
        )
    return port


def _arena_memory(capacity: int) -> memoryview:
    try:
        return anonymous(max(capacity, 1))
    except (OSError, OverflowError, ValueError) as error:
        raise ProviderUnavailable(Unavailable.MEMORY, f"an arena of {capacity} bytes: {error}") from error


def _rights(access: Access) -> MemoryAccess:
    rights = MemoryAccess(0)
    if access & (Access.LOCAL_WRITE | Access.REMOTE_WRITE):
        # Verbs let nobody write from afar where the owner's adapter may not.
        rights |= MemoryAccess.LOCAL_WRITE
    if access & Access.REMOTE_WRITE:
        rights |= MemoryAccess.REMOTE_WRITE
    if access & Access.REMOTE_READ:
        rights |= MemoryAccess.REMOTE_READ
    return rights


def _locked_memory() -> str:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return "none" if limit == resource.RLIM_INFINITY else f"{limit} bytes, raised by 'ulimit -l'"


def _address(buffer: memoryview) -> int:
    """Where a writable buffer of at least one byte lies in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
