"""The conformance suite over simulated fabrics that are not plain: every packet an event, lost, or overtaken."""

from __future__ import annotations

import pytest

import engines.rdma.conformance.cases  # noqa: F401 - defines them
from engines.rdma.conformance.case import CASES
from engines.rdma.conformance.pair import Setting
from engines.rdma.providers import open_device
from engines.rdma.providers.sim.fabric import Fabric, Wire

FABRICS = {
    "packets": lambda: Fabric(grain="packet"),
    "adaptive routing": lambda: Fabric(Wire(reorder=0.2)),
    "loss": lambda: Fabric(Wire(loss=0.005), seed=3),
}
UNANSWERED = {"an access outside the remote region is refused"}
"""Where the refusal itself is lost, the responder is in error and silent, so the requester runs out of retries."""


class On(Setting):
    """Devices on one fabric, on which requests are cut often, so that cutting is among what is tried."""

    def __init__(self, fabric):
        super().__init__("sim")
        object.__setattr__(self, "fabric", fabric)

    def devices(self, capacity):
        near, far = (open_device("sim", capacity, fabric=self.fabric, largest_write=2**18) for _ in range(2))
        return near, far


@pytest.mark.parametrize("what", FABRICS)
def test_provider_holds_over(what):
    setting = On(FABRICS[what]())
    outcomes = [case.run(setting) for case in CASES.values() if not case.name.startswith("ten thousand")]
    failed = {one.name: one.message for one in outcomes if one.status == "failed"}
    if what == "loss":
        failed = {name: why for name, why in failed.items() if not (name in UNANSWERED and "retry exceeded" in why)}
    assert failed == {}
    assert sum(one.status == "ok" for one in outcomes) > 0.9 * len(outcomes)
