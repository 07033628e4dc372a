"""What follows from a step time, alike for measured and emulated ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulation.processors import DeviceModel
    from emulation.profile import Profile
    from engines.megatron.plan import Job


def rates(job: Job, profile: Profile) -> Iterator[tuple[str, float]]:
    """(metric, what to divide by the step time in seconds to get it)."""
    flops = job.shape.flops(job.global_batch) / job.ranks
    yield "tokens_per_second", float(job.global_batch * job.shape.sequence)
    yield "model_flops", flops
    throughput = device_model(profile).compute.get(job.dtype)
    if throughput is not None:
        yield "utilisation", flops / throughput.peak.value


def device_model(profile: Profile) -> DeviceModel:
    """What a rank runs on: the first host's accelerators, or its processor where it has none."""
    host = profile.hosts[0]
    return profile.models[host.devices[0].model if host.devices else host.cpu]
