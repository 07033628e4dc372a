"""What each rank does in a real run.

Every payload goes through the same acts: both ranks prepare all transports; every transport moves it once into spoiled
memory and the receiver compares every byte; then the timed steps, transports in turn (A B C A B C ...), so that a slow
minute of the machine meets all of them; then the receiver compares once more what the last timed steps left.

Nothing but a step is timed. What the ranks tell each other around it goes over the control connection.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from engines.rdma import memory, transports
from engines.rdma.session import Session
from engines.rdma.tensors import Payload, fill, first_difference
from engines.rdma.transports.one_sided import OneSidedSender, registered_bytes
from harness.api import HarnessError, Measurement, retain_freed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.rdma.transports.base import Bytes1D, Receiver, Sender
    from harness.api import Plan, RunContext

SMALL = 2**23
"""Payloads below this many bytes are moved several times a sample: one step would time the clock and the scheduler."""
MOST_STEPS = 50
WAIT_SECONDS = 60.0
"""Longest wait for the other rank before the trial fails with what was waited for."""


@dataclass(frozen=True)
class Job:
    """A plan, typed."""

    transports: tuple[str, ...]
    payloads: tuple[Payload, ...]
    allocator: str
    timeout: float = WAIT_SECONDS

    @classmethod
    def from_plan(cls, plan: Plan) -> Job:
        """Read a plan's payload."""
        value = plan.payload
        payloads = tuple(map(Payload.from_json, value["payloads"]))
        return cls(tuple(value["transports"]), payloads, value["allocator"])

    @property
    def largest(self) -> int:
        """Registered bytes the largest payload needs."""
        return max(map(registered_bytes, self.payloads))


