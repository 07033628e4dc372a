"""A device in virtual time: memory, a processor, and an adapter on a fabric."""

from __future__ import annotations

import mmap
from dataclasses import replace
from typing import TYPE_CHECKING

from emulation.units import PICOSECONDS_PER_SECOND, picoseconds
from engines.rdma.arena import Arena
from engines.rdma.device import (
    Access,
    ChannelOptions,
    Counters,
    Descriptor,
    Region,
    Traits,
    check_buffer,
)
from engines.rdma.fork import Home
from engines.rdma.memory import anonymous
from engines.rdma.providers.sim.adapter import Adapter
from engines.rdma.providers.sim.channel import MTUS, PROVIDER, SimulatedChannel
from engines.rdma.providers.sim.costs import Costs
from engines.rdma.providers.sim.memory import ProtectionTable
from engines.rdma.providers.sim.processor import ChargedLedger, Processor

if TYPE_CHECKING:
    from engines.rdma.providers.sim.fabric import Fabric

ARENA = 1 << 32
"""Address of an arena's first byte; other registered memory gets addresses behind the arena."""
LARGEST_WRITE = 2**31
"""Bytes of the longest message that the InfiniBand specification allows."""
QUANTUM = 64 * 1024


class SimulatedDevice:
    """A `Device` whose transfers take virtual time.

    Devices on one fabric live in one process. `idle` advances the time they share, but only once all of them have had
    a look at the instant that is: whoever idles first in an instant that it has not seen yet gets on without.
    """

    def __init__(
        self,
        capacity: int,
        *,
        fabric: Fabric,
        costs: Costs | None = None,
        mtu: int = 4096,
        quantum: int = QUANTUM,
        name: str = "",
        largest_write: int = LARGEST_WRITE,
        completions: int = 0,
    ) -> None:
        """Plug a device in.

        Args:
            capacity: bytes of arena; registering it takes the processor's time, as it does once on real ones.
            fabric: the wire and the clock.
            costs: of the host and the adapter.
            mtu: bytes of payload in the largest packet; a connection uses the smaller of its two ends'.
            quantum: bytes that a queue pair sends before it is another one's turn.
            name: on the fabric; empty for the next free one.
            largest_write: bytes of the longest work request; longer ones are cut.
            completions: room of completion queues; 0 for as much as can be outstanding. With less, completions are
                lost as they are on an adapter.

        Raises:
            ValueError: no MTU of InfiniBand.
        """
        if mtu not in MTUS:
            raise ValueError(f"an MTU is one of {', '.join(map(str, MTUS))} bytes, got {mtu}")
        self.home = Home("this simulated device")
        self.costs = costs or Costs()
        self.completions = completions
        self.fabric = fabric
        self.uid = name or fabric.name()
        detail = {"seed": str(fabric.seed), "path MTU": str(mtu), "link layer": "simulated"}
        in_order = not fabric.wire.reorder
        self.traits = Traits(PROVIDER, in_order=in_order, largest_write=largest_write, detail=detail)
        self.processor = Processor(fabric, self.uid)
        self.ledger = ChargedLedger(processor=self.processor, costs=self.costs)
        self.protection = ProtectionTable(fabric.random)
        self.adapter = Adapter(fabric, self.costs, self.uid, mtu=mtu, quantum=quantum)
        self.count = Counters()
        """Kept by the channels too; `counters` hands out a copy."""
        self._memory = anonymous(capacity)
        self._arena = Arena(ARENA, ARENA + capacity)
        self._touched = ARENA
        self._beyond = ARENA + capacity + mmap.PAGESIZE
        self._channels: list[SimulatedChannel] = []
        self._seen = fabric.instants
        self._acts = -1
        """`Fabric.acts` when this device last idled in vain."""
        self._charge_registration(capacity)

    def _charge_registration(self, nbytes: int) -> None:
        self.processor.work(self.costs.registering(nbytes), "register")

    def allocate(self, nbytes: int, *, access: Access, align: int = 64) -> Region:
        """A zeroed region of the arena; its pages were registered with the arena's."""
        self.home.check()
        address = self._arena.take(nbytes, align)
        view = self._memory[address - ARENA : address - ARENA + nbytes]
        dirty = min(address + nbytes, self._touched) - address
        if dirty > 0:
            view[:dirty] = bytes(dirty)
        self._touched = max(self._touched, address + nbytes)
        return self.protection.add(view, address, access)

    def register(self, buffer: memoryview, *, access: Access) -> Region:
        """Register memory in place; takes the processor's time."""
        self.home.check()
        check_buffer(buffer)
        view = buffer.cast("B") if buffer.nbytes else memoryview(bytearray())
        address = self._beyond
        self._beyond += (view.nbytes // mmap.PAGESIZE + 2) * mmap.PAGESIZE
        self._charge_registration(view.nbytes)
        return self.protection.add(view, address, access)

    def describe(self, region: Region) -> Descriptor:
        """What a peer must know to reach `region`."""
        return Descriptor.of(region, self.uid)

    def channel(self, options: ChannelOptions | None = None) -> SimulatedChannel:
        """An unconnected end."""
        self.home.check()
        channel = SimulatedChannel(self, options or ChannelOptions())
        self._channels.append(channel)
        return channel

    def idle(self) -> None:
        """Let virtual time go on to the next instant at which there is something new to see.

        Raises:
            Deadlock: nothing is under way, and nobody did anything since it idled last; with what adapters wait for.
        """
        self.home.check()
        for channel in self._channels:
            channel.progress()
        if self._seen == self.fabric.instants and not self.fabric.advance():
            # An error only if nobody has posted or found anything either since this device idled last.
            if self._acts == self.fabric.acts:
                raise self.fabric.deadlock()
            self._acts = self.fabric.acts
        self._seen = self.fabric.instants

    def clock(self) -> float:
        """Virtual seconds on this rank's processor."""
        return self.processor.time / PICOSECONDS_PER_SECOND

    def wait_until(self, moment: float) -> None:
        """Do nothing until `clock` says so much; of no effect if it is past."""
        self.processor.work(max(0, picoseconds(moment) - self.processor.time), "wait")

    def counters(self) -> Counters:
        """What it has done so far."""
        table = self.protection
        return replace(
            self.count,
            registrations=table.registrations,
            registered_bytes=table.registered_bytes,
            wire=dict(self.adapter.wire),
        )

    def reset(self) -> None:
        """Free and unregister everything; a new epoch begins."""
        self.home.check()
        self.protection.clear()
        self._arena.reset()

    def close(self) -> None:
        """Vanish from the fabric, as a killed process does: peers hear nothing any more."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self.adapter.close()
        self.protection.clear()
