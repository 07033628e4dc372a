"""What a step would take on a cluster one does not have: the plan as workload graphs.

Three models, all from the profile's figures (`emulation.profile.Software`, links, memory):

one-sided
    per tensor: `one_sided.post` on the sender, then the bytes on the adapter's link, which the processors have no
    part in; at the end `one_sided.completion` until the poller has seen the last sequence word, and the same way back
    for the acknowledgement. On one host the "adapter" is the sender's own core, copying at `memcpy`.
RPC
    per tensor: `rpc.serialise` on the sender, the bytes on the wire no faster than `rpc.stream`, with
    `rpc.per_message` for every frame, then `rpc.serialise` on the receiver. Unary calls pay `rpc.per_call` each, and
    a window of them is under way; a stream pays `rpc.stream_message` once, and packing one message overlaps sending
    the one before.
TCP
    `tcp.per_message` each way (one wake-up of a sleeping reader; messages behind it find the reader awake), and the
    bytes no faster than `tcp.stream`. Two tensors more or less cost nothing.

TCP and RPC lose `tcp.efficiency` to headers on network links.

Two things follow from where the bytes and the threads are. A copy within one host runs at the rate `memcpy` has for
the *whole payload*, not for one tensor: by the time a tensor comes round again, the others have driven it from the
cache. And overlapped RPCs keep four threads busy (packing, sending, receiving, unpacking); with both ranks on one host
they share its cores, so that no more than ``cores / (2 / stream + 2 / serialise)`` bytes per second get through.

What is not modelled: slow start, losses, other users of the processors, caches that make medium-sized messages cheaper
to pack, and what the other transports of an interleaved run leave in the caches.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from emulation.graph import Workload
from engines.rdma.device import WORD
from engines.rdma.tensors import Payload, Tensor
from engines.rdma.transports.grpc_unary import WINDOW
from engines.rdma.transports.messages import COPIES
from harness.api import EnvironmentLacks, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from emulation.evaluate import Result
    from emulation.figures import Grade
    from emulation.profile import OneSided, Profile, Software
    from harness.api import EmulationContext, Plan

    Band = tuple[float, float]


class Lowering:
    """Builds the graph of one step between the first two hosts of a profile (or within its only one)."""

    def __init__(self, profile: Profile) -> None:
        hosts = profile.host_names()
        self.source = f"{hosts[0]}/cpu"
        self.target = f"{hosts[1 % len(hosts)]}/cpu"
        self.one_host = self.source == self.target
        self.profile = profile
        self.software: Software = profile.host(self.source).software

    def one_sided(self, payload: Payload) -> Workload:
        """One write per tensor, sequence word included, and an acknowledgement written back.

        Raises:
            EnvironmentLacks: the profile's hosts cannot write into each other's memory.
        """
        costs = self._one_sided_costs()
        work = Workload(f"shm {payload.name}")
        # One core copies one tensor after another; an adapter's writes are under way together and share its link.
        lane, cap = ("main", self._copy_rate(payload)) if self.one_host else ("", math.inf)
        written = []
        for tensor in payload.tensors:
            post = self._host(work, self.source, costs.post.value, (), f"post {tensor.name}", costs.post.grade)
            nbytes = tensor.nbytes + WORD
            name = f"write {tensor.name}"
            written.append(
                work.transfer(self.source, self.target, nbytes, after=[post], name=name, stream=lane, cap=cap)
            )
        seen = self._host(work, self.target, costs.completion.value, written, "poll", costs.completion.grade)
        post = self._host(work, self.target, costs.post.value, [seen], "post acknowledgement", costs.post.grade)
        back = work.transfer(self.target, self.source, WORD, after=[post], name="acknowledgement")
        self._host(work, self.source, costs.completion.value, [back], "poll", costs.completion.grade)
        return work

    def _copy_rate(self, payload: Payload) -> float:
        return self.software.memcpy.rate(payload.nbytes)

    def _one_sided_costs(self) -> OneSided:
        if self.software.one_sided is None:
            raise EnvironmentLacks(
                f"profile {self.profile.name!r} has no one-sided writes; leave 'shm' out with "
                "--set 'engine.transports=[grpc, grpc-stream, tcp]', or name a profile with RDMA adapters"
            )
        return self.software.one_sided

    def unary(self, payload: Payload) -> Workload:
        """A call per tensor, `WINDOW` of them under way."""
        rpc = self.software.rpc
        work = Workload(f"grpc {payload.name}")
        done: list[int] = []
        for index, tensor in enumerate(payload.tensors):
            free = done[index - WINDOW : index - WINDOW + 1] if index >= WINDOW else []
            call = self._host(work, self.source, rpc.per_call.value, free, f"call {tensor.name}", rpc.per_call.grade)
            done.append(self._message(work, payload, tensor, call))
        return work

    def stream(self, payload: Payload) -> Workload:
        """One call for all tensors, packing ahead of the wire."""
        rpc = self.software.rpc
        work = Workload(f"grpc-stream {payload.name}")
        fixed = rpc.stream_message or rpc.per_call
        call = self._host(work, self.source, fixed.value, (), "step", fixed.grade)
        for tensor in payload.tensors:
            self._message(work, payload, tensor, call)
        return work

    def _stream_rate(self, payload: Payload) -> float:
        rpc = self.software.rpc
        if not self.one_host or len(payload.tensors) == 1:
            return rpc.stream.value
        cores = self.profile.host(self.source).cores
        return min(rpc.stream.value, cores / (2 / rpc.stream.value + 2 / rpc.serialise.value))

    def _message(self, work: Workload, payload: Payload, tensor: Tensor, after: int) -> int:
        """Pack, send, unpack."""
        rpc, nbytes, name = self.software.rpc, tensor.nbytes, tensor.name
        seconds, grade = nbytes / rpc.serialise.value, rpc.serialise.grade
        packed = self._host(work, self.source, seconds, [after], f"pack {name}", grade)
        frames = -(-nbytes // rpc.message.value)
        sent = work.transfer(
            self.source,
            self.target,
            nbytes,
            after=[packed],
            name=f"send {name}",
            stream="connection",
            cap=self._stream_rate(payload),
            efficiency=self.software.tcp.efficiency.value,
            seconds=frames * rpc.per_message.value,
        )
        return self._host(work, self.target, seconds, [sent], f"unpack {name}", grade, stream="unpack")

    def tcp(self, payload: Payload) -> Workload:
        """All tensors back to back on one connection, and an acknowledgement."""
        costs = self.software.tcp
        work = Workload(f"tcp {payload.name}")
        sent = self._socket(work, self.source, self.target, payload.nbytes, (), "tensors")
        awake = self._host(work, self.target, costs.per_message.value, [sent], "wake", costs.per_message.grade)
        back = self._socket(work, self.target, self.source, WORD, [awake], "acknowledgement")
        self._host(work, self.source, costs.per_message.value, [back], "wake", costs.per_message.grade)
        return work

    def _socket(self, work: Workload, src: str, dst: str, nbytes: int, after: Sequence[int], name: str) -> int:
        costs = self.software.tcp
        return work.transfer(
            src, dst, nbytes, after=after, name=name, cap=costs.stream.value, efficiency=costs.efficiency.value
        )

    def copy(self, payload: Payload) -> Workload:
        """One core of the sender copying every tensor to memory of its own: the bound."""
        work = Workload(f"memcpy {payload.name}")
        cap = self._copy_rate(payload)
        for tensor in payload.tensors:
            work.transfer(self.source, self.source, tensor.nbytes, name=f"copy {tensor.name}", stream="main", cap=cap)
        return work

    def step(self, transport: str, payload: Payload) -> Workload:
        """The graph of one step over a transport."""
        build = {"shm": self.one_sided, "grpc": self.unary, "grpc-stream": self.stream, "tcp": self.tcp}[transport]
        return build(payload)

    @staticmethod
    def _host(
        work: Workload,
        device: str,
        seconds: float,
        after: Sequence[int],
        name: str,
        grade: Grade,
        stream: str = "main",
    ) -> int:
        return work.host(device, seconds, after=after, name=name, grade=grade, stream=stream)


def predict(plan: Plan, context: EmulationContext) -> Iterator[Measurement]:
    """The metrics of a real run, from the profile of `context`.

    Raises:
        EnvironmentLacks: the plan has one-sided writes and the profile none.
    """
    lowering = Lowering(context.profile)
    transports = plan.payload["transports"]
    for payload in map(Payload.from_json, plan.payload["payloads"]):
        bound = context.simulate(lowering.copy(payload), name=f"memcpy {payload.name}")
        rate, band = _rate(payload.nbytes, bound)
        yield Measurement("memcpy_bandwidth", rate, {"payload": payload.name}, band)
        for transport in transports:
            result = context.simulate(lowering.step(transport, payload), name=f"{transport} {payload.name}")
            yield from _measurements(transport, payload, result, bound)


def _measurements(transport: str, payload: Payload, result: Result, bound: Result) -> Iterator[Measurement]:
    labels = {"transport": transport, "payload": payload.name}
    yield Measurement("step_time", result.seconds, labels, result.band(result.seconds))
    rate, band = _rate(payload.nbytes, result)
    yield Measurement("bandwidth", rate, labels, band)
    low, high = result.band(result.seconds)
    yield Measurement(
        "memcpy_fraction", bound.seconds / result.seconds, labels, (bound.seconds / high, bound.seconds / low)
    )
    yield Measurement("copies", COPIES if transport.startswith("grpc") else 0, labels)


def _rate(nbytes: int, result: Result) -> tuple[float, Band]:
    low, high = result.band(result.seconds)
    return nbytes / result.seconds, (nbytes / high, nbytes / low)
