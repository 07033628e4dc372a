"""Polling-asynchronous operations: sending and receiving without a thread that blocks on a flag.

The paper (section 4, `RdmaSend` and `RdmaRecv`) lets an operation that finds its flag unset go back to the tail of the
ready queue instead of waiting for it. Here an *operation* is a generator: it looks, and where there is nothing yet it
yields what it waits for. Yielding the same thing again means that it has not got on; that is all an executor must know
to tell a slow peer from a lost one, and a simulation to tell when time may pass.

`drive` carries one operation to its end; an `Executor` holds the operations of one rank; `interleave` runs the
executors of several ranks in one process, which is how simulated ranks meet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from engines.rdma.placement import PeerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from engines.rdma.device import Device

T = TypeVar("T")
Operation = Generator[object, None, T]
"""Yields what it waits for; returns when it is done."""

SPIN_SECONDS = 50e-6
"""Longest time of fruitless looks before giving way: a step that is under way ends within it, and a poller that owned
every processor for longer would starve the writer (or, in a guest, the kernel that does the adapter's work)."""
SPINS = 1000
"""Most fruitless looks before giving way, where looking takes no time (a simulated clock)."""
IDLES_PER_CHECK = 512
"""Times of giving way between two looks at whether the peer still lives (a system call or more)."""


def _always() -> bool:
    return True


def _say(waiting: object) -> str:
    """What is waited for, in words; operations put a counter behind them to show that they get on."""
    while isinstance(waiting, tuple):
        waiting = waiting[0]
    return str(waiting)


def drive(
    operation: Operation[T],
    device: Device,
    *,
    alive: Callable[[], bool] = _always,
    timeout: float,
    spins: int = SPINS,
) -> T:
    """Carry one operation to its end.

    Args:
        operation: what to do.
        device: gives way (`idle`) and tells the time.
        alive: says whether the peer still lives.
        timeout: seconds of `device.clock` without getting on.
        spins: looks between two times of giving way.

    Raises:
        PeerLost: the peer ended, or nothing happened for `timeout`.
    """
    step, idle, clock = operation.__next__, device.idle, device.clock
    waiting: object = None
    idles, since = 0, clock()
    try:
        while True:
            found = step()
            now = clock()
            enough, looks = now + SPIN_SECONDS, 1
            while looks < spins and clock() < enough:
                found = step()
                looks += 1
            if found != waiting:
                waiting, idles, since = found, 0, now
            idle()
            idles += 1
            if idles % IDLES_PER_CHECK == 0:
                if not alive():
                    _last_look(operation, waiting)
                    raise PeerLost(f"{_say(waiting)}: the other rank ended")
                if clock() - since > timeout:
                    raise PeerLost(f"{_say(waiting)}: nothing came within {timeout:g} s")
    except StopIteration as end:
        return end.value
    finally:
        operation.close()


def _last_look(operation: Operation[Any], waiting: object) -> None:
    """Let it get on with what the peer left behind before it ended."""
    while (found := next(operation)) != waiting:
        waiting = found


def together(operations: Iterable[Operation[Any]]) -> Operation[None]:
    """One operation made of several that do not wait for one another."""
    ready = deque((operation, None) for operation in operations)
    moves = 0
    try:
        while ready:
            for _ in range(len(ready)):
                operation, waiting = ready.popleft()
                try:
                    found = next(operation)
                except StopIteration:
                    moves += 1
                    continue
                moves += found != waiting
                ready.append((operation, found))
            if ready:
                yield ready[0][1], moves
    finally:
        for operation, _ in ready:
            operation.close()


@dataclass
class Task:
    """An operation in an executor."""

    operation: Operation[Any]
    alive: Callable[[], bool]
    since: float
    """When it last got on, on the device's clock."""
    waiting: object = None
    done: bool = False
    result: Any = field(default=None, repr=False)


class Executor:
    """The operations of one rank, each looked at in turn."""

    def __init__(
        self, device: Device, *, timeout: float, alive: Callable[[], bool] = _always, spins: int = SPINS
    ) -> None:
        """Start empty.

        Args:
            device: gives way and tells the time.
            timeout: seconds without getting on after which an operation's peer counts as lost.
            alive: says whether the peers still live, for operations that are submitted without a word of their own.
            spins: fruitless looks between two times of giving way.
        """
        self.device = device
        self._timeout, self._alive, self._spins = timeout, alive, spins
        self._ready: deque[Task] = deque()
        self._idles = 0

    def __len__(self) -> int:
        """Operations not yet done."""
        return len(self._ready)

    def submit(self, operation: Operation[Any], *, alive: Callable[[], bool] | None = None) -> Task:
        """Add an operation at the tail; it is first looked at in the next turn."""
        task = Task(operation, alive or self._alive, self.device.clock())
        self._ready.append(task)
        return task

    def turn(self) -> bool:
        """Look at every operation once; one that is not ready goes to the tail.

        Returns:
            Whether any got on.

        Raises:
            HarnessError: what an operation raised; the others stay in the queue.
        """
        moved = False
        for _ in range(len(self._ready)):
            task = self._ready.popleft()
            try:
                found = next(task.operation)
            except StopIteration as end:
                task.done, task.result, moved = True, end.value, True
                continue
            self._ready.append(task)
            if found != task.waiting:
                task.waiting, task.since, moved = found, self.device.clock(), True
        return moved

    def run(self) -> None:
        """Until every operation is done.

        Raises:
            PeerLost: a peer ended, or an operation did not get on for too long; whatever was left is cancelled.
        """
        clock = self.device.clock
        looks, enough = 0, clock() + SPIN_SECONDS
        try:
            while self._ready:
                if self.turn():
                    looks, enough = 0, clock() + SPIN_SECONDS
                    continue
                looks += len(self._ready)
                if looks >= self._spins or clock() >= enough:
                    self.give_way()
                    looks, enough = 0, clock() + SPIN_SECONDS
        except BaseException:
            self.cancel()
            raise

    def give_way(self) -> None:
        """Let others work, and now and then ask whether the peers are still there.

        Raises:
            PeerLost: one is not, or an operation did not get on for too long.
        """
        self.device.idle()
        self._idles += 1
        if self._idles % IDLES_PER_CHECK == 0:
            self.check()

    def check(self) -> None:
        """Look for lost peers.

        Raises:
            PeerLost: with what was waited for.
        """
        now = self.device.clock()
        lost = [task for task in self._ready if not task.alive()]
        if lost:
            while self.turn():
                pass
            for task in lost:
                if not task.done:
                    raise PeerLost(f"{_say(task.waiting)}: the other rank ended")
        for task in self._ready:
            if now - task.since > self._timeout:
                raise PeerLost(f"{_say(task.waiting)}: nothing came within {self._timeout:g} s")

    def cancel(self) -> None:
        """Drop every operation that is not done."""
        while self._ready:
            self._ready.popleft().operation.close()


def interleave(executors: Sequence[Executor]) -> None:
    """Run the executors of several ranks in this thread; only when none got on does anybody give way.

    Raises:
        PeerLost: as of `Executor.run`; whatever was left is cancelled.
    """
    try:
        while any(executors):
            if not any([executor.turn() for executor in executors]):  # noqa: C419 - every rank has its turn
                for executor in executors:
                    executor.give_way()
    except BaseException:
        for executor in executors:
            executor.cancel()
        raise
