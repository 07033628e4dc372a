"""A small one-writer, one-reader queue of control messages in shared memory.

It stands where a verbs provider has SEND and RECV: for descriptors and other control data, never for payloads. The
writer owns `head`, the reader owns `tail` (both count bytes ever written or read), so neither takes a lock.
"""

from __future__ import annotations

from harness.api import HarnessError

HEADER = 16
LENGTH = 4


class Mailbox:
    """A ring of length-prefixed messages; create one view of it on each side."""

    def __init__(self, memory: memoryview) -> None:
        self._counts = memory[:HEADER].cast("Q")
        self._ring = memory[HEADER:]

    def put(self, message: bytes) -> None:
        """Append a message.

        Raises:
            HarnessError: it does not fit beside those not yet read.
        """
        head, tail = self._counts[0], self._counts[1]
        record = len(message).to_bytes(LENGTH, "little") + message
        if head - tail + len(record) > len(self._ring):
            raise HarnessError(f"a control message of {len(message)} bytes does not fit into the peer's mailbox")
        for index, byte in enumerate(record):
            self._ring[(head + index) % len(self._ring)] = byte
        # The count is stored after the bytes it covers; x86 keeps that order.
        self._counts[0] = head + len(record)

    def take(self) -> bytes | None:
        """Remove the oldest message, or None."""
        head, tail = self._counts[0], self._counts[1]
        if head == tail:
            return None
        length = int.from_bytes(self._bytes(tail, LENGTH), "little")
        if length > head - tail - LENGTH:
            raise HarnessError("the mailbox holds a broken message")
        message = self._bytes(tail + LENGTH, length)
        self._counts[1] = tail + LENGTH + length
        return message

    def _bytes(self, start: int, count: int) -> bytes:
        return bytes(self._ring[(start + index) % len(self._ring)] for index in range(count))

    def close(self) -> None:
        """Release the views, so that the memory can be unmapped."""
        self._counts.release()
        self._ring.release()
