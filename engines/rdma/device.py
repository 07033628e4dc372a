"""The interface of a memory-transfer device: memory first, messages second.

The paper's abstraction (arXiv 1805.08430): a remote machine is a *device* whose memory one allocates, reads and
writes. Names follow verbs:

============  =========================================  ======================================
here          verbs                                      shared memory
============  =========================================  ======================================
`Region`      memory region (address, lkey, rkey)        a stretch of a shared segment
`Descriptor`  address + rkey, sent out of band           the same, plus where the segment is
`Channel`     reliable-connected queue pair              a mapping of the peer's segment
`Ticket`      work request id                            the same
`Completion`  completion-queue entry                     the same, with the same status words
============  =========================================  ======================================

A descriptor comes from another process, so it is checked like any input: types, signs, and who made it. Whether an
access is *allowed* is the target's word, never the descriptor's: an RDMA adapter looks the rkey up in the target's
table, and the other providers do the same in software.

No method waits for the peer. Code that waits does it as a *polling-asynchronous* operation (`executor`): it looks, and
where there is nothing yet it gives way - to other operations first, then through `Device.idle`, which yields the
processor on real providers and advances virtual time on the simulated one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from enum import IntFlag, StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.rdma.copies import CopyLedger

WORD = 8
"""Bytes of a sequence word."""


class Access(IntFlag):
    """What may be done to a region; its owner may always read it."""

    LOCAL_WRITE = 1
    REMOTE_READ = 2
    REMOTE_WRITE = 4


class Status(StrEnum):
    """How a work request ended; the names of verbs, in words.

    Providers may name one mistake differently (the InfiniBand specification leaves room, and Soft-RoCE uses it);
    `conformance` holds the set that each provider may answer with.
    """

    SUCCESS = "success"
    LOCAL_LENGTH = "local length error"
    """A message longer than the buffer that was posted for it; seen by the receiver."""
    LOCAL_OPERATION = "local operation error"
    LOCAL_PROTECTION = "local protection error"
    """The local side of the request lies outside its region, or lacks the access."""
    REMOTE_INVALID = "remote invalid request error"
    """The peer had posted too small a buffer for the message."""
    REMOTE_ACCESS = "remote access error"
    """Wrong key, outside the remote region, or not allowed there."""
    REMOTE_OPERATION = "remote operation error"
    STALE_REGION = "stale region"
    """The descriptor is from before the peer's last reset; nothing was written."""
    RETRY_EXCEEDED = "retry exceeded"
    """No acknowledgement after every retry: the peer is gone."""
    RECEIVER_NOT_READY = "receiver not ready retry exceeded"
    """The peer posted no buffer for a message, for all retries."""
    FLUSHED = "flushed"
    """Posted to a channel that had already failed, or outstanding when it did."""


class Operation(StrEnum):
    """What was asked."""

    WRITE = "write"
    READ = "read"
    SEND = "send"


class Signal(StrEnum):
    """How a receiver learns that a write is complete (see `placement`)."""

    TAIL = "tail"
    """A sequence word at the end of the same write; only where bytes are placed in increasing address order."""
    IMM = "imm"
    """Write with immediate: the receiver's completion queue says so; the specification guarantees it anywhere."""
    DEBUG = "debug"
    """`tail`, plus a CRC-32 over the payload that the receiver checks."""


class ChannelState(StrEnum):
    """Life of a channel."""

    UNCONNECTED = "unconnected"
    READY = "ready"
    ERROR = "error"
    """A request failed; everything outstanding and everything posted ends `FLUSHED`."""
    CLOSED = "closed"


class Unavailable(StrEnum):
    """Why a provider cannot be used here."""

    LIBRARY = "no library"
    KERNEL = "no kernel support"
    DEVICE = "no device"
    PORT = "port down"
    GID = "no RoCEv2 address"
    MEMORY = "memory cannot be registered"
    HOST = "not on one host"
    PEER = "peer cannot be reached"


Ticket = int
"""Names one posted request; tickets of a channel rise."""


@dataclass(frozen=True)
class Completion:
    """The end of a request."""

    ticket: Ticket
    operation: Operation
    status: Status
    nbytes: int


