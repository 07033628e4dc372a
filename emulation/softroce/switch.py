"""A switch between more than two guests: a thread that passes their frames on.

Frames come as QEMU's stream devices send them, each behind its length in four bytes, most significant first. Two
guests need no switch: the ends of one socket pair are their wire.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

ROOM = 4 << 20
"""Bytes that wait for a guest that does not read; what comes on top is dropped, as a real switch does."""


class Port:
    """One guest's side of the switch."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.arrived = bytearray()
        self.leaving = bytearray()

    def frames(self) -> list[bytes]:
        """The whole frames that have arrived, each with its length before it."""
        found = []
        start = 0
        while len(self.arrived) - start >= 4:
            length = 4 + int.from_bytes(self.arrived[start : start + 4], "big")
            if len(self.arrived) - start < length:
                break
            found.append(bytes(self.arrived[start : start + length]))
            start += length
        del self.arrived[:start]
        return found


class Switch:
    """Joins any number of guests; learns which address is behind which port.

    Args:
        ports: how many guests.
    """

    def __init__(self, ports: int) -> None:
        pairs = [socket.socketpair() for _ in range(ports)]
        self.ends = tuple(theirs for _, theirs in pairs)
        """The guests' ends."""
        self._ports = [Port(ours) for ours, _ in pairs]
        self._where: dict[bytes, Port] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        for port in self._ports:
            port.stream.setblocking(False)
            self._selector.register(port.stream, selectors.EVENT_READ, port)
        self._thread = threading.Thread(target=self._serve, name="softroce switch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Unplug every guest."""
        self._wake.close()
        self._thread.join(5)
        for stream in (self._woken, *self.ends, *(p.stream for p in self._ports)):
            stream.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, events in self._selector.select():
                if key.data is None:
                    return
                if events & selectors.EVENT_READ:
                    self._receive(key.data)
                if events & selectors.EVENT_WRITE:
                    self._flush(key.data)

    def _receive(self, port: Port) -> None:
        try:
            received = port.stream.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._unplug(port)
            return
        port.arrived += received
        for frame in port.frames():
            self._pass_on(port, frame)

    def _pass_on(self, source: Port, frame: bytes) -> None:
        target, sender = frame[4:10], frame[10:16]
        self._where[sender] = source
        known = None if target[:1] and target[0] & 1 else self._where.get(target)
        for port in [known] if known else [p for p in self._ports if p is not source]:
            if port is not source and len(port.leaving) + len(frame) <= ROOM:
                port.leaving += frame
                self._flush(port)

    def _flush(self, port: Port) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                sent = port.stream.send(port.leaving) if port.leaving else 0
            except BlockingIOError:
                raise
            except OSError:
                self._unplug(port)
                return
            del port.leaving[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if port.leaving else 0)
        with contextlib.suppress(KeyError):
            self._selector.modify(port.stream, events, port)

    def _unplug(self, port: Port) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(port.stream)
        if port in self._ports:
            self._ports.remove(port)
            port.stream.close()
