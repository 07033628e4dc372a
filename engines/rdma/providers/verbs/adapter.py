"""What is used of verbs, and no more: the line between this provider and a Python binding of libibverbs.

Two bindings lie behind it, `binding_ibverbs` (the `ibverbs` wheel) and `binding_pyverbs` (rdma-core's own, which
distributions package). Numbers that cross the line are those of the verbs ABI, the same in every binding. A call that
fails raises `OSError` with the kernel's `errno`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Opcode(IntEnum):
    """`IBV_WR_*`: what a send work request asks for."""

    WRITE = 0
    WRITE_WITH_IMM = 1
    SEND = 2
    READ = 4


class MemoryAccess(IntFlag):
    """`IBV_ACCESS_*`. Relaxed ordering is left out on purpose: with it no order of bytes is promised."""

    LOCAL_WRITE = 1
    REMOTE_WRITE = 2
    REMOTE_READ = 4


class PortState(IntEnum):
    """`IBV_PORT_*`."""

    NOP = 0
    DOWN = 1
    INIT = 2
    ARMED = 3
    ACTIVE = 4
    ACTIVE_DEFER = 5


class QueuePairState(IntEnum):
    """`IBV_QPS_*`, those that are entered on purpose."""

    INIT = 1
    RTR = 2
    RTS = 3
    ERR = 6


class Attribute(IntFlag):
    """`IBV_QP_*`: which attributes a change of state sets."""

    STATE = 1 << 0
    ACCESS_FLAGS = 1 << 3
    PKEY_INDEX = 1 << 4
    PORT = 1 << 5
    ADDRESS = 1 << 7
    PATH_MTU = 1 << 8
    TIMEOUT = 1 << 9
    RETRIES = 1 << 10
    RNR_RETRIES = 1 << 11
    RECEIVE_SEQUENCE = 1 << 12
    READS = 1 << 13
    RNR_TIMER = 1 << 15
    SEND_SEQUENCE = 1 << 16
    PEER_READS = 1 << 17
    PEER = 1 << 20


TO_INIT = Attribute.STATE | Attribute.PKEY_INDEX | Attribute.PORT | Attribute.ACCESS_FLAGS
TO_RTR = (
    Attribute.STATE
    | Attribute.ADDRESS
    | Attribute.PATH_MTU
    | Attribute.PEER
    | Attribute.RECEIVE_SEQUENCE
    | Attribute.PEER_READS
    | Attribute.RNR_TIMER
)
TO_RTS = (
    Attribute.STATE
    | Attribute.TIMEOUT
    | Attribute.RETRIES
    | Attribute.RNR_RETRIES
    | Attribute.SEND_SEQUENCE
    | Attribute.READS
)
"""What each step of a reliable connection must set, no more and no less."""

RELIABLE_CONNECTED = 2
"""`IBV_QPT_RC`."""
SIGNALED = 2
"""`IBV_SEND_SIGNALED`."""
HOPS = 255
"""Routers that a packet may pass."""
RNR_TIMER = 12
"""0.64 ms: how long the peer is asked to wait before it retries for want of a receive."""
ETHERNET = 2
"""`IBV_LINK_LAYER_ETHERNET`."""
RECEIVED_WITH_IMM = 129
"""`IBV_WC_RECV_RDMA_WITH_IMM`: a receive was used up by the immediate of a write."""


class WorkRequest(NamedTuple):
    """One entry of the send queue."""

    number: int
    """Comes back in the `Finished` of this request."""
    opcode: Opcode
    address: int
    """Where the local bytes start; not looked at when there are none."""
    nbytes: int
    lkey: int
    remote: int
    rkey: int
    imm: int
    signaled: bool


class Finished(NamedTuple):
    """One completion-queue entry."""

    number: int
    status: int
    """`IBV_WC_*`; 0 is success. Of a failed request only `number` and this are defined."""
    opcode: int
    nbytes: int
    imm: int


@dataclass(frozen=True)
class Port:
    """What a port says of itself."""

    state: int
    lid: int
    mtu: int
    """Active MTU as an `IBV_MTU_*` code: 1 is 256 bytes, 5 is 4096."""
    largest_message: int
    link_layer: int


@dataclass(frozen=True)
class Limits:
    """What an adapter has room for."""

    work_requests: int
    """Entries of one work queue."""
    completions: int
    """Entries of one completion queue."""
    reads: int
    """RDMA reads that one queue pair may have under way."""
    regions: int
    queue_pairs: int


@dataclass(frozen=True)
class Path:
    """How to reach the peer's queue pair."""

    queue_pair: int
    sequence: int
    """Packet sequence number that the peer starts with."""
    mtu: int
    reads: int
    """RDMA reads that the peer may have under way here."""
    gid: bytes
    lid: int
    gid_index: int
    """Own entry of the GID table."""
    port: int
    is_global: bool
    """Whether packets carry the global header: always on Ethernet."""


@dataclass(frozen=True)
class Patience:
    """How long a queue pair keeps trying."""

    timeout: int
    retries: int
    rnr_retries: int


class Memory(Protocol):
    """A memory region."""

    lkey: int
    rkey: int

    def close(self) -> None:
        """Deregister it."""


class QueuePair(Protocol):
    """A reliable-connected queue pair with one completion queue for both directions."""

    number: int

    def initialize(self, port: int, access: MemoryAccess) -> None:
        """RESET -> INIT; from here on receives may be posted."""

    def ready_to_receive(self, path: Path) -> None:
        """INIT -> RTR."""

    def ready_to_send(self, sequence: int, patience: Patience, reads: int) -> None:
        """RTR -> RTS, starting with packet `sequence` and with at most `reads` RDMA reads under way."""

    def fail(self) -> None:
        """Any state -> ERR: whatever is outstanding is flushed."""

    def post(self, request: WorkRequest) -> None:
        """Append to the send queue."""

    def post_receive(self, number: int, address: int, nbytes: int, lkey: int) -> None:
        """Append a buffer to the receive queue."""

    def poll(self, most: int) -> Sequence[Finished]:
        """Up to `most` entries of the completion queue; never waits."""

    def close(self) -> None:
        """Destroy the queue pair and its completion queue."""


class Adapter(Protocol):
    """An opened RDMA device with a protection domain."""

    name: str
    limits: Limits

    def port(self, number: int) -> Port:
        """Ask a port for its attributes."""

    def gid(self, port: int, index: int) -> bytes:
        """The 16 bytes of an entry of the port's GID table."""

    def register(self, address: int, nbytes: int, access: MemoryAccess) -> Memory:
        """Make `nbytes` of this process's memory at `address` known to the adapter."""

    def queue_pair(self, sends: int, receives: int) -> QueuePair:
        """A queue pair with room for so many outstanding requests, and for the completions of all of them."""

    def close(self) -> None:
        """Give the protection domain and the device back; regions and queue pairs must be closed before."""


class Binding(Protocol):
    """A Python binding of libibverbs."""

    name: str

    def devices(self) -> Sequence[str]:
        """Names of the RDMA devices of this machine."""

    def open(self, device: str) -> Adapter:
        """Open one of them."""
