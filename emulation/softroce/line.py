"""The host's side of a guest's control channel: requests with their answers, and commands with their ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLong
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emulation.softroce.failure import GuestError, GuestLost

if TYPE_CHECKING:
    import socket

ANSWER = 30.0
"""Seconds a guest may take to answer what it can answer at once: it is emulated, and its processors may be busy."""


@dataclass(frozen=True)
class Ended:
    """How a command in a guest ended."""

    code: int
    """Its exit code, or minus the signal that ended it."""
    output: str
    """The end of what it printed, a mebibyte at most; empty where it printed into a file of the caller's."""
    errors: str
    timed_out: bool
    """Whether it was killed for running longer than it was given."""
    out_of_memory: bool
    """Whether the guest's kernel killed something of it for want of memory."""
    seconds: float
    """By the guest's clock."""


class Task:
    """A command that runs in a guest."""

    def __init__(self, line: Line, number: int, ending: Future[dict[str, Any]]) -> None:
        self._line = line
        self._number = number
        self._ending = ending

    @property
    def over(self) -> bool:
        """Whether it has ended, or its guest is lost."""
        return self._ending.done()

    def wait(self, timeout: float | None = None) -> Ended:
        """How it ended.

        Args:
            timeout: seconds to wait for its end.

        Raises:
            TimeoutError: it runs still.
            GuestLost: its guest is gone.
            GuestError: it could not be started.
        """
        answer = _result(self._ending, timeout, "the command")
        return Ended(**{name: answer[name] for name in Ended.__dataclass_fields__})

    def signal(self, number: int) -> None:
        """Send a signal to it and to everything it started.

        Raises:
            GuestLost: the guest does not answer.
        """
        self._line.ask("signal", task=self._number, number=int(number))


class Line:
    """A connected stream to a guest's agent.

    Args:
        stream: connected; closed by `close`.
        name: of the guest, for messages.
    """

    def __init__(self, stream: socket.socket, name: str) -> None:
        self._stream = stream
        self._name = name
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._lost = ""
        self._reader = threading.Thread(target=self._read, name=f"softroce {name}", daemon=True)
        self._reader.start()

    @property
    def lost(self) -> str:
        """Why the guest is lost; empty while it is not."""
        return self._lost

    def ask(self, do: str, timeout: float = ANSWER, **content: Any) -> dict[str, Any]:
        """A request's answer.

        Raises:
            GuestLost: the guest is gone, or did not answer in time.
            GuestError: the guest could not do it.
        """
        _, future = self._send(do, content)
        try:
            return _result(future, timeout, do)
        except TimeoutError:
            raise GuestLost(f"{self._name} did not answer {do!r} within {timeout:g} s") from None

    def start(self, **content: Any) -> Task:
        """Start a command.

        Raises:
            GuestLost: the guest is gone.
        """
        number, future = self._send("run", content)
        return Task(self, number, future)

    def close(self, why: str = "closed") -> None:
        """Hang up; whoever waits for an answer gets GuestLost."""
        self._give_up(why)
        with contextlib.suppress(OSError):
            self._stream.shutdown(2)
        self._reader.join(5)
        self._stream.close()

    def _send(self, do: str, content: dict[str, Any]) -> tuple[int, Future[dict[str, Any]]]:
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._lost:
                raise GuestLost(f"{self._name} is gone: {self._lost}")
            number = next(self._numbers)
            self._waiting[number] = future
            try:
                self._stream.sendall(json.dumps({"id": number, "do": do, **content}).encode() + b"\n")
            except OSError as error:
                self._lost = f"its control channel broke ({error.strerror})"
                raise GuestLost(f"{self._name} is gone: {self._lost}") from error
        return number, future

    def _read(self) -> None:
        pending = b""
        try:
            while received := self._stream.recv(1 << 16):
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    self._deliver(json.loads(line))
            self._give_up("its machine ended")
        except (OSError, ValueError) as error:
            self._give_up(f"its control channel broke ({error})")

    def _deliver(self, answer: dict[str, Any]) -> None:
        with self._lock:
            future = self._waiting.pop(answer["id"], None)
        if future is None:
            return
        if "error" in answer:
            future.set_exception(GuestError(f"{self._name}: {answer['error']}"))
        else:
            future.set_result(answer)

    def _give_up(self, why: str) -> None:
        with self._lock:
            self._lost = self._lost or why
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(GuestLost(f"{self._name} is gone: {self._lost}"))


def _result(future: Future[dict[str, Any]], timeout: float | None, what: str) -> dict[str, Any]:
    try:
        return future.result(timeout)
    except WaitedTooLong:
        raise TimeoutError(f"{what} was not over after {timeout:g} s") from None
