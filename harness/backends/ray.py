"""Trials on a Ray cluster: one actor a rank, each watching over a process on its node.

The actor is only the watchman. The trial itself runs in the same kind of process as on this machine, so that limits,
partial measurements and the names of its ends are the same. Ranks of one trial are placed together (a placement
group) and find one another through a board, an actor that every watchman copies keys to and from.

When a node dies, its watchman dies with it; the attempt is reported as lost and the runner tries again. What the
lost rank had measured is lost too, because its journal was on that node.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.backends import watchman
from harness.backends.base import Capabilities
from harness.backends.ray_attempt import RayAttempt
from harness.errors import BackendError, EnvironmentLacks
from harness.execution import assignment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.backends.base import Running
    from harness.trial import Trial

KNOCK_SECONDS = 10.0


class RayBackend:
    """`base.Backend` for a Ray cluster, or a Ray of our own on this machine."""

    name = "ray"

    def __init__(self, address: str = "", *, grace: float = 10.0, most_ranks: int = 1) -> None:
        self._ours = connect(address, slots=max(os.cpu_count() or 1, most_ranks))
        self._grace = grace

    def capabilities(self, trial: Trial) -> Capabilities:
        """The hosts that have the GPUs the trial needs, or all; they are looked at closely only where asked for."""
        needs = trial.needs
        has = _nodes_with(needs.gpus)
        if not (needs.gpu_memory or needs.memory or needs.rdma):
            return has
        probed = _probe()
        return replace(has, gpu_memory=probed.gpu_memory, memory=probed.memory, rdma=probed.rdma)

    def start(self, trial: Trial, directory: Path) -> Running:
        """Ask for room and start every rank as soon as there is some."""
        import ray

        slots = int(ray.cluster_resources().get("CPU", 0))
        if slots < trial.ranks:
            raise EnvironmentLacks(f"CPU slots on the Ray cluster: needs {trial.ranks} (one a rank), has {slots}")
        return RayAttempt(trial, directory, dump=assignment.dump(trial), grace=self._grace)

    def close(self) -> None:
        """Leave the cluster, or stop it where it is ours."""
        import ray

        if self._ours:
            with _quiet():
                ray.shutdown()


def cluster_capabilities(address: str = "") -> Capabilities:
    """What a cluster has, seen from every node.

    Raises:
        BackendError: it cannot be reached.
        EnvironmentLacks: Ray is not installed.
    """
    ours = connect(address, slots=os.cpu_count() or 1)
    try:
        probed = _probe()
        return replace(_nodes_with(0), gpu_memory=probed.gpu_memory, memory=probed.memory, rdma=probed.rdma)
    finally:
        if ours:
            import ray

            with _quiet():
                ray.shutdown()


def connect(address: str, *, slots: int) -> bool:
    """Join the cluster at `address`, at RAY_ADDRESS, or start one on this machine.

    Returns:
        Whether we connected, and so have to disconnect; a caller that had done so before keeps its connection.

    Raises:
        BackendError: it cannot be reached.
        EnvironmentLacks: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's future behaviour, chosen now: a trial that asks for no GPU keeps the view of GPUs that it has.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _quiet():
            import ray
    except ImportError:
        raise EnvironmentLacks("the backend 'ray' needs Ray: pip install 'harness[ray]'") from None
    if ray.is_initialized():
        return False
    where = address.removeprefix("ray:") if address in {"ray", "ray:"} else address
    where = where or os.environ.get("RAY_ADDRESS", "")
    try:
        _knock(where)
        with _quiet():
            if where:
                ray.init(address=where, namespace=_namespace(), log_to_driver=False, logging_level="ERROR")
            else:
                ray.init(
                    address="local",
                    num_cpus=slots,
                    include_dashboard=False,
                    namespace=_namespace(),
                    log_to_driver=False,
                    logging_level="ERROR",
                )
    except (ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        first = (str(error).splitlines() or [""])[0]
        # Ray says only that it cannot connect where a cluster asks for a token that it was not given.
        hint = "; if it asks for a token, give Ray one (RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH)" if where else ""
        raise BackendError(f"no Ray cluster at {where or 'this machine'}: {first}{hint}") from error
    return True


def _knock(where: str) -> None:
    """Find out at once that nobody listens there: Ray itself would go on trying for minutes.

    Raises:
        OSError: nobody does.
        ValueError: the port is not a number.
    """
    host, colon, port = where.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def _namespace() -> str:
    return f"harness-{uuid.uuid4().hex[:12]}"


def _nodes_with(gpus: int) -> Capabilities:
    import ray

    alive = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]
    fitting = [r for r in alive if r.get("GPU", 0) >= gpus] or alive
    return Capabilities(hosts=len(fitting), gpus=min((int(r.get("GPU", 0)) for r in fitting), default=0))


def _probe() -> Capabilities:
    """The smallest of what the nodes say of themselves."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(watchman.look_around)
    alive = [n["NodeID"] for n in ray.nodes() if n["Alive"]]
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=i, soft=False)).remote() for i in alive
    ]
    seen: list[Capabilities] = ray.get(asked, timeout=60)
    with_gpu = [c.gpu_memory for c in seen if c.gpus]
    return Capabilities(
        hosts=len(seen),
        gpus=min(c.gpus for c in seen),
        gpu_memory=min(with_gpu, default=0),
        memory=min(c.memory for c in seen),
        rdma=all(c.rdma for c in seen),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    # What Ray has to say about itself (deprecations, ports, sockets it leaves to the collector) helps nobody here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
