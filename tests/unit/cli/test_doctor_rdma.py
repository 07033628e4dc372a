import resource

import pytest

from harness.verbs import doctor_rdma
from harness.verbs.doctor_rdma import Machine, module_state

IPV4 = "0000:0000:0000:0000:0000:ffff:0a00:0001"
LINK_LOCAL = "fe80:0000:0000:0000:f809:2fff:feeb:c7bf"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without RDMA and without a binding; its folders may be filled."""
    monkeypatch.setattr(doctor_rdma, "_ask", lambda device, question: None)
    return Machine(*(tmp_path / name for name in ("infiniband", "module", "lib", "net")))


def add_device(machine, name="rxe0", *, state="4: ACTIVE", layer="Ethernet", kinds=("RoCE v2", "RoCE v2")):
    port = machine.devices / name / "ports" / "1"
    write(machine.devices / name / "parent", "v0")
    for file, text in (("state", state), ("link_layer", layer), ("rate", "10 Gb/sec"), ("lid", "0x0")):
        write(port / file, text)
    for index, (address, kind) in enumerate(zip((LINK_LOCAL, IPV4), kinds, strict=True)):
        write(port / "gids" / str(index), address)
        write(port / "gid_attrs" / "types" / str(index), kind)
        write(port / "gid_attrs" / "ndevs" / str(index), "v0")
    write(machine.interfaces / "v0" / "mtu", "4200")


def told(machine):
    return {finding.what: finding for finding in doctor_rdma.findings(machine)}


def test_a_machine_without_rdma_is_sent_to_the_guests(machine):
    found = told(machine)
    assert (found["rdma devices"].found, "--on softroce" in found["rdma devices"].fix) == ("none", True)
    assert found["rdma kernel"].found == "ib_uverbs not in this kernel, rdma_rxe not in this kernel"
    others = [f for what, f in found.items() if what != "rdma devices"]
    assert [f.what for f in others if f.fix] == [], "what is missing stands in nobody's way without a device"


def test_a_kernel_that_has_soft_roce_is_told_how_to_make_a_device(machine):
    write(machine.modules / "modules.dep", "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko.xz: kernel/lib/crc32.ko")
    found = told(machine)
    assert found["rdma devices"].fix.startswith("modprobe rdma_rxe && rdma link add")
    assert found["rdma kernel"].found == "ib_uverbs not in this kernel, rdma_rxe available"


def test_a_port_is_told_with_the_address_it_would_use(machine):
    add_device(machine)
    port = told(machine)["rdma rxe0/1"]
    assert port.found == (
        "Soft-RoCE on v0, Ethernet, ACTIVE, 10 Gb/sec, MTU 4096 by its interface, "
        "RoCE v2 0: fe80::f809:2fff:feeb:c7bf, 1: 10.0.0.1, would use 1"
    )
    assert port.fix == ""


def test_a_port_that_is_down_has_a_remedy(machine):
    add_device(machine, state="1: DOWN")
    assert told(machine)["rdma rxe0/1"].fix == "ip link set v0 up"


def test_a_port_without_a_routable_address_has_a_remedy(machine):
    add_device(machine, kinds=("IB/RoCE v1", "IB/RoCE v1"))
    port = told(machine)["rdma rxe0/1"]
    assert ("RoCE v2 none" in port.found, port.fix) == (True, "ip address add ADDRESS/PREFIX dev v0")


def test_modules_are_found_where_the_kernel_lists_them(machine):
    (machine.loaded / "ib_uverbs").mkdir(parents=True)
    write(machine.modules / "modules.builtin", "kernel/drivers/infiniband/core/ib_core.ko")
    write(machine.modules / "modules.dep", "kernel/a/rdma_rxe.ko: kernel/b/ib_uverbs.ko\nkernel/c/rdma_rxe_extra.ko:")
    names = ("ib_uverbs", "ib_core", "rdma_rxe", "siw")
    assert [module_state(n, machine) for n in names] == ["loaded", "built in", "available", "not in this kernel"]


def test_a_device_without_its_module_library_or_binding_has_remedies(machine, monkeypatch):
    def nothing(name):
        raise OSError(name)

    add_device(machine)
    monkeypatch.setattr(doctor_rdma.ctypes, "CDLL", nothing)
    monkeypatch.setattr(doctor_rdma, "find_spec", lambda name: None)
    found = told(machine)
    fixes = {what: found[what].fix for what in ("rdma kernel", "libibverbs", "verbs bindings")}
    assert fixes == {
        "rdma kernel": "modprobe ib_uverbs",
        "libibverbs": "apt-get install libibverbs1 ibverbs-providers",
        "verbs bindings": "pip install ibverbs",
    }


@pytest.mark.parametrize(
    ("user", "soft", "hard", "fix"),
    [
        (0, 8 << 20, 8 << 20, ""),
        (1000, resource.RLIM_INFINITY, resource.RLIM_INFINITY, ""),
        (1000, 1 << 30, 1 << 30, ""),
        (1000, (1 << 30) - 1, resource.RLIM_INFINITY, "ulimit -l unlimited"),
        (1000, 8 << 20, 8 << 20, "add '* - memlock unlimited' to /etc/security/limits.conf and log in again"),
    ],
)
def test_the_locked_memory_limit_is_held_against_an_arena(monkeypatch, user, soft, hard, fix):
    monkeypatch.setattr(doctor_rdma.os, "geteuid", lambda: user)
    monkeypatch.setattr(doctor_rdma.resource, "getrlimit", lambda what: (soft, hard))
    assert doctor_rdma.locked_memory(True).fix == fix
    assert doctor_rdma.locked_memory(False).fix == ""
