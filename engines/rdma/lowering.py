"""What a step would take on a cluster one does not have: the plan as workload graphs.

The models, all from the profile's figures (`emulation.profile.Software`, links, memory):

zero-copy
    per tensor: `one_sided.post` on the sender, then the bytes on the adapter's link, which the processors have no
    part in; at the end `one_sided.completion` until the poller has seen the last sequence word, and the same way back
    for the release word. On one host the "adapter" is the core that posts, copying at `memcpy`.
copy
    the same, after one copy of each tensor at `memcpy` on the sender's core.
dynamic placement (of both)
    per tensor: a metadata block there, the payload fetched by a read (its request is a message of no bytes), a release
    word back; each with its `post` and `completion`. Tensors do not wait for one another. On one host the receiver's
    core copies.
request-driven
    per tensor: a request of the receiver's, the write that answers it; at the end a word back. As zero-copy otherwise.
rpc-over-rdma
    per tensor: `rpc.serialise` and a copy into the ring at `memcpy` on the sender, the bytes through the ring (on the
    link, or on one host by that copy) no faster than a fragment each `post` and `completion`, two copies and
    `rpc.serialise` on the receiver; at the end a word back. Packing one tensor overlaps sending the one before.
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

Peers (gloo, NIXL, Mooncake) have no model here and are left out of a prediction, which says so.

What is not modelled: slow start, losses, other users of the processors, caches that make medium-sized messages cheaper
to pack, and what the other transports of an interleaved run leave in the caches.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from emulation.graph import Workload
from engines.rdma.device import WORD
from engines.rdma.metadata import BLOCK
from engines.rdma.tensors import Payload, Tensor
from engines.rdma.transports import messages
from engines.rdma.transports.grpc_unary import WINDOW
from engines.rdma.transports.request_driven import MESSAGE_BYTES
from engines.rdma.transports.rpc_over_rdma import FRAGMENT, RECEIVER_COPIES, SENDER_COPIES
from harness.api import EnvironmentLacks, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from emulation.evaluate import Result
    from emulation.figures import Grade
    from emulation.profile import OneSided, Profile, Software
    from harness.api import EmulationContext, Plan

    Band = tuple[float, float]

COPIES = {
    "zero-copy": 0,
    "copy": 1,
    "request-driven": 0,
    "rpc-over-rdma": messages.COPIES + SENDER_COPIES + RECEIVER_COPIES,
    "grpc": messages.COPIES,
    "grpc-stream": messages.COPIES,
    "tcp": 0,
}
"""User-space copies of a payload byte, by transport; these are the transports that have a cost model."""


class Lowering:
    """Builds the graph of one step between the first two hosts of a profile (or within its only one)."""

    def __init__(self, profile: Profile) -> None:
        hosts = profile.host_names()
        self.source = f"{hosts[0]}/cpu"
        self.target = f"{hosts[1 % len(hosts)]}/cpu"
        self.one_host = self.source == self.target
        self.profile = profile
        self.software: Software = profile.host(self.source).software

    def static(self, payload: Payload, *, copies: bool, name: str) -> Workload:
        """One write per tensor, sequence word included, and a release word written back.

        Raises:
            EnvironmentLacks: the profile's hosts cannot write into each other's memory.
        """
        work = Workload(f"{name} {payload.name}")
        written = []
        for tensor in payload.tensors:
            staged = self._copied(work, payload, tensor, self.source, 1, ()) if copies else ()
            written.append(self._write(work, payload, tensor.nbytes + WORD, f"write {tensor.name}", staged))
        self._word_back(work, written)
        return work

    def dynamic(self, payload: Payload, *, copies: bool, name: str) -> Workload:
        """A metadata block per tensor, a read that fetches it, and a release word.

        Raises:
            EnvironmentLacks: as of `static`.
        """
        work = Workload(f"{name} {payload.name}")
        for tensor in payload.tensors:
            staged = self._copied(work, payload, tensor, self.source, 1, ()) if copies else ()
            told = self._small(work, self.source, self.target, BLOCK.size, f"metadata {tensor.name}", staged)
            asked = [self._post(work, self.target, f"read {tensor.name}", [told])]
            if not self.one_host:
                asked = [work.transfer(self.target, self.source, 0, after=asked, name=f"request {tensor.name}")]
            fetched = work.transfer(
                self.source, self.target, tensor.nbytes, after=asked, name=f"payload {tensor.name}",
                stream="fetch" if self.one_host else "", cap=self._cap(payload),
            )  # fmt: skip
            seen = self._poll(work, self.target, [fetched])
            self._small(work, self.target, self.source, WORD, f"release {tensor.name}", [seen])
        return work

    def request_driven(self, payload: Payload) -> Workload:
        """A request per tensor, the write that answers it, and a word back.

        Raises:
            EnvironmentLacks: as of `static`.
        """
        work = Workload(f"request-driven {payload.name}")
        written = []
        for tensor in payload.tensors:
            asked = self._small(work, self.target, self.source, MESSAGE_BYTES, f"request {tensor.name}", ())
            written.append(self._write(work, payload, tensor.nbytes, f"write {tensor.name}", [asked]))
        self._word_back(work, written)
        return work

    def rpc_over_rdma(self, payload: Payload) -> Workload:
        """A message per tensor, in fragments that are copied in and out of rings, and a reply.

        Raises:
            EnvironmentLacks: as of `static`.
        """
        work, rpc = Workload(f"rpc-over-rdma {payload.name}"), self.software.rpc
        taken: list[int] = []
        for tensor in payload.tensors:
            seconds, name, grade = tensor.nbytes / rpc.serialise.value, tensor.name, rpc.serialise.grade
            ready = [self._host(work, self.source, seconds, (), f"pack {name}", grade)]
            if not self.one_host:
                ready = self._copied(work, payload, tensor, self.source, SENDER_COPIES, ready)
            post = self._post(work, self.source, f"send {name}", ready)
            sent = work.transfer(
                self.source, self.target, tensor.nbytes, after=[post], name=f"send {name}",
                stream="ring", cap=self.ring_rate(payload.nbytes),
            )  # fmt: skip
            seen = self._poll(work, self.target, [sent])
            joined = self._copied(work, payload, tensor, self.target, RECEIVER_COPIES, [seen])
            taken.append(self._host(work, self.target, seconds, joined, f"unpack {name}", grade))
        self._word_back(work, taken[-1:], seen=True)
        return work

    def ring_rate(self, nbytes: int) -> float:
        """Bytes per second through a ring: no faster than fragments are posted and polled, nor, on one host, copied.

        Args:
            nbytes: of the whole payload.
        """
        costs = self._one_sided_costs()
        slowest = max(costs.post.value, costs.completion.value)
        rate = FRAGMENT / slowest if slowest else math.inf
        return min(rate, self.software.memcpy.rate(nbytes)) if self.one_host else rate

    def _write(self, work: Workload, payload: Payload, nbytes: int, name: str, after: Sequence[int]) -> int:
        post = self._post(work, self.source, name, after)
        # One core copies one tensor after another; an adapter's writes are under way together and share its link.
        lane, cap = ("main", self._cap(payload)) if self.one_host else ("", math.inf)
        return work.transfer(self.source, self.target, nbytes, after=[post], name=name, stream=lane, cap=cap)

    def _copied(
        self, work: Workload, payload: Payload, tensor: Tensor, device: str, times: int, after: Sequence[int]
    ) -> list[int]:
        seconds, name = times * tensor.nbytes / self._copy_rate(payload), f"copy {tensor.name}"
        return [self._host(work, device, seconds, after, name, self.software.memcpy.peak.grade)]

    def _small(self, work: Workload, src: str, dst: str, nbytes: int, name: str, after: Sequence[int]) -> int:
        """A word or a message that the other side polls."""
        post = self._post(work, src, name, after)
        sent = work.transfer(src, dst, nbytes, after=[post], name=name)
        return self._poll(work, dst, [sent])

    def _word_back(self, work: Workload, after: Sequence[int], *, seen: bool = False) -> None:
        """The receiver has seen the last tensor (`seen`: and has paid for that), and tells the sender."""
        polled = list(after) if seen else [self._poll(work, self.target, after)]
        self._small(work, self.target, self.source, WORD, "release", polled)

    def _post(self, work: Workload, device: str, name: str, after: Sequence[int]) -> int:
        post = self._one_sided_costs().post
        return self._host(work, device, post.value, after, f"post {name}", post.grade)

    def _poll(self, work: Workload, device: str, after: Sequence[int]) -> int:
        completion = self._one_sided_costs().completion
        return self._host(work, device, completion.value, after, "poll", completion.grade)

    def _copy_rate(self, payload: Payload) -> float:
        return self.software.memcpy.rate(payload.nbytes)

    def _cap(self, payload: Payload) -> float:
        return self._copy_rate(payload) if self.one_host else math.inf

    def _one_sided_costs(self) -> OneSided:
        if self.software.one_sided is None:
            raise EnvironmentLacks(
                f"profile {self.profile.name!r} has no one-sided writes; leave the transports over a device out with "
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

    def step(self, transport: str, payload: Payload, placement: str) -> Workload:
        """The graph of one step over one of `MODELLED`."""
        if transport in ("zero-copy", "copy"):
            build = self.dynamic if placement == "dynamic" else self.static
            return build(payload, copies=transport == "copy", name=transport)
        build = {
            "request-driven": self.request_driven,
            "rpc-over-rdma": self.rpc_over_rdma,
            "grpc": self.unary,
            "grpc-stream": self.stream,
            "tcp": self.tcp,
        }[transport]
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
        EnvironmentLacks: the plan has one-sided writes and the profile none, or no transport has a model.
    """
    lowering = Lowering(context.profile)
    transports = _modelled(plan.payload["transports"])
    placement = plan.payload["placement"]
    for payload in map(Payload.from_json, plan.payload["payloads"]):
        bound = context.simulate(lowering.copy(payload), name=f"memcpy {payload.name}")
        rate, band = _rate(payload.nbytes, bound)
        yield Measurement("memcpy_bandwidth", rate, {"payload": payload.name}, band)
        for transport in transports:
            result = context.simulate(lowering.step(transport, payload, placement), name=f"{transport} {payload.name}")
            yield from _measurements(transport, payload, result, bound)