def steps_per_sample(payload: Payload) -> int:
    """How many steps one timed sample is made of; its time is divided by them."""
    return max(1, min(MOST_STEPS, SMALL // max(payload.nbytes, 1)))


def run(job: Job, context: RunContext) -> Iterator[Measurement]:
    """Carry the job out on this rank; rank 0 yields.

    Raises:
        HarnessError: a wrong byte, a lost peer, or a broken protocol.
        EnvironmentLacks: a transport's library is absent, or `shm` between two hosts.
    """
    if job.allocator == "retain":
        retain_freed_memory()
    with ExitStack() as stack:
        session = stack.enter_context(Session(context, job.timeout))
        if context.rank == 0:
            yield from _SendingRank(job, context, session, stack).run()
        else:
            _ReceivingRank(job, context, session, stack).run()


class _SendingRank:
    def __init__(self, job: Job, context: RunContext, session: Session, stack: ExitStack) -> None:
        self._job, self._context, self._session = job, context, session
        self._senders: dict[str, Sender] = {}
        for name in job.transports:
            session.hear(f"{name} open")
            self._senders[name] = transports.open_sender(name, session, job.largest)
            stack.callback(self._senders[name].close)

    def run(self) -> Iterator[Measurement]:
        for payload in self._job.payloads:
            yield from self._payload(payload)

    def _payload(self, payload: Payload) -> Iterator[Measurement]:
        sources = self._produce(payload)
        for sender in self._senders.values():
            sender.prepare(payload, sources)
        self._verify(payload)
        mirror = [memory.anonymous(source.nbytes) for source in sources]
        with self._context.span(f"measure {payload.name}"):
            copy_times, times = self._measure(payload, sources, mirror)
        reports = self._verdict(f"report on {payload.name}")
        yield from self._measurements(payload, copy_times, times, reports["copied"])

    def _produce(self, payload: Payload) -> list[Bytes1D]:
        """Fill the payload's tensors where the producing operators would leave them."""
        import numpy as np

        shm = self._senders.get("shm")
        if isinstance(shm, OneSidedSender):
            sources = shm.source_memory(payload)
        else:
            sources = [np.frombuffer(memory.anonymous(t.nbytes), np.uint8) for t in payload.tensors]
        for index, source in enumerate(sources):
            fill(source, seed=self._context.repeat.seed, payload=payload.name, index=index)
        return sources

    def _verify(self, payload: Payload) -> None:
        for name, sender in self._senders.items():
            self._session.hear(f"ready for {name}")
            sender.send(1)
            self._verdict(f"comparison of {payload.name} over {name}")
            sender.ledger.clear()

    def _verdict(self, what: str) -> Any:
        """What the receiver found; it holds its transports open until it knows that its words arrived."""
        verdict = self._session.hear(what)
        self._session.tell("heard")
        _refuse(verdict["wrong"])
        return verdict

    def _measure(
        self, payload: Payload, sources: Sequence[Bytes1D], mirror: Sequence[memoryview]
    ) -> tuple[list[float], dict[str, list[float]]]:
        repeat = self._context.repeat
        count = steps_per_sample(payload)
        copies: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in self._senders}
        for turn in range(repeat.warmup + repeat.runs):
            first = 2 + turn * count
            for name, sender in self._senders.items():
                self._session.hear(f"ready for {name}")
                with self._context.span(f"{name} {payload.name}", stream=name):
                    times[name].append(self._time(partial(_send_all, sender, first, count)) / count)
            copies.append(self._time(partial(_copy_all, sources, mirror, count)) / count)
        return copies[repeat.warmup :], {name: values[repeat.warmup :] for name, values in times.items()}

    def _time(self, action: Any) -> float:
        return self._context.sample(action, warmup=0, runs=1)[0]

    def _measurements(
        self, payload: Payload, copy_times: list[float], times: dict[str, list[float]], copied: dict[str, int]
    ) -> Iterator[Measurement]:
        repeat = self._context.repeat
        steps = steps_per_sample(payload) * (repeat.warmup + repeat.runs)
        yield Measurement("memcpy_bandwidth", [payload.nbytes / t for t in copy_times], {"payload": payload.name})
        for name, sender in self._senders.items():
            labels = {"transport": name, "payload": payload.name}
            yield Measurement("step_time", times[name], labels)
            yield Measurement("bandwidth", [payload.nbytes / t for t in times[name]], labels)
            fractions = [copy / step for copy, step in zip(copy_times, times[name], strict=True)]
            yield Measurement("memcpy_fraction", fractions, labels)
            total = sender.ledger.nbytes + copied[name]
            yield Measurement("copies", total / (steps * payload.nbytes), labels)
            sender.ledger.clear()


class _ReceivingRank:
    def __init__(self, job: Job, context: RunContext, session: Session, stack: ExitStack) -> None:
        self._job, self._context, self._session = job, context, session
        self._receivers: dict[str, Receiver] = {}
        for name in job.transports:
            session.tell(name)
            self._receivers[name] = transports.open_receiver(name, session, job.largest)
            stack.callback(self._receivers[name].close)

    def run(self) -> None:
        for payload in self._job.payloads:
            self._payload(payload)

    def _payload(self, payload: Payload) -> None:
        expected = self._expected(payload)
        for receiver in self._receivers.values():
            receiver.prepare(payload)
        for name, receiver in self._receivers.items():
            receiver.poison()
            self._session.tell("ready")
            receiver.receive(1)
            wrong = _compare(payload, name, receiver, expected)
            self._report({"wrong": wrong})
            receiver.ledger.clear()
        self._serve(payload)
        wrong = next(filter(None, (_compare(payload, n, r, expected) for n, r in self._receivers.items())), "")
        copied = {name: receiver.ledger.nbytes for name, receiver in self._receivers.items()}
        self._report({"wrong": wrong, "copied": copied})
        for receiver in self._receivers.values():
            receiver.ledger.clear()

    def _report(self, verdict: dict[str, Any]) -> None:
        # A transport closed too soon could take its last acknowledgement with it.
        self._session.tell(verdict)
        self._session.hear("word that the report arrived")
        _refuse(verdict["wrong"])

    def _expected(self, payload: Payload) -> list[Bytes1D]:
        """Every byte that must arrive, made here from the seed."""
        import numpy as np

        made = [np.frombuffer(memory.anonymous(tensor.nbytes), np.uint8) for tensor in payload.tensors]
        for index, tensor in enumerate(made):
            fill(tensor, seed=self._context.repeat.seed, payload=payload.name, index=index)
        return made

    def _serve(self, payload: Payload) -> None:
        repeat = self._context.repeat
        count = steps_per_sample(payload)
        for turn in range(repeat.warmup + repeat.runs):
            for receiver in self._receivers.values():
                self._session.tell("ready")
                for step in range(2 + turn * count, 2 + (turn + 1) * count):
                    receiver.receive(step)


def _send_all(sender: Sender, first: int, count: int) -> None:
    for step in range(first, first + count):
        sender.send(step)


def _copy_all(sources: Sequence[Bytes1D], mirror: Sequence[memoryview], count: int) -> None:
    for _ in range(count):
        for source, target in zip(sources, mirror, strict=True):
            target[:] = source.data


def _compare(payload: Payload, transport: str, receiver: Receiver, expected: Sequence[Bytes1D]) -> str:
    """What is wrong with the bytes that arrived, or an empty string."""
    for index, tensor in enumerate(payload.tensors):
        received = receiver.received(index)
        offset = first_difference(received, expected[index])
        if offset is not None:
            return (
                f"wrong byte: transport {transport!r}, payload {payload.name!r}, tensor {tensor.name!r}, "
                f"offset {offset} of {tensor.nbytes}: what arrived is not what was sent"
            )
    return ""


def _refuse(wrong: str) -> None:
    if wrong:
        raise HarnessError(wrong)
