from functools import cache
from pathlib import Path

import pytest
import yaml

from emulation.profile import Profile

ROOT = Path(__file__).resolve().parents[3]
HARDWARE = ROOT / "specs" / "hardware"


def figure(value):
    return {"value": value, "grade": "measured", "source": "test"}


def small_document(gpus=4, hosts=1, rate="10 GB/s", latency="0 s", memory="1 GB", scale=1.0, **changes):
    """A cluster in round numbers: GPUs behind one switch, one adapter a host, one switch between hosts."""
    throughput = {"peak": figure(f"{1e12 * scale} FLOP/s")}
    bandwidth = {"peak": figure(f"{1e11 * scale} B/s")}
    model = {"memory": figure(memory), "memory_bandwidth": bandwidth, "launch": figure("0 s")}
    link = {"rate": figure(rate), "latency": figure(latency)}
    software = {
        "memcpy": {"peak": figure(f"{1e10 * scale} B/s")},
        "page": figure("4 KiB"),
        "tcp": {"stream": figure("1 GB/s"), "per_message": figure("1 us"), "efficiency": figure(0.9)},
        "rpc": {
            "per_call": figure("1 us"),
            "serialise": figure("1 GB/s"),
            "stream": figure("1 GB/s"),
            "per_message": figure("1 us"),
            "message": figure("16 KiB"),
        },
    }
    host = {
        "count": hosts,
        "cpu": "cpu",
        "cores": 2,
        "devices": [{"name": "gpu", "model": "gpu", "count": gpus}],
        "nics": [{"name": "nic", "rdma": True}],
        "switches": [{"name": "switch"}],
        "links": [
            {"name": "nvlink", "kind": "nvlink", "ends": ["gpu", "switch"], **link},
            {"name": "pcie", "kind": "pcie", "ends": ["cpu", "switch"], **link},
            {"name": "pcie-nic", "kind": "pcie", "ends": ["nic", "switch"], **link},
        ],
        "software": software,
    }
    ring = {"name": "ring", "algorithm": "ring", "base": "1 us", "bandwidth": 1.0, "grade": "measured"}
    steps = {"nvlink": "2 us", "pcie": "3 us", "network": "5 us", "cpu": "1 us"}
    document = {
        "schema": 1,
        "name": "small",
        "sources": {"test": "round numbers for tests"},
        "models": {
            "cpu": {"kind": "cpu", "compute": {"fp32": throughput}, **model},
            "gpu": {"kind": "gpu", "compute": {"fp32": throughput, "fp16": throughput}, **model},
        },
        "hosts": [host],
        "fabric": {
            "switches": [{"name": "leaf"}],
            "links": [{"name": "wire", "kind": "network", "ends": ["nic", "leaf"], **link}],
        },
        "collectives": [{**ring, "step": steps, "source": "test"}],
        "fragmentation": {"value": "10 %", "grade": "measured", "source": "test"},
    }
    return document | changes


@pytest.fixture(scope="session")
def document():
    return small_document


@pytest.fixture(scope="session")
def small():
    return lambda **options: Profile.model_validate(small_document(**options))


@pytest.fixture(scope="session")
def shipped():
    @cache
    def load(name):
        return Profile.model_validate(yaml.safe_load((HARDWARE / f"{name}.yaml").read_text()))

    return load
