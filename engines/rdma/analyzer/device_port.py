"""The edges of a plan over registered devices: one-sided writes for static ones, announcements for dynamic ones.

A machine has one channel to every machine that it shares an edge with. Static values lie in regions laid out as slots,
one region for all values that go to the same machines; the receivers have regions of the same layout (`placement`).
Dynamic values are copied into registered memory, announced, and read by their receiver (`metadata`).

Use: make a `DevicePort` on every machine, hand each peer what `offer` says, give `accept` what it said, and run a
`GraphExecutor` over it with `executor.drive`::

    port = DevicePort(plan, "worker0", device)
    for peer in port.peers:
        port.accept(peer, exchange(peer, port.offer(peer)))
    executor = GraphExecutor(plan, "worker0", port, device.ledger)
    results = drive(executor.step({"data": batch}), device, alive=port.alive, timeout=60)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engines.rdma.analyzer.capture import UnsupportedGraph
from engines.rdma.analyzer.edges import Protocol
from engines.rdma.arena import Arena
from engines.rdma.device import WORD, Access, ChannelOptions, InvalidDescriptor
from engines.rdma.events import Events
from engines.rdma.metadata import DynamicReceiver, DynamicSender, blocks_bytes
from engines.rdma.placement import ALIGN, StaticReceiver, StaticSender, choose_signal, extent, lay_out
from engines.rdma.tensors import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from engines.rdma.analyzer.edges import Edge
    from engines.rdma.analyzer.plan import Plan
    from engines.rdma.device import Channel, Device, Region
    from engines.rdma.executor import Operation

WIRE_DTYPES = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}
"""Element size -> the type under which dynamic tensors are announced; the plan knows the real one."""


@dataclass
class _Peer:
    """What this machine shares with another."""

    channel: Channel
    events: Events
    senders: list[StaticSender] = field(default_factory=list)
    receivers: list[StaticReceiver] = field(default_factory=list)
    announcer: DynamicSender | None = None
    fetcher: DynamicReceiver | None = None

    def parts(self) -> dict[str, StaticSender | StaticReceiver | DynamicSender | DynamicReceiver]:
        """Everything that makes an offer, and where the answer to it is found in the peer's note."""
        found = {f"to {index}": sender for index, sender in enumerate(self.senders)}
        found |= {f"from {index}": receiver for index, receiver in enumerate(self.receivers)}
        if self.announcer:
            found["to dynamic"] = self.announcer
        if self.fetcher:
            found["from dynamic"] = self.fetcher
        return found


