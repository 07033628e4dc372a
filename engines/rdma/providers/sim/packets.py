"""What travels between adapters: bursts of packets one way, acknowledgements the other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.rdma.device import Status


class Kind(StrEnum):
    """What a burst is part of."""

    WRITE = "write"
    SEND = "send"
    READ = "read request"
    RESPONSE = "read response"


class Answer(StrEnum):
    """What the responder says about packets."""

    ACK = "ack"
    SEQUENCE = "sequence error"
    """A packet is missing: go back to it."""
    NOT_READY = "receiver not ready"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Address:
    """A queue pair of an adapter."""

    adapter: str
    number: int


@dataclass(frozen=True, slots=True)
class Burst:
    """Consecutive packets of one message, all of a full MTU but perhaps the last."""

    kind: Kind
    source: Address
    target: Address
    psn: int
    """Packet sequence number of the first."""
    mtu: int
    data: bytes
    offset: int
    """Of `data` in the message, bytes."""
    total: int
    """Bytes of the whole message; of a read request, those asked for from `offset` on."""
    address: int = 0
    """Where the message begins in the target's memory."""
    rkey: int = 0
    last: bool = True
    """Whether the message ends with this burst."""
    imm: int | None = None
    acknowledge: bool = True
    """Whether an acknowledgement is asked for."""

    @property
    def packets(self) -> int:
        """On the wire."""
        return max(1, -(-len(self.data) // self.mtu))

    @property
    def psns(self) -> int:
        """Sequence numbers taken; a read request takes those of the response."""
        return max(1, -(-self.total // self.mtu)) if self.kind is Kind.READ else self.packets

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(packets, payload bytes of each): the full ones, then a shorter last one."""
        full, rest = divmod(len(self.data), self.mtu)
        if not full:
            return ((1, rest),)
        return ((full, self.mtu), (1, rest)) if rest else ((full, self.mtu),)

    def split(self) -> Iterator[Burst]:
        """The same as bursts of one packet."""
        count = self.packets
        for number in range(count):
            yield self.part(number, number + 1)

    def part(self, first: int, stop: int) -> Burst:
        """Only these packets of it."""
        count = self.packets
        if (first, stop) == (0, count):
            return self
        ends = stop == count
        return replace(
            self,
            psn=self.psn + first,
            data=self.data[first * self.mtu : stop * self.mtu],
            offset=self.offset + first * self.mtu,
            last=self.last and ends,
            imm=self.imm if ends else None,
            acknowledge=self.acknowledge and ends,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """An acknowledgement, positive or negative."""

    answer: Answer
    source: Address
    target: Address
    psn: int
    """Of an acknowledgement the last packet taken; of any other answer, the packet it is about."""
    status: Status | None = None
    """What the requester's completion says, of an error."""
    wait: int = 0
    """Picoseconds to wait before the packet is sent again, of a receiver not ready."""


@dataclass(slots=True)
class Flight:
    """A burst between two adapters, with what the sender's stages were doing when it left."""

    burst: Burst
    free: tuple[int, ...] = field(default=())
    """When each of the sender's stages was free for it; empty of a packet that travels alone."""
