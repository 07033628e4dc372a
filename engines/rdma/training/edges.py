"""Edges between ranks: one payload that goes one way once a step, over any transport.

The paper cuts the data-flow graph at machine boundaries; each cut is an edge with a send and a receive. In a step of a
parameter server there are two for every worker: the parameters to it, its gradients from it. Sending and receiving are
polling-asynchronous operations whatever the transport: those over a device are so by nature; a transport that blocks
(gRPC, sockets) does it in a thread of its own, as TensorFlow's rendezvous does.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engines.rdma import transports
from engines.rdma.device import Access
from engines.rdma.placement import ALIGN, choose_signal, extent, lay_out
from engines.rdma.transports.base import Sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engines.rdma.device import Device
    from engines.rdma.executor import Operation
    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.transports import Setting
    from engines.rdma.transports.base import Bytes1D, Receiver, ReceivingEnd, Sender, SendingEnd

WAIT_SECONDS = 0.002
"""Longest pause of a rank that waits for its threads, if none of them wakes it."""


class Outgoing(Protocol):
    """The sending side of an edge."""

    def alive(self) -> bool:
        """Whether the other side is still there, as far as can be told."""

    def send(self, step: int) -> Operation[None]:
        """Move every tensor once, and wait for the receiver's word; steps count from 1."""

    def close(self) -> None:
        """Give everything back."""


class Incoming(Protocol):
    """The receiving side of an edge."""

    def alive(self) -> bool:
        """Whether the other side is still there, as far as can be told."""

    def receive(self, step: int) -> Operation[None]:
        """Wait for every tensor of a step."""

    def tensor(self, index: int) -> Bytes1D:
        """A tensor's bytes as the last step left them."""

    def close(self) -> None:
        """Give everything back."""


class DeviceOutgoing:
    """Over a device."""

    def __init__(self, end: SendingEnd) -> None:
        self.send, self.close, self.alive = end.step_operation, end.close, end.channel.alive


class DeviceIncoming:
    """Over a device."""

    def __init__(self, end: ReceivingEnd) -> None:
        self.receive, self.tensor, self.close = end.step_operation, end.received, end.close
        self.alive = end.channel.alive


class Waker:
    """Stands where a rank without a device gives way: sleeps until one of its threads has done something."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wake(self, _done: object = None) -> None:
        """End the pause."""
        self._event.set()

    def idle(self) -> None:
        """Pause."""
        self._event.wait(WAIT_SECONDS)
        self._event.clear()

    @staticmethod
    def clock() -> float:
        """Wall time."""
        return time.perf_counter()


class Background:
    """Does one blocking thing after another; a thread that hangs does not keep the process from ending."""

    def __init__(self, waker: Waker) -> None:
        self._waker = waker
        self._work: queue.SimpleQueue[tuple[Future[None], Callable[[int], None], int] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, action, step = item
            try:
                action(step)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(None)

    def operation(self, action: Callable[[int], None], step: int, what: str) -> Operation[None]:
        """Do `action(step)` in the thread."""
        future: Future[None] = Future()
        future.add_done_callback(self._waker.wake)
        self._work.put((future, action, step))
        while not future.done():
            yield what, step
        future.result()

    def close(self) -> None:
        """End the thread when it has done what it does."""
        self._work.put(None)


class ThreadedOutgoing:
    """Over a transport that blocks."""

    def __init__(self, sender: Sender, session: Session, waker: Waker, what: str) -> None:
        self._sender, self._session, self._thread, self._what = sender, session, Background(waker), what
        self.alive = session.peer_alive

    def send(self, step: int) -> Operation[None]:
        """Send in the thread."""
        return self._thread.operation(self._sender.send, step, self._what)

    def close(self) -> None:
        """Close the transport."""
        self._thread.close()
        self._sender.close()
        self._session.__exit__(None, None, None)


class ThreadedIncoming:
    """Over a transport that blocks."""

    def __init__(self, receiver: Receiver, session: Session, waker: Waker, what: str) -> None:
        self._receiver, self._session, self._thread, self._what = receiver, session, Background(waker), what
        self.tensor, self.alive = receiver.received, session.peer_alive

    def receive(self, step: int) -> Operation[None]:
        """Receive in the thread."""
        return self._thread.operation(self._receiver.receive, step, self._what)

    def close(self) -> None:
        """Close the transport."""
        self._thread.close()
        self._receiver.close()
        self._session.__exit__(None, None, None)


class Live(Sources):
    """Tensors that lie elsewhere in every step: found anew whenever they are sent."""

    def __init__(self, count: int, find: Callable[[int], Bytes1D]) -> None:
        """Name how many there are, and who finds one."""
        super().__init__(())
        self._count, self._find = count, find

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._find(range(self._count)[index])

    def __iter__(self) -> Iterator[Bytes1D]:
        return (self._find(index) for index in range(self._count))


def registered(device: Device, payload: Payload, signal: str) -> Sources:
    """Registered places for a payload's tensors, from which they are sent without a copy."""
    slots = lay_out((tensor.nbytes for tensor in payload.tensors), choose_signal(signal, device.traits))
    access = Access.LOCAL_WRITE | Access.REMOTE_READ
    region = device.allocate(extent(slots), access=access, align=ALIGN)
    whole = np.frombuffer(region.view, np.uint8)
    return Sources([whole[s.offset : s.offset + s.nbytes] for s in slots], region=region, slots=slots)


def together(*operations: Operation[Any]) -> Operation[list[Any]]:
    """Carry several operations out at once; what each returned, in their order."""
    found: list[Any] = [None] * len(operations)
    left = list(enumerate(operations))
    while left:
        waiting, going = [], []
        for index, operation in left:
            try:
                waiting.append(next(operation))
            except StopIteration as end:
                found[index] = end.value
            else:
                going.append((index, operation))
        left = going
        if left:
            yield tuple(waiting)
    return found


class Board(Protocol):
    """Where ranks leave addresses and offers for each other."""

    def post(self, key: str, value: str) -> None:
        """Publish, once."""

    def find(self, key: str) -> str | None:
        """What was published, or None yet."""


@dataclass(frozen=True)
class Link:
    """One side of an edge while it is set up."""

    board: Board
    edge: str
    """Names the edge; the same on both sides."""
    sending: bool

    def swap(self, what: str, mine: str) -> Operation[str]:
        """Publish, and wait for what the other side publishes."""
        sides = ("source", "target") if self.sending else ("target", "source")
        self.board.post(f"{self.edge}/{what}/{sides[0]}", mine)
        while (theirs := self.board.find(f"{self.edge}/{what}/{sides[1]}")) is None:
            yield f"{self.edge}: the {what} of the other side"
        return theirs


def open_outgoing(
    name: str, device: Device, setting: Setting, payload: Payload, sources: Sources, link: Link
) -> Operation[Outgoing]:
    """The sending side of an edge over a device."""
    end = transports.sending_end(name, device, setting)
    end.channel.connect((yield from link.swap("address", end.channel.address())))
    end.accept((yield from link.swap("offer", end.offer(payload, sources))))
    return DeviceOutgoing(end)


def open_incoming(name: str, device: Device, setting: Setting, payload: Payload, link: Link) -> Operation[Incoming]:
    """The receiving side of an edge over a device."""
    end = transports.receiving_end(name, device, setting)
    end.channel.connect((yield from link.swap("address", end.channel.address())))
    end.accept((yield from link.swap("offer", end.offer(payload))))
    return DeviceIncoming(end)