class DevicePort:
    """One machine's end of a plan's edges; see `ports.Port`.

    Args:
        plan: the same on every machine.
        machine: this one.
        device: its memory.
        signal: how a receiver learns that a static value is complete (`placement.choose_signal`).
        dynamic_bytes: registered room for all dynamic values that leave here, and again for all that arrive.

    Raises:
        OutOfMemory: the device has less room than `capacity` says.
        UnsupportedGraph: a dynamic value has elements of more than 8 bytes.
    """

    def __init__(
        self, plan: Plan, machine: str, device: Device, *, signal: str = "auto", dynamic_bytes: int = 1 << 26
    ) -> None:
        self._device, self._machine, self._plan = device, machine, plan
        self._signal = choose_signal(signal, device.traits)
        self._slots: dict[str, memoryview] = {}
        self._posts: dict[tuple[str, str], tuple[StaticSender, int]] = {}
        """(producer, target) -> who writes it, as which of its slots."""
        self._arrivals: dict[int, tuple[StaticReceiver, int]] = {}
        """Edge -> who receives it, as which of its slots."""
        self._regions: list[Region] = []
        self._targets: dict[str, list[StaticSender]] = {}
        edges = [*plan.sent_by(machine), *plan.received_by(machine)]
        names = sorted({edge.target if edge.source == machine else edge.source for edge in edges})
        options = ChannelOptions(depth=max(128, 4 * len(edges)))
        self._peers: dict[str, _Peer] = {}
        for name in names:
            channel = device.channel(options)
            self._peers[name] = _Peer(channel, Events(channel, f"{machine} and {name}"))
        self._place_static()
        self._place_dynamic(dynamic_bytes)

    @property
    def peers(self) -> tuple[str, ...]:
        """Machines to exchange offers with."""
        return tuple(self._peers)

    def offer(self, peer: str) -> str:
        """What another machine must know (JSON)."""
        known = self._peers[peer]
        return json.dumps(
            {"channel": known.channel.address(), **{name: part.offer() for name, part in known.parts().items()}}
        )

    def accept(self, peer: str, text: str) -> None:
        """Take in another machine's offer, and connect.

        Raises:
            InvalidDescriptor: it is malformed.
            ProtocolError: the other machine runs another plan.
        """
        known = self._peers[peer]
        mirrored = {
            name: name.replace("to ", "from ") if name.startswith("to ") else name.replace("from ", "to ")
            for name in known.parts()
        }
        try:
            note = json.loads(text)
        except ValueError as error:
            raise InvalidDescriptor(f"an offer must be JSON: {error}") from None
        wanted = sorted(["channel", *mirrored.values()])
        if not isinstance(note, dict) or sorted(note) != wanted or not all(isinstance(v, str) for v in note.values()):
            raise InvalidDescriptor(f"the offer of {peer!r} must have exactly the texts {', '.join(wanted)}")
        known.channel.connect(note["channel"])
        for name, part in known.parts().items():
            part.accept(note[mirrored[name]])

    def slots(self) -> Mapping[str, memoryview]:
        """As `Port.slots`."""
        return self._slots

    def writable(self, producer: str, step: int) -> bool:
        """As `Port.writable`.

        Raises:
            PeerLost: a receiver is gone.
        """
        if all(sender.released() >= step - 1 for sender in self._targets.get(producer, ())):
            return True
        for peer in self._peers.values():
            peer.events.check()
        return False

    def post(self, edge: Edge, step: int) -> None:
        """As `Port.post`."""
        sender, index = self._posts[edge.producer, edge.target]
        sender.post(index, step)
        self._peers[edge.target].events.check()

    def send(self, edge: Edge, wire: torch.Tensor, step: int) -> Operation[None]:
        """As `Port.send`: one counted copy into registered memory, and an announcement.

        Raises:
            OutOfMemory: `dynamic_bytes` are too few.
        """
        import torch

        announcer = self._peers[edge.target].announcer
        assert announcer is not None
        index = self._dynamic_to[edge.target].index(edge)
        yield from announcer.until_released(index, step - 1)
        if edge.index in self._leaving:
            self._outbox.give(self._leaving.pop(edge.index))
        nbytes = wire.nbytes
        offset = self._leaving[edge.index] = self._outbox.take(max(nbytes, 1), ALIGN)
        if nbytes:
            room = torch.frombuffer(self._out.view[offset : offset + nbytes], dtype=torch.uint8)
            room.view(wire.dtype).view(wire.shape).copy_(wire)
            self._device.ledger.count("dynamic: to registered memory", nbytes)
        tensor = Tensor(edge.producer, tuple(wire.shape), WIRE_DTYPES[edge.itemsize])
        announcer.post(index, step, tensor, offset)

    def receive(self, edge: Edge, step: int) -> Operation[torch.Tensor]:
        """As `Port.receive`."""
        import torch

        if edge.protocol is Protocol.STATIC:
            receiver, index = self._arrivals[edge.index]
            yield from receiver.receive(index, step)
            return _tensor(receiver.tensor(index))
        fetcher = self._peers[edge.source].fetcher
        assert fetcher is not None
        index = self._dynamic_from[edge.source].index(edge)
        yield from fetcher.fetch(index, step)
        return _tensor(fetcher.tensor(index)).view(getattr(torch, edge.dtype)).view(fetcher.metadata(index).shape)

    def release(self, step: int, source: str) -> None:
        """As `Port.release`."""
        peer = self._peers[source]
        for receiver in peer.receivers:
            receiver.release(step)
        if peer.fetcher is not None:
            for index in range(len(self._dynamic_from[source])):
                peer.fetcher.release(index, step)

    def alive(self) -> bool:
        """Whether every peer is still there."""
        return all(peer.channel.alive() for peer in self._peers.values())

    def close(self) -> None:
        """Drop the channels; tensors that lie in registered memory must be gone by now."""
        for peer in self._peers.values():
            for part in peer.parts().values():
                part.close()
            peer.channel.close()
        self._slots.clear()

    def _place_static(self) -> None:
        device, machine, signal = self._device, self._machine, self._signal
        count = dict.fromkeys(self._peers, 0)
        for targets, edges in sorted(self._plan.slot_groups(machine).items()):
            slots = lay_out([edge.nbytes or 0 for edge in edges], signal)
            source = self._allocate(extent(slots), Access.LOCAL_WRITE)
            names = [edge.producer for edge in edges]
            for slot, name in zip(slots, names, strict=True):
                self._slots[name] = source.view[slot.offset : slot.offset + slot.nbytes]
            for target in targets:
                peer = self._peers[target]
                word = self._allocate(WORD, Access.LOCAL_WRITE | Access.REMOTE_WRITE)
                sender = StaticSender(
                    device, peer.channel, peer.events, source=source, word=word, slots=slots, names=names,
                    first=count[target],
                )  # fmt: skip
                count[target] += len(slots)
                peer.senders.append(sender)
                for index, name in enumerate(names):
                    self._posts[name, target] = sender, index
                    self._targets.setdefault(name, []).append(sender)
        for name, peer in self._peers.items():
            self._expect_static(name, peer)

    def _expect_static(self, name: str, peer: _Peer) -> None:
        arriving = {(edge.producer): edge for edge in self._plan.received_by(self._machine) if edge.source == name}
        first = 0
        for targets, edges in sorted(self._plan.slot_groups(name).items()):
            if self._machine not in targets:
                continue
            slots = lay_out([edge.nbytes or 0 for edge in edges], self._signal)
            region = self._allocate(extent(slots), Access.LOCAL_WRITE | Access.REMOTE_WRITE)
            word = self._allocate(WORD, Access.LOCAL_WRITE)
            names = [edge.producer for edge in edges]
            receiver = StaticReceiver(
                self._device, peer.channel, peer.events, region=region, word=word, slots=slots, names=names, first=first
            )
            first += len(slots)
            peer.receivers.append(receiver)
            for index, each in enumerate(names):
                self._arrivals[arriving[each].index] = receiver, index

    def _place_dynamic(self, nbytes: int) -> None:
        plan, machine = self._plan, self._machine
        dynamic = [edge for edge in plan.edges if edge.protocol is Protocol.DYNAMIC]
        wide = [edge.producer for edge in dynamic if edge.itemsize not in WIRE_DTYPES]
        if wide:
            raise UnsupportedGraph(f"dynamic values with elements of more than 8 bytes: {', '.join(wide)}")
        self._dynamic_to = {
            name: [edge for edge in dynamic if (edge.source, edge.target) == (machine, name)] for name in self._peers
        }
        self._dynamic_from = {
            name: [edge for edge in dynamic if (edge.source, edge.target) == (name, machine)] for name in self._peers
        }
        self._leaving: dict[int, int] = {}
        if any(self._dynamic_to.values()):
            self._out = self._allocate(nbytes, Access.LOCAL_WRITE | Access.REMOTE_READ)
            self._outbox = Arena(0, nbytes)
        if any(self._dynamic_from.values()):
            landing, inbox = self._allocate(nbytes, Access.LOCAL_WRITE), Arena(0, nbytes)
        for name, peer in self._peers.items():
            if leaving := self._dynamic_to[name]:
                peer.announcer = DynamicSender(
                    self._device, peer.channel, peer.events, source=self._out,
                    blocks=self._allocate(blocks_bytes(len(leaving)), Access.LOCAL_WRITE),
                    words=self._allocate(len(leaving) * WORD, Access.LOCAL_WRITE | Access.REMOTE_WRITE),
                    names=[edge.producer for edge in leaving],
                )  # fmt: skip
            if arriving := self._dynamic_from[name]:
                peer.fetcher = DynamicReceiver(
                    self._device, peer.channel, peer.events, region=landing, arena=inbox,
                    blocks=self._allocate(blocks_bytes(len(arriving)), Access.LOCAL_WRITE | Access.REMOTE_WRITE),
                    words=self._allocate(len(arriving) * WORD, Access.LOCAL_WRITE),
                    names=[edge.producer for edge in arriving],
                )  # fmt: skip

    def _allocate(self, nbytes: int, access: Access) -> Region:
        region = self._device.allocate(max(nbytes, WORD), access=access, align=ALIGN)
        self._regions.append(region)
        return region


def capacity(plan: Plan, machine: str, dynamic_bytes: int = 1 << 26) -> int:
    """Bytes of arena that a machine's device needs for its port; an upper bound."""
    sent, received = plan.sent_by(machine), plan.received_by(machine)
    total = 0
    for edges in (sent, received):
        static: Sequence[Edge] = [edge for edge in edges if edge.protocol is Protocol.STATIC]
        # Payload, check, sequence and alignment; and a release word for each, as if all went their own way.
        total += sum((edge.nbytes or 0) + 4 * ALIGN for edge in static)
        if len(static) < len(edges):
            total += dynamic_bytes + ALIGN + len(edges) * (blocks_bytes(1) + WORD + 2 * ALIGN)
    return total + ALIGN


def _tensor(memory: memoryview) -> torch.Tensor:
    import torch

    return torch.frombuffer(memory, dtype=torch.uint8) if memory.nbytes else torch.empty(0, dtype=torch.uint8)
