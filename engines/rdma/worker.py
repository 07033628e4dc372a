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
from engines.rdma.production import Producer, private_sources
from engines.rdma.session import Session
from engines.rdma.tensors import Payload, fill, first_difference
from engines.rdma.transports.base import Setting
from harness.api import HarnessError, Measurement, retain_freed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.rdma.device import Device
    from engines.rdma.transports.base import Bytes1D, Receiver, Sender, Sources
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
    placement: str
    signal: str
    allocator: str
    provider: str = "auto"
    timeout: float = WAIT_SECONDS

    @classmethod
    def from_plan(cls, plan: Plan, *, provider: str = "auto") -> Job:
        """Read a plan's payload."""
        value = plan.payload
        payloads = tuple(map(Payload.from_json, value["payloads"]))
        how = {name: value[name] for name in ("placement", "signal", "allocator")}
        return cls(tuple(value["transports"]), payloads, **how, provider=provider)

    @property
    def setting(self) -> Setting:
        """What every transport is told."""
        return Setting(self.payloads, self.placement, self.signal)


def steps_per_sample(payload: Payload) -> int:
    """How many steps one timed sample is made of; its time is divided by them."""
    return max(1, min(MOST_STEPS, SMALL // max(payload.nbytes, 1)))


def run(job: Job, context: RunContext) -> Iterator[Measurement]:
    """Carry the job out on this rank; rank 0 yields.

    Raises:
        HarnessError: a wrong byte, a lost peer, or a broken protocol.
        EnvironmentLacks: a transport's library is absent, or the hosts have no device of the provider.
    """
    if job.allocator == "retain":
        retain_freed_memory()
    with ExitStack() as stack:
        session = stack.enter_context(Session(context, job.timeout))
        device = _open_device(job, session)
        if context.rank == 0:
            yield from _SendingRank(job, context, session, device, stack).run()
        else:
            _ReceivingRank(job, context, session, device, stack).run()


def _open_device(job: Job, session: Session) -> Device | None:
    """One device for all transports of this rank, as large as they need; None if no transport is over a device."""
    nbytes = transports.capacity(job.transports, job.setting, rank=session.rank)
    return session.open_device(job.provider, nbytes) if nbytes else None


class _SendingRank:
    def __init__(
        self, job: Job, context: RunContext, session: Session, device: Device | None, stack: ExitStack
    ) -> None:
        self._job, self._context, self._session = job, context, session
        self._producer = Producer(device, job.setting) if device else None
        self._copied = dict.fromkeys(job.transports, 0)
        self._senders: dict[str, Sender] = {}
        for name in job.transports:
            session.hear(f"{name} open")
            self._senders[name] = transports.open_sender(name, session, job.setting, device)
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

    def _produce(self, payload: Payload) -> Sources:
        """Fill the payload's tensors where the producing operators would leave them."""
        sources = self._producer.sources(payload) if self._producer else private_sources(payload)
        for index, source in enumerate(sources):
            fill(source, seed=self._context.repeat.seed, payload=payload.name, index=index)
        return sources

    def _verify(self, payload: Payload) -> None:
        for name, sender in self._senders.items():
            self._session.hear(f"ready for {name}")
            sender.send(1)
            self._verdict(f"comparison of {payload.name} over {name}")

    def _verdict(self, what: str) -> Any:
        """What the receiver found; it holds its transports open until it knows that its words arrived."""
        verdict = self._session.hear(what)
        self._session.tell("heard")
        _refuse(verdict["wrong"])
        return verdict

    def _measure(
        self, payload: Payload, sources: Sources, mirror: Sequence[memoryview]
    ) -> tuple[list[float], dict[str, list[float]]]:
        repeat = self._context.repeat
        count = steps_per_sample(payload)
        copies: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in self._senders}
        for turn in range(repeat.warmup + repeat.runs):
            first = 2 + turn * count
            for name, sender in self._senders.items():
                self._session.hear(f"ready for {name}")
                sender.ledger.clear()
                with self._context.span(f"{name} {payload.name}", stream=name):
                    times[name].append(self._time(partial(_send_all, sender, first, count)) / count)
                self._copied[name] += sender.ledger.nbytes
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
        for name in self._senders:
            labels = {"transport": name, "payload": payload.name}
            yield Measurement("step_time", times[name], labels)
            yield Measurement("bandwidth", [payload.nbytes / t for t in times[name]], labels)
            fractions = [copy / step for copy, step in zip(copy_times, times[name], strict=True)]
            yield Measurement("memcpy_fraction", fractions, labels)
            total = self._copied[name] + copied[name]
            yield Measurement("copies", total / (steps * payload.nbytes), labels)
            self._copied[name] = 0


class _ReceivingRank:
    def __init__(
        self, job: Job, context: RunContext, session: Session, device: Device | None, stack: ExitStack
    ) -> None:
        self._job, self._context, self._session = job, context, session
        self._receivers: dict[str, Receiver] = {}
        for name in job.transports:
            session.tell(name)
            self._receivers[name] = transports.open_receiver(name, session, job.setting, device)
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
        copied = self._serve(payload)
        wrong = next(filter(None, (_compare(payload, n, r, expected) for n, r in self._receivers.items())), "")
        self._report({"wrong": wrong, "copied": copied})

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

    def _serve(self, payload: Payload) -> dict[str, int]:
        """Take in the timed steps; bytes that each transport copied."""
        repeat = self._context.repeat
        count = steps_per_sample(payload)
        copied = dict.fromkeys(self._receivers, 0)
        for turn in range(repeat.warmup + repeat.runs):
            for name, receiver in self._receivers.items():
                receiver.ledger.clear()
                self._session.tell("ready")
                for step in range(2 + turn * count, 2 + (turn + 1) * count):
                    receiver.receive(step)
                copied[name] += receiver.ledger.nbytes
        return copied


def _send_all(sender: Sender, first: int, count: int) -> None:
    for step in range(first, first + count):
        sender.send(step)


def _copy_all(sources: Sources, mirror: Sequence[memoryview], count: int) -> None:
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
