"""Where the peer's messages and immediates arrive: the receive queue of a channel, in shared memory.

It belongs to the receiving end. One process writes and one reads, each counts what it ever did in a word that only it
stores to, so neither takes a lock; a count is stored after the bytes it vouches for, and x86 keeps that order
(`channel` says what other processors need). The peer is not trusted: a count or a length that cannot be is an error.

A *mailbox* has as many places as the channel is deep, for messages and for immediates each; a full one is what verbs
calls "receiver not ready", and the sender holds its request back.
"""

from __future__ import annotations

from engines.rdma.device import WORD, ChannelState, HarnessError, InvalidDescriptor

_MAGIC = int.from_bytes(b"HRDMABOX", "little")
# Words of the header; those that different processes store to lie on different cache lines.
_MARK, _PLACES, _MESSAGE_BYTES = 0, 1, 2
STATE, BUSY = 8, 18
_MESSAGES_PUT, _IMMEDIATES_PUT = 16, 17
_MESSAGES_TAKEN, _IMMEDIATES_TAKEN = 24, 25
_HEADER = 256
_STATES = tuple(ChannelState)
READY, ERROR = _STATES.index(ChannelState.READY), _STATES.index(ChannelState.ERROR)
"""In the word `STATE`. An end takes in what comes up to `READY`, which is before it is connected, too."""


class BrokenMailbox(HarnessError):
    """The peer left counts or lengths that no correct peer leaves."""


def extent(places: int, message_bytes: int) -> int:
    """Bytes of a mailbox."""
    return _HEADER + places * (_slot(message_bytes) + WORD)


def _slot(message_bytes: int) -> int:
    """Bytes of one message's place: its length, then the message, whole words."""
    return WORD + -(-message_bytes // WORD) * WORD


class Mailbox:
    """A view of the mailbox that lies in some memory, for either side."""

    def __init__(self, memory: memoryview) -> None:
        """Look at the mailbox in `memory`.

        Raises:
            InvalidDescriptor: there is none, or one that does not fit.
        """
        self._bytes = memory
        self.words = memory.cast("Q")
        # The shape is read once: a peer that changes it later must not move where this side reads.
        self.places = self.words[_PLACES]
        self.message_bytes = self.words[_MESSAGE_BYTES]
        fits = self.places > 0 and extent(self.places, self.message_bytes) <= memory.nbytes
        if self.words[_MARK] != _MAGIC or not fits:
            self.close()
            raise InvalidDescriptor("there is no mailbox in the file at this address")
        self._slot = _slot(self.message_bytes)
        self._immediates = (_HEADER + self.places * self._slot) // WORD

    @classmethod
    def lay_out(cls, memory: memoryview, places: int, message_bytes: int) -> Mailbox:
        """Make an empty mailbox in zeroed memory of `extent` bytes."""
        words = memory.cast("Q")
        words[_MARK], words[_PLACES], words[_MESSAGE_BYTES] = _MAGIC, places, message_bytes
        words.release()
        return cls(memory)

    @property
    def state(self) -> ChannelState:
        """State of the receiving end, as either side last set it."""
        return _STATES[self.words[STATE] % len(_STATES)]

    @state.setter
    def state(self, state: ChannelState) -> None:
        self.words[STATE] = _STATES.index(state)

    @property
    def busy(self) -> bool:
        """Whether the peer is in the middle of an access to this end's device."""
        return bool(self.words[BUSY])

    def room(self) -> bool:
        """Whether a message fits."""
        return self._count(_MESSAGES_PUT, _MESSAGES_TAKEN) < self.places

    def room_for_immediate(self) -> bool:
        """Whether an immediate fits."""
        return self._count(_IMMEDIATES_PUT, _IMMEDIATES_TAKEN) < self.places

    def put(self, message: bytes) -> None:
        """Append a message of at most `message_bytes`; there must be room."""
        put = self.words[_MESSAGES_PUT]
        start = _HEADER + put % self.places * self._slot
        self._bytes[start + WORD : start + WORD + len(message)] = message
        self.words[start // WORD] = len(message)
        self.words[_MESSAGES_PUT] = put + 1

    def take(self) -> bytes | None:
        """Remove the oldest message, or None.

        Raises:
            BrokenMailbox: its length is more than a place holds.
        """
        if not self._count(_MESSAGES_PUT, _MESSAGES_TAKEN):
            return None
        taken = self.words[_MESSAGES_TAKEN]
        start = _HEADER + taken % self.places * self._slot
        length = self.words[start // WORD]
        if length > self.message_bytes:
            raise BrokenMailbox(f"a message of {length} bytes lies in a place of {self.message_bytes}")
        message = bytes(self._bytes[start + WORD : start + WORD + length])
        self.words[_MESSAGES_TAKEN] = taken + 1
        return message

    def put_immediate(self, value: int) -> None:
        """Append a 32-bit word; there must be room."""
        put = self.words[_IMMEDIATES_PUT]
        self.words[self._immediates + put % self.places] = value
        self.words[_IMMEDIATES_PUT] = put + 1

    def take_immediate(self) -> int | None:
        """Remove the oldest immediate, or None.

        Raises:
            BrokenMailbox: counts, or a number, that cannot be.
        """
        if not self._count(_IMMEDIATES_PUT, _IMMEDIATES_TAKEN):
            return None
        taken = self.words[_IMMEDIATES_TAKEN]
        value = self.words[self._immediates + taken % self.places]
        if value >= 2**32:
            raise BrokenMailbox(f"an immediate of more than 32 bits: {value}")
        self.words[_IMMEDIATES_TAKEN] = taken + 1
        return value

    def _count(self, put: int, taken: int) -> int:
        waiting = self.words[put] - self.words[taken]
        if not 0 <= waiting <= self.places:
            raise BrokenMailbox(f"{waiting} arrivals wait in a mailbox of {self.places} places")
        return waiting

    def close(self) -> None:
        """Release the views, so that the memory can be unmapped."""
        self.words.release()
        self._bytes.release()
