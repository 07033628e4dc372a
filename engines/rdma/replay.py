"""A plan carried out in virtual time: the transports' own code, over simulated adapters of a profile.

Where `lowering` has a cost model of every transport, this runs the transport itself between two ranks in this process,
with real bytes that are compared at the end, and lets the simulated provider say when everything happens. What a model
leaves out (segmentation, acknowledgements, queue depths, one processor a rank doing one thing after another) is in it;
what no simulated adapter has part in (gRPC, TCP) is left to the model. The metrics are the same.
"""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emulation.io import chrome_trace
from engines.rdma import lowering, transports
from engines.rdma.executor import Executor, interleave
from engines.rdma.production import Producer
from engines.rdma.providers.sim.cluster import Cluster
from engines.rdma.providers.sim.fabric import Fabric, Wire
from engines.rdma.tensors import Payload, fill, first_difference
from engines.rdma.transports.base import Setting
from harness.api import HarnessError, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.rdma.transports.base import ReceivingEnd, SendingEnd, Sources
    from harness.api import EmulationContext, Plan

WAIT_SECONDS = 60.0
"""Virtual seconds without getting on after which a rank counts as lost."""


@dataclass(frozen=True)
class Replayed:
    """What one step of a transport came to."""

    seconds: float
    """From the first tensor handed over until the sender knows that the receiver has the last one."""
    copied: int
    """Payload bytes that both ranks' processors copied."""
    digest: str
    """Of everything that happened on the fabric."""


def predict(plan: Plan, context: EmulationContext) -> Iterator[Measurement]:
    """The metrics of a real run: of transports over a device by replay, of the others by model.

    Bands are those of the models, around the replayed time: both rest on the same figures.

    Raises:
        EnvironmentLacks: the profile's first two hosts have no adapters with one-sided writes.
        HarnessError: a wrong byte arrived.
    """
    names = plan.payload["transports"]
    over_device = [name for name in names if name in transports.ON_DEVICE]
    others = [name for name in names if name not in transports.ON_DEVICE]
    if not over_device:
        yield from lowering.predict(plan, context)
        return
    models, cluster = lowering.Lowering(context.profile), Cluster(context.profile, 2)
    bounds: dict[str, float] = {}
    if others and not any(name in lowering.COPIES for name in others):
        sys.stderr.write(f"not predicted, for want of a cost model: {', '.join(others)}\n")
    elif others:
        for found in lowering.predict(replace(plan, payload={**plan.payload, "transports": others}), context):
            if found.name == "memcpy_bandwidth":
                bounds[found.labels["payload"]] = found.values()[0]
            yield found
    payloads = tuple(map(Payload.from_json, plan.payload["payloads"]))
    setting = Setting(payloads, plan.payload["placement"], plan.payload["signal"])
    for payload in payloads:
        if payload.name not in bounds:
            result = context.simulate(models.copy(payload), name=f"memcpy {payload.name}")
            low, high = result.band(result.seconds)
            bounds[payload.name] = payload.nbytes / result.seconds
            band = payload.nbytes / high, payload.nbytes / low
            yield Measurement("memcpy_bandwidth", bounds[payload.name], {"payload": payload.name}, band)
        copy_seconds = payload.nbytes / bounds[payload.name]
        for name in over_device:
            fabric = Fabric(Wire(cluster.propagation), seed=context.repeat.seed, timeline=True)
            step = replay(name, payload, replace(setting, payloads=(payload,)), cluster, fabric)
            file = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name} {payload.name} sim")
            chrome_trace.write(context.artifacts / f"{file}.trace.json", fabric.timeline)
            model = context.simulate(
                models.step(name, payload, setting.placement), name=f"{name} {payload.name} as modelled"
            )
            low, high = model.band(step.seconds)
            labels = {"transport": name, "payload": payload.name}
            yield Measurement("step_time", step.seconds, labels, (low, high))
            band = payload.nbytes / high, payload.nbytes / low
            yield Measurement("bandwidth", payload.nbytes / step.seconds, labels, band)
            band = copy_seconds / high, copy_seconds / low
            yield Measurement("memcpy_fraction", copy_seconds / step.seconds, labels, band)
            yield Measurement("copies", step.copied / payload.nbytes, labels)


def replay(name: str, payload: Payload, setting: Setting, cluster: Cluster, fabric: Fabric) -> Replayed:
    """Move a payload twice over a transport between two ranks of a fabric, and time the second step.

    In the first step addresses, shapes and queue-pair state become known, as in the untimed step of a real run.

    Args:
        name: one of `transports.ON_DEVICE`.
        payload: what to move.
        setting: of the transport.
        cluster: of two ranks; what hosts, adapters and wire cost.
        fabric: new; afterwards its timeline has the timed step.

    Raises:
        HarnessError: a wrong byte arrived.
    """
    with ExitStack() as stack:
        near, far = cluster.open([transports.capacity([name], setting, rank=rank) for rank in (0, 1)], fabric)
        stack.callback(near.close)
        stack.callback(far.close)
        sources = Producer(near, setting).sources(payload)
        for index, source in enumerate(sources):
            fill(source, seed=fabric.seed, payload=payload.name, index=index)
        sender, receiver = transports.sending_end(name, near, setting), transports.receiving_end(name, far, setting)
        stack.callback(sender.close)
        stack.callback(receiver.close)
        _introduce(sender, receiver, payload, sources)
        for step in (1, 2):
            receiver.poison()
            for device in (near, far):
                device.ledger.clear()
            fabric.timeline.clear()
            seconds = _step(sender, receiver, step)
            _compare(name, payload, sources, receiver)
        return Replayed(seconds, near.ledger.nbytes + far.ledger.nbytes, fabric.digest)


def _introduce(sender: SendingEnd, receiver: ReceivingEnd, payload: Payload, sources: Sources) -> None:
    """What goes over the rendezvous and the control connection in a real run."""
    addresses = sender.channel.address(), receiver.channel.address()
    sender.channel.connect(addresses[1])
    receiver.channel.connect(addresses[0])
    offers = sender.offer(payload, sources), receiver.offer(payload)
    sender.accept(offers[1])
    receiver.accept(offers[0])


def _step(sender: SendingEnd, receiver: ReceivingEnd, step: int) -> float:
    """Virtual seconds of one step, on the sender's clock."""
    executors = [Executor(end.device, timeout=WAIT_SECONDS) for end in (sender, receiver)]
    # Both ranks begin when the busier of them has done what it was at.
    start = max(end.device.clock() for end in (sender, receiver))
    sender.device.wait_until(start)
    receiver.device.wait_until(start)
    executors[0].submit(sender.step_operation(step))
    executors[1].submit(receiver.step_operation(step))
    interleave(executors)
    return sender.device.clock() - start


def _compare(name: str, payload: Payload, sources: Sources, receiver: ReceivingEnd) -> None:
    for index, tensor in enumerate(payload.tensors):
        offset = first_difference(receiver.received(index), sources[index])
        if offset is not None:
            raise HarnessError(
                f"wrong byte: transport {name!r}, payload {payload.name!r}, tensor {tensor.name!r}, "
                f"offset {offset} of {tensor.nbytes}: what arrived is not what was sent"
            )
