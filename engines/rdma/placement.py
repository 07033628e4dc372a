"""Static placement: every tensor has its slot in the receiver's memory before the first step.

A slot is the payload, zero padding to eight bytes, then what says that it is whole. The paper (section 3.2) has a flag
byte; a *sequence word* with the step's number also tells a stale step from a fresh one::

    tail    | payload ............ | 0-7 zero bytes | u64 sequence |
    debug   | payload ............ | 0-7 zero bytes | u64 CRC-32 of the payload | u64 sequence |
    imm     | payload ............ |                                  and an immediate of 32 bits
            ^ slot start, aligned

`tail` and `debug` are one write that places the sequence last; the receiver polls it. Equal to the step it waits for:
the payload is complete. Smaller: not yet. Larger: the sender ran ahead of the protocol, and what lies in the slot is
not this step's tensor. Where bytes may be placed in any order (adaptive routing, relaxed ordering) a sequence says
nothing about the bytes before it, so `tail` is refused there; `debug` is allowed, because it finds out.

`imm` is one immediate for each tensor, not one for each step: a consumer waits for a tensor, and an immediate at the
end of the step would make the first wait for the last. It costs a receive request each, which the channel's depth
provides for.

Back from the receiver comes one *release word*, the number of the last step whose tensors were consumed, written with
a one-sided write of a single aligned word (there is nothing it could overtake). It is the sender's credit: no slot is
written again before its last content was released.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.rdma.device import WORD, Access, Descriptor, InvalidDescriptor, Signal, read_published
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engines.rdma.device import Channel, Device, Region, Traits
    from engines.rdma.events import Events
    from engines.rdma.executor import Operation
    from engines.rdma.tensors import Tensor

ALIGN = 64
"""Slots start on a cache line, so that no two tails share one with a payload being written."""
STEPS = 1 << 16
"""Step numbers that an immediate can tell apart."""
LOOKS_PER_CHECK = 16
"""Looks at a word in memory for each look at the adapter's completions, which is dearer."""


class ProtocolError(HarnessError):
    """The peer broke the sequence protocol."""


class TornWrite(ProtocolError):
    """A sequence was there before the payload that it vouches for (found by `debug`)."""


class UnsafeSignal(HarnessError):
    """`tail` was asked of a device that may place the end of a write before its beginning."""


class ShapeChanged(HarnessError):
    """A tensor no longer fits the slot that was placed for it."""


class PeerLost(HarnessError):
    """The other rank ended, or said nothing for too long."""


def choose_signal(wanted: str, traits: Traits) -> Signal:
    """The signal mode to use on a device; `auto` is `tail` where order is kept and `imm` elsewhere.

    Raises:
        UnsafeSignal: `tail` was asked for, and the device does not place bytes in order.
    """
    if wanted == "auto":
        return Signal.TAIL if traits.in_order else Signal.IMM
    signal = Signal(wanted)
    if signal is Signal.TAIL and not traits.in_order:
        raise UnsafeSignal(
            f"signal 'tail' needs bytes placed in order, which provider {traits.provider!r} does not promise here; "
            "use 'imm' (or 'debug' to find out)"
        )
    return signal


def immediate(index: int, step: int) -> int:
    """The 32 bits that announce a tensor: its index below, the step's last 16 bits above."""
    return step % STEPS << 16 | index


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies, relative to its region."""

    offset: int
    nbytes: int
    """Payload only."""
    signal: Signal = Signal.TAIL

    @property
    def end(self) -> int:
        """Offset of the first word after the payload, a multiple of eight."""
        return self.offset + -(-self.nbytes // WORD) * WORD

    @property
    def tail(self) -> int:
        """Offset of the sequence word, a multiple of eight."""
        return self.end + (WORD if self.signal is Signal.DEBUG else 0)

    @property
    def span(self) -> int:
        """Bytes from the slot's start to its end: payload, padding, check and sequence."""
        return self.tail + WORD - self.offset

    @property
    def written(self) -> int:
        """Bytes that one write carries: the span, or the payload alone where an immediate follows it."""
        return self.nbytes if self.signal is Signal.IMM else self.span