@dataclass(frozen=True)
class Descriptor:
    """What a peer must know to reach a region; JSON-safe."""

    device: str
    region: int
    epoch: int
    address: int
    nbytes: int
    rkey: int
    access: int

    @classmethod
    def of(cls, region: Region, device: str) -> Descriptor:
        """What a peer must know to reach a region of the device with this uid."""
        return cls(device, region.number, region.epoch, region.offset, region.nbytes, region.rkey, int(region.access))

    def to_json(self) -> str:
        """As published on the rendezvous."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Descriptor:
        """Read a descriptor that another process published.

        Raises:
            InvalidDescriptor: not JSON, not exactly the fields, a wrong type, or a negative number.
        """
        kinds = {field.name: str if field.name == "device" else int for field in fields(cls)}
        return cls(**read_published(text, kinds, "a descriptor"))


def read_published(text: str, kinds: Mapping[str, type], what: str) -> dict[str, Any]:
    """Read a JSON object that another process published; it is checked like any input.

    Args:
        text: as received.
        kinds: its fields, exactly; `int` stands for a 64-bit unsigned number.
        what: for the error message: `a descriptor`.

    Raises:
        InvalidDescriptor: not JSON, not exactly the fields, a wrong type, a number that is negative or too large.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidDescriptor(f"{what} must be JSON: {error}") from None
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise InvalidDescriptor(f"{what} must have exactly the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        found = value[name]
        if not isinstance(found, kind) or isinstance(found, bool):
            raise InvalidDescriptor(f"{name!r} of {what} must be {kind.__name__}, got {type(found).__name__}")
        if isinstance(found, int) and not 0 <= found < 2**64:
            raise InvalidDescriptor(f"{name!r} of {what} must be a 64-bit unsigned number")
    return value


class ProviderUnavailable(HarnessError):
    """This provider cannot be used here, for the typed reason given."""

    def __init__(self, reason: Unavailable, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class InvalidDescriptor(HarnessError):
    """A descriptor or an address that no device would publish."""


class WrongProcess(HarnessError):
    """The device was opened by another process: this one is a forked child of its owner."""


class OutOfMemory(HarnessError):
    """The registered arena is too small for what was asked."""


@dataclass(frozen=True)
class Region:
    """Registered memory of this process."""

    number: int
    offset: int
    """Where it starts, in the provider's own address space; what `Descriptor.address` says."""
    nbytes: int
    lkey: int
    rkey: int
    access: Access
    epoch: int
    view: memoryview
    """The bytes themselves (format `B`), usable by numpy and torch without a copy."""


def check_buffer(buffer: memoryview) -> None:
    """Refuse what is not one stretch of writable memory.

    Raises:
        ProviderUnavailable: it has gaps, or cannot be written.
    """
    if not buffer.c_contiguous:
        raise ProviderUnavailable(
            Unavailable.MEMORY, "memory with gaps cannot be registered; make the tensor contiguous first"
        )
    if buffer.readonly:
        raise ProviderUnavailable(Unavailable.MEMORY, "read-only memory cannot be registered")


def check_immediate(imm: int) -> None:
    """Refuse what does not fit where an immediate travels.

    Raises:
        ValueError: not a 32-bit unsigned number.
    """
    if not 0 <= imm < 2**32:
        raise ValueError(f"an immediate is a 32-bit unsigned number, got {imm}")


@dataclass(frozen=True)
class Traits:
    """What a device is, as far as its user must know."""

    provider: str
    """`shm`, `verbs`, `sim`."""
    in_order: bool
    """Whether the bytes of one write become visible in increasing address order, so that `tail` may be used."""
    largest_write: int
    """Bytes of the longest single work request; longer writes and reads are cut into several by the provider."""
    detail: Mapping[str, str] = field(default_factory=dict)
    """For records: device name, link layer, GID, path MTU, binding."""


@dataclass
class Counters:
    """What a device has done since it was opened."""

    writes: int = 0
    reads: int = 0
    sends: int = 0
    receives: int = 0
    """Messages and immediates taken in."""
    written_bytes: int = 0
    read_bytes: int = 0
    registrations: int = 0
    """Ever made; constant after the warm-up of a well-behaved job."""
    registered_bytes: int = 0
    """At the moment."""
    wire: Mapping[str, int] = field(default_factory=dict)
    """The adapter's own counters by their own names (`rdma statistic`): packets, duplicates, retransmissions."""


@dataclass(frozen=True)
class ChannelOptions:
    """Attributes of a queue pair; a provider to which one means nothing ignores it."""

    depth: int = 128
    """Work requests outstanding in each direction; more are held back by the provider, never refused or dropped."""
    message_bytes: int = 4096
    """Room for one message of the peer's."""
    timeout: int = 18
    """Local acknowledgement timeout exponent: 4.096 us x 2^timeout; 0 waits for ever."""
    retries: int = 7
    """Retransmissions before `RETRY_EXCEEDED`."""
    rnr_retries: int = 7
    """Retries when the peer has no buffer posted before `RECEIVER_NOT_READY`; 7 is for ever."""


class Channel(Protocol):
    """A reliable connection to one peer's memory.

    Both ends are made with `Device.channel`, exchange `address()` out of band, and `connect`. Posting never blocks and
    never raises for what the peer did wrong: every signalled request ends in one `Completion`, an unsignalled one only
    if it fails. After the first failure the channel is in error and whatever is outstanding or posted ends `FLUSHED`,
    until `reset` and a new `connect` with the peer's new address.
    """

    state: ChannelState

    def address(self) -> str:
        """What the peer must know to connect to this end (JSON); another one after every `reset`."""

    def connect(self, address: str) -> None:
        """Join with the peer's end.

        Raises:
            ProviderUnavailable: it cannot be reached from here.
            InvalidDescriptor: `address` is malformed, or names another kind of device.
        """

    def write(
        self,
        source: Region,
        target: Descriptor,
        *,
        offset: int,
        at: int,
        nbytes: int,
        imm: int | None = None,
        signaled: bool = True,
    ) -> Ticket:
        """Copy `nbytes` from `offset` in `source` to `at` in `target`.

        Writes of a channel are placed in the order posted. Where `Traits.in_order` holds, the last aligned word of a
        write is placed last. `imm` (32 bits) is handed to the peer's `arrived` after all bytes are in place; it may
        come with no bytes at all.
        """

    def read(self, target: Region, source: Descriptor, *, offset: int, at: int, nbytes: int) -> Ticket:
        """Copy `nbytes` from `at` in the peer's `source` to `offset` in `target`."""

    def send(self, message: bytes | memoryview) -> Ticket:
        """Post a message of at most the peer's `message_bytes`; for control data and RPC, not for tensors.

        It is copied into registered memory, at the latest when its turn comes; until then it must not change.
        """

    def receive(self) -> bytes | None:
        """The next message of the peer, or None."""

    def arrived(self) -> int | None:
        """The next immediate of the peer, or None; order is that of the peer's writes."""

    def poll(self, most: int = 64) -> Sequence[Completion]:
        """Up to `most` completions, oldest first; an empty sequence if there is none."""

    def alive(self) -> bool:
        """Whether the peer is still there, as far as this end can tell without a transfer."""

    def reset(self) -> None:
        """End whatever is outstanding (`FLUSHED`, to be polled), leave the error state, and become `UNCONNECTED`."""

    def close(self) -> None:
        """Drop the connection; what the peer allocated stays valid for it."""


class Device(Protocol):
    """One process's memory, open to its peers."""

    uid: str
    traits: Traits
    ledger: CopyLedger
    """Where code counts the payload bytes that it copies; the simulated device charges time for them."""

    def allocate(self, nbytes: int, *, access: Access, align: int = 64) -> Region:
        """A region of the arena, registered, zeroed.

        Raises:
            OutOfMemory: with how much is short.
        """

    def register(self, buffer: memoryview, *, access: Access) -> Region:
        """Register memory that already exists, in place.

        Raises:
            ProviderUnavailable: the provider cannot reach this memory, or may lock no more.
        """

    def describe(self, region: Region) -> Descriptor:
        """What a peer must know to reach `region`."""

    def channel(self, options: ChannelOptions | None = None) -> Channel:
        """An unconnected end."""

    def idle(self) -> None:
        """Give way: called by a poller that found nothing to do."""

    def clock(self) -> float:
        """Seconds on the clock that this device's transfers take place in: wall time, or virtual time."""

    def counters(self) -> Counters:
        """What it has done so far."""

    def reset(self) -> None:
        """Free and unregister everything; descriptors given out before are stale from now on (a new epoch)."""

    def close(self) -> None:
        """Give the memory back."""