def _modelled(transports: Sequence[str]) -> list[str]:
    """Those that can be predicted; the others are named in the trial's log."""
    absent = [name for name in transports if name not in COPIES]
    if absent:
        sys.stderr.write(f"not predicted, for want of a cost model: {', '.join(absent)}\n")
    if len(absent) == len(transports):
        raise EnvironmentLacks(f"no cost model for {', '.join(absent)}; a prediction needs one of {', '.join(COPIES)}")
    return [name for name in transports if name in COPIES]


def _measurements(transport: str, payload: Payload, result: Result, bound: Result) -> Iterator[Measurement]:
    labels = {"transport": transport, "payload": payload.name}
    yield Measurement("step_time", result.seconds, labels, result.band(result.seconds))
    rate, band = _rate(payload.nbytes, result)
    yield Measurement("bandwidth", rate, labels, band)
    low, high = result.band(result.seconds)
    yield Measurement(
        "memcpy_fraction", bound.seconds / result.seconds, labels, (bound.seconds / high, bound.seconds / low)
    )
    yield Measurement("copies", COPIES[transport], labels)


def _rate(nbytes: int, result: Result) -> tuple[float, Band]:
    low, high = result.band(result.seconds)
    return nbytes / result.seconds, (nbytes / high, nbytes / low)