def lay_out(sizes: Iterable[int], signal: Signal = Signal.TAIL) -> tuple[Slot, ...]:
    """Slots for payloads of these sizes, one after another."""
    slots: list[Slot] = []
    offset = 0
    for nbytes in sizes:
        slot = Slot(offset, nbytes, signal)
        slots.append(slot)
        offset = -(-(slot.offset + slot.span) // ALIGN) * ALIGN
    return tuple(slots)


def extent(slots: Sequence[Slot]) -> int:
    """Bytes of a region that holds these slots."""
    return slots[-1].offset + slots[-1].span if slots else 0


def layout_digest(slots: Sequence[Slot]) -> str:
    """What both ends must agree on before the first write."""
    text = json.dumps([[slot.offset, slot.nbytes, slot.signal] for slot in slots])
    return hashlib.sha256(text.encode()).hexdigest()


def check_shape(declared: Tensor, produced: Tensor) -> None:
    """Refuse a tensor that is not what its static slot was made for.

    Raises:
        ShapeChanged: it is not; a dynamic placement can carry it, a static slot would truncate or pad it.
    """
    if (declared.shape, declared.dtype) != (produced.shape, produced.dtype):
        raise ShapeChanged(
            f"tensor {declared.name!r} was placed statically as {declared.dtype}{list(declared.shape)} and is now "
            f"{produced.dtype}{list(produced.shape)}; place it dynamically"
        )


def read_offer(text: str, wanted: Iterable[str]) -> dict[str, Descriptor | str]:
    """An offer of the other end: a JSON object of descriptors, and of a layout's digest under `layout`.

    Raises:
        InvalidDescriptor: not that, or not with exactly the `wanted` names.
    """
    parts = read_published(text, dict.fromkeys(wanted, str), "an offer")
    return {name: part if name == "layout" else Descriptor.from_json(part) for name, part in parts.items()}


def require(descriptor: Descriptor, *, nbytes: int, access: Access, what: str) -> Descriptor:
    """A peer's descriptor, if it promises enough.

    Raises:
        InvalidDescriptor: its region is too small, or not open for what is to be done.
    """
    if descriptor.nbytes < nbytes:
        raise InvalidDescriptor(f"{what}: the peer offers {descriptor.nbytes} bytes where {nbytes} are needed")
    if Access(descriptor.access) & access != access:
        raise InvalidDescriptor(f"{what}: the peer's memory is not open for {access!r}")
    return descriptor


class StaticSender:
    """Writes tensors of known shape into the slots that the receiver placed for them."""

    def __init__(
        self,
        device: Device,
        channel: Channel,
        events: Events,
        *,
        source: Region,
        word: Region,
        slots: Sequence[Slot],
        names: Sequence[str],
        first: int = 0,
    ) -> None:
        """Prepare to send; memory is registered once and comes from outside.

        Args:
            device: of this rank.
            channel: to the receiver.
            events: of that channel.
            source: registered memory in which the tensors lie, laid out as `slots`.
            word: registered memory for the release word, open to `REMOTE_WRITE`.
            slots: one for each tensor, as at the receiver.
            names: of the tensors, for messages.
            first: index of the first tensor among all of the channel (immediates name tensors by it).
        """
        self._device, self._channel, self._events = device, channel, events
        self._source, self._slots, self._names, self._first = source, tuple(slots), tuple(names), first
        self._signal = slots[0].signal if slots else Signal.TAIL
        # What a step needs of each slot, so that it computes nothing that stays the same.
        self._rows = [(s.offset, s.nbytes, s.end // WORD, s.tail // WORD, s.written) for s in slots]
        self._word, self._released = word, word.view[:WORD].cast("Q")
        self._released[0] = 0
        self._words = source.view[: source.nbytes // WORD * WORD].cast("Q")
        self._target: Descriptor | None = None

    def offer(self) -> str:
        """What the receiver must know (JSON): where the release word lies, and the layout."""
        release = self._device.describe(self._word).to_json()
        return json.dumps({"layout": layout_digest(self._slots), "release": release})

    def accept(self, text: str) -> None:
        """Take in the receiver's offer.

        Raises:
            InvalidDescriptor: it is malformed, or its memory too small.
            ProtocolError: the receiver placed other tensors.
        """
        offer = read_offer(text, ("layout", "slots"))
        check_layout(offer["layout"], self._slots)
        slots = offer["slots"]
        assert isinstance(slots, Descriptor)
        self._target = require(slots, nbytes=extent(self._slots), access=Access.REMOTE_WRITE, what="slots")

    def post(self, index: int, step: int) -> None:
        """Post the write of one tensor; call it only when the step before was released."""
        offset, nbytes, check, tail, written = self._rows[index]
        assert self._target is not None
        imm = None
        if self._signal is Signal.IMM:
            imm = immediate(self._first + index, step)
        else:
            if self._signal is Signal.DEBUG:
                self._words[check] = zlib.crc32(self._source.view[offset : offset + nbytes])
            self._words[tail] = step
        self._channel.write(
            self._source, self._target, offset=offset, at=offset, nbytes=written, imm=imm, signaled=False
        )

    def released(self) -> int:
        """The last step whose tensors the receiver has done with."""
        return self._released[0]

    def credit(self, step: int) -> Operation[None]:
        """Wait until the slots may be written for `step`.

        Raises:
            ProtocolError: the receiver released a step that was not sent.
        """
        return self.until_released(step - 1)

    def until_released(self, step: int) -> Operation[None]:
        """Wait until the receiver has done with `step`; from then on its source may be changed.

        Raises:
            ProtocolError: the receiver released a later step.
        """
        released, what, check = self._released, f"{self._events.what}: release", self._events.check
        looks = 0
        while (found := released[0]) < step:
            if looks % LOOKS_PER_CHECK == 0:
                # Requests beyond the channel's depth are posted as earlier ones are seen to end.
                check()
            looks += 1
            yield what
        if found > step:
            raise ProtocolError(f"{what}: expected step {step}, found {found}")

    def send(self, index: int, step: int) -> Operation[None]:
        """Wait for the slot, and post one tensor."""
        yield from self.credit(step)
        self.post(index, step)
        self._events.check()

    def close(self) -> None:
        """Let go of views into the memory."""
        self._released.release()
        self._words.release()


class StaticReceiver:
    """Owns the slots, and sees when they are full."""

    def __init__(
        self,
        device: Device,
        channel: Channel,
        events: Events,
        *,
        region: Region,
        word: Region,
        slots: Sequence[Slot],
        names: Sequence[str],
        first: int = 0,
    ) -> None:
        """Clear the slots.

        Args:
            device: of this rank.
            channel: to the sender.
            events: of that channel.
            region: registered memory that holds the slots, open to `REMOTE_WRITE`.
            word: registered memory from which release words are written.
            slots: one for each tensor, as at the sender.
            names: of the tensors, for messages.
            first: as of `StaticSender`.
        """
        self._device, self._channel, self._events = device, channel, events
        self._region, self._slots, self._names, self._first = region, tuple(slots), tuple(names), first
        self._signal = slots[0].signal if slots else Signal.TAIL
        self._tails = [slot.tail // WORD for slot in slots]
        self._word, self._release = word, word.view[:WORD].cast("Q")
        self._words = region.view[: region.nbytes // WORD * WORD].cast("Q")
        self._target: Descriptor | None = None
        for tail in self._tails:
            self._words[tail] = 0

    def offer(self) -> str:
        """What the sender must know (JSON): where the slots lie, and the layout."""
        slots = self._device.describe(self._region).to_json()
        return json.dumps({"layout": layout_digest(self._slots), "slots": slots})

    def accept(self, text: str) -> None:
        """Take in the sender's offer.

        Raises:
            InvalidDescriptor: it is malformed.
            ProtocolError: the sender laid out other tensors.
        """
        offer = read_offer(text, ("layout", "release"))
        check_layout(offer["layout"], self._slots)
        word = offer["release"]
        assert isinstance(word, Descriptor)
        self._target = require(word, nbytes=WORD, access=Access.REMOTE_WRITE, what="release word")

    def receive(self, index: int, step: int) -> Operation[None]:
        """Wait for one tensor of a step.

        Memory order: x86 makes stores visible in program order and never moves a load before an older load, so a
        payload read after a sequence was seen is the one it vouches for. Weaker architectures need an acquire load
        here (and a release store by a writer in software); the interpreter's own lock operations between the two
        accesses are full barriers in practice, but nothing in the language promises it.

        Raises:
            ProtocolError: the tensor of a later step lies there.
            TornWrite: the payload is not what its check says (`debug`).
        """
        name = self._names[index]
        if self._signal is Signal.IMM:
            yield from self._announced(index, step)
            return
        words, tail = self._words, self._tails[index]
        while (found := words[tail]) != step:
            if found > step:
                raise ProtocolError(f"{name}: expected sequence {step}, found {found}")
            yield name
        check = self._slots[index].end // WORD
        if self._signal is Signal.DEBUG and words[check] != zlib.crc32(self.tensor(index)):
            raise TornWrite(f"{name}: sequence {step} was there before the payload that it vouches for")

    def _announced(self, index: int, step: int) -> Operation[None]:
        arrival, name, number = self._events.arrival, self._names[index], self._first + index
        allowed = (None, (step - 1) % STEPS)
        while (found := arrival(number)) != step % STEPS:
            if found not in allowed:
                raise ProtocolError(f"{name}: expected an immediate of step {step}, found that of {found}")
            yield name

    def tensor(self, index: int) -> memoryview:
        """The bytes of a tensor: what the consumer computes on."""
        slot = self._slots[index]
        return self._region.view[slot.offset : slot.offset + slot.nbytes]

    def release(self, step: int) -> None:
        """Tell the sender that the step's tensors are consumed, and that it may write the next."""
        assert self._target is not None
        self._release[0] = step
        self._channel.write(self._word, self._target, offset=0, at=0, nbytes=WORD, signaled=False)
        self._events.check()

    def close(self) -> None:
        """Let go of views into the memory."""
        self._release.release()
        self._words.release()


def check_layout(digest: object, slots: Sequence[Slot]) -> None:
    """Refuse to write into slots that were made for other tensors.

    Raises:
        ProtocolError: the other end's digest differs.
    """
    if digest != layout_digest(slots):
        raise ProtocolError("the two ends lay out different tensors, or signal in different ways")
