"""A network adapter: one send engine, one bus, one port, and a cache of queue-pair state.

Sending, a packet passes three stages in line: the engine (`Costs.per_packet`), the read of its payload over the bus,
and the port. Receiving, three more: the port, the engine, and the write over the bus. Each stage serves packets in
order of arrival, so what a burst of them takes has a closed form (`stages`).

Queue pairs take turns, a *quantum* of one message each, as adapters arbitrate between queue pairs. The engine begins
with the next burst just early enough for its first packet to follow the last one on the wire without a gap.

Acknowledgements are put between the packets of others and take none of their time; one takes its own bytes' time on
the wire and the engine's at the other end.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from emulation.units import picoseconds
from engines.rdma.providers.sim.packets import Flight
from engines.rdma.providers.sim.stages import passed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.rdma.providers.sim.costs import Costs
    from engines.rdma.providers.sim.fabric import Fabric
    from engines.rdma.providers.sim.memory import Entry
    from engines.rdma.providers.sim.packets import Burst, Reply
    from engines.rdma.providers.sim.queue_pair import QueuePair

SENDING = 3
"""Stages before the wire."""
PORT, ENGINE, BUS = 0, 1, 2
"""Stages behind it."""


COUNTERS = (
    "sent_pkts", "rcvd_pkts", "lost_pkts", "retransmissions", "duplicate_request", "out_of_seq_request",
    "rcvd_seq_err", "send_rnr_err", "rcvd_rnr_err", "completer_retry_err", "retry_exceeded_err",
    "retry_rnr_exceeded_err", "timeouts", "context_misses",
)  # fmt: skip
"""Those that Soft-RoCE has too have its names."""


class Adapter:
    """What hangs on a fabric under a name, and runs queue pairs."""

    def __init__(self, fabric: Fabric, costs: Costs, name: str, *, mtu: int, quantum: int) -> None:
        self.fabric = fabric
        self.costs = costs
        self.name = name
        self.mtu = mtu
        self.quantum = quantum
        self.wire = dict.fromkeys(COUNTERS, 0)
        self.receiver_wait = picoseconds(costs.receiver_timer)
        """Picoseconds that a peer is told to wait when no buffer is posted for its message."""
        self.placed_by = 0
        """When all bytes that have arrived will be in memory."""
        self._pairs: dict[int, QueuePair] = {}
        self._next_number = 0
        self._contexts: OrderedDict[int, None] = OrderedDict()
        self._sending = [0] * SENDING
        self._receiving = [0] * SENDING
        self._ready: deque[QueuePair] = deque()
        self._wake: Any = None
        fabric.attach(self)
        fabric.env.process(self._engine())

    def number(self, pair: QueuePair) -> int:
        """Enter a queue pair, under a number that none has had before."""
        self._next_number += 1
        self._pairs[self._next_number] = pair
        return self._next_number

    def drop(self, number: int) -> None:
        """Take a queue pair out; packets for it are ignored from now on."""
        self._pairs.pop(number, None)
        self._contexts.pop(number, None)

    def close(self) -> None:
        """Vanish: nothing is sent, and nothing answered, any more."""
        self._pairs.clear()
        self._ready.clear()
        self.fabric.detach(self)

    def describe(self) -> str:
        """What its queue pairs wait for."""
        return ", ".join(text for pair in self._pairs.values() if (text := pair.describe()))

    # Sending

    def schedule(self, pair: QueuePair) -> None:
        """Let a queue pair have its turn; it has one at most."""
        if not pair.scheduled:
            pair.scheduled = True
            self._ready.append(pair)
            if self._wake is not None and not self._wake.triggered:
                self._wake.succeed()

    def _engine(self) -> Iterator[Any]:
        env = self.fabric.env
        while True:
            while not self._ready:
                self._wake = env.event()
                yield self._wake
            pair = self._ready.popleft()
            pair.scheduled = False
            burst = pair.next_burst()
            if burst is None:
                continue
            again = self._transmit(burst)
            pair.sent(burst, self._sending[-1])
            self.schedule(pair)
            if again > env.now:
                yield env.timeout(again - env.now)

    def _transmit(self, burst: Burst) -> int:
        """Send a burst; returns when the engine may begin with the next one."""
        fabric, costs = self.fabric, self.costs
        fabric.note(burst.kind, self.name, burst.source.number, burst.psn, burst.packets, len(burst.data))
        self.wire["sent_pkts"] += burst.packets
        self._sending[0] = max(self._sending[0], fabric.now) + self._fetch(burst.source.number)
        start = tuple(self._sending)
        target = fabric.port(burst.target.adapter)
        if fabric.takes_bursts(burst.target.adapter):
            if target is not None:
                self._carry(Flight(burst, start), self._through(start, ((1, burst.groups[0][1]),)), target)
            self._sending = self._through(start, burst.groups)
        else:
            for packet in burst.split():
                self._sending = self._through(self._sending, packet.groups)
                if fabric.lost():
                    self.wire["lost_pkts"] += 1
                elif target is not None:
                    self._carry(Flight(packet), self._sending, target)
        name = f"{burst.kind} {len(burst.data)} B"
        first = self._through(start, ((1, burst.groups[0][1]),))[-1] - costs.wire(burst.groups[0][1])
        fabric.draw(self.name, "wire", name, first, self._sending[-1], psn=burst.psn, to=burst.target.adapter)
        ahead = costs.packet_time + costs.bus_time + costs.dma(burst.mtu)
        return max(self._sending[0], self._sending[-1] - ahead)

    def _fetch(self, number: int) -> int:
        """Picoseconds until a queue pair's state is in the cache."""
        if number in self._contexts:
            self._contexts.move_to_end(number)
            return 0
        self._contexts[number] = None
        if len(self._contexts) > self.costs.contexts:
            self._contexts.popitem(last=False)
        self.wire["context_misses"] += 1
        return self.costs.miss_time

    def _through(self, free: Any, groups: tuple[tuple[int, int], ...]) -> list[int]:
        """When the stages before the wire are done with a burst."""
        for count, nbytes in groups:
            free = passed(free, *self._stages(nbytes), count)
        return list(free)

    def _stages(self, nbytes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Services and lags before the wire of a packet with this payload."""
        costs = self.costs
        return (costs.packet_time, costs.dma(nbytes), costs.wire(nbytes)), (0, costs.bus_time, 0)

    def _carry(self, flight: Flight, done: list[int], target: Adapter) -> None:
        """Put on the wire what the port is done with (of a burst: its first packet) then."""
        nbytes = flight.burst.groups[0][1]
        arrives = done[-1] + self._lead(nbytes, target) + self.fabric.delay(self.name, target.name)
        self.fabric.at(arrives, target.arrive, flight, arrives, self)

    def _lead(self, nbytes: int, target: Adapter) -> int:
        """When a packet begins to arrive, seen from its last byte leaving (the propagation aside).

        A switch passes a packet on as it comes in, unless the way out is the faster one: then it waits for the end.
        """
        return 0 if target.costs.wire_rate > self.costs.wire_rate else -self.costs.wire(nbytes)

    # Receiving

    def arrive(self, flight: Flight, now: int, sender: Adapter) -> None:
        """Take in a burst whose first byte is here."""
        burst = flight.burst
        pair = self._pairs.get(burst.target.number)
        self.wire["rcvd_pkts"] += burst.packets
        miss = self._fetch(burst.target.number) if pair is not None else 0
        if miss:
            self._receiving[ENGINE] = max(self._receiving[ENGINE], now) + miss
        if flight.free:
            free = [*flight.free, *self._receiving]
            for count, nbytes in burst.groups:
                free = passed(free, *self._both(nbytes, sender), count)
            self._receiving = free[SENDING:]
        else:
            ((_, nbytes),) = burst.groups
            self._receiving[PORT] = max(self._receiving[PORT], now)
            self._receiving = passed(self._receiving, self._services(nbytes), (0, 0, 0), 1)
        self.fabric.note("arrival", self.name, burst.target.number, burst.psn, burst.packets)
        if pair is not None:
            pair.arrived(burst, self._receiving[ENGINE], self._receiving[BUS])

    def _both(self, nbytes: int, sender: Adapter) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Services and lags of a packet from the sender's engine to this adapter's bus."""
        service, lag = sender._stages(nbytes)
        flight = self.fabric.propagation(sender.name, self.name) + sender._lead(nbytes, self)
        return (*service, *self._services(nbytes)), (*lag, flight, 0, 0)

    def _services(self, nbytes: int) -> tuple[int, ...]:
        return self.costs.wire(nbytes), self.costs.packet_time, self.costs.dma(nbytes)

    def place(self, entry: Entry, address: int, data: bytes, placed: int, *, ends: bool) -> int:
        """Write bytes to memory that the bus is done with at `placed`; returns when software can see them."""
        visible = placed + self.costs.visible_time
        self.placed_by = max(self.placed_by, visible)
        self.fabric.draw(self.name, "memory", f"place {len(data)} B", placed - self.costs.dma(len(data)), placed)
        self.fabric.at(visible, self._write, entry, address, data, ends)
        return visible

    def _write(self, entry: Entry, address: int, data: bytes, ends: bool) -> None:
        if entry.live:
            entry.bytes(address, len(data))[:] = data
            # The middle of a message is nothing to wake a poller for, where what comes last is seen last.
            if ends or not self.fabric.wire.is_plain:
                self.fabric.stir()

    # Acknowledgements

    def reply(self, reply: Reply, when: int) -> None:
        """Send an acknowledgement at `when`."""
        target = self.fabric.port(reply.target.adapter)
        self.fabric.note(reply.answer, self.name, reply.source.number, reply.psn)
        self.wire["sent_pkts"] += 1
        if self.fabric.lost():
            self.wire["lost_pkts"] += 1
        elif target is not None:
            flight = self.costs.wire(0) + self.fabric.delay(self.name, target.name) + target.costs.packet_time
            self.fabric.draw(self.name, "acknowledgements", reply.answer, when, when + flight, psn=reply.psn)
            self.fabric.at(when + flight, target.replied, reply)

    def replied(self, reply: Reply) -> None:
        """Take an acknowledgement."""
        self.wire["rcvd_pkts"] += 1
        pair = self._pairs.get(reply.target.number)
        if pair is not None:
            pair.replied(reply)
