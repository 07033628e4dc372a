from ipaddress import IPv4Address, IPv6Address

import pytest

from emulation import rdma_devices
from emulation.rdma_devices import Gid

UNUSED = "0000:0000:0000:0000:0000:0000:0000:0000"
LINK_LOCAL = "fe80:0000:0000:0000:f809:2fff:feeb:c7bf"
IPV4 = "0000:0000:0000:0000:0000:ffff:0a00:0001"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def add_port(root, device, number=1, *, state="4: ACTIVE", layer="Ethernet", gids=(), counters=None, lid="0x0"):
    port = root / device / "ports" / str(number)
    for name, text in (("state", state), ("link_layer", layer), ("rate", "10 Gb/sec (1X FDR10)"), ("lid", lid)):
        write(port / name, text)
    for index, (address, kind, interface) in enumerate(gids):
        write(port / "gids" / str(index), address)
        if kind:
            # The kernel refuses to read the attributes of an entry that is not in use; here they are not there.
            write(port / "gid_attrs" / "types" / str(index), kind)
            write(port / "gid_attrs" / "ndevs" / str(index), interface)
    for name, value in (counters or {}).items():
        write(port / "hw_counters" / name, str(value))


@pytest.fixture
def soft_roce(tmp_path):
    gids = [(LINK_LOCAL, "RoCE v2", "v0"), (IPV4, "RoCE v2", "v0"), (UNUSED, "", "")]
    add_port(tmp_path, "rxe0", gids=gids, counters={"sent_pkts": 7, "duplicate_request": 0, "lifespan": 12})
    write(tmp_path / "rxe0" / "parent", "v0")
    write(tmp_path / "rxe0" / "fw_ver", "")
    return tmp_path


def test_a_machine_without_rdma_has_no_devices(tmp_path):
    assert rdma_devices.devices(tmp_path / "infiniband") == ()


def test_soft_roce_is_told_by_the_interface_it_was_made_of(soft_roce):
    (device,) = rdma_devices.devices(soft_roce)
    assert (device.name, device.driver, device.interface, device.software) == ("rxe0", "rdma_rxe", "v0", True)
    (port,) = device.ports
    assert (port.number, port.state, port.link_layer, port.lid, port.active) == (1, "ACTIVE", "Ethernet", 0, True)


def test_an_adapter_is_told_by_its_driver(tmp_path):
    add_port(tmp_path, "mlx5_0", state="1: DOWN", layer="InfiniBand", lid="0x2f")
    (tmp_path / "drivers" / "mlx5_core").mkdir(parents=True)
    (tmp_path / "mlx5_0" / "device").mkdir()
    (tmp_path / "mlx5_0" / "device" / "driver").symlink_to(tmp_path / "drivers" / "mlx5_core")
    device = next(d for d in rdma_devices.devices(tmp_path) if d.name == "mlx5_0")
    assert (device.driver, device.software) == ("mlx5_core", False)
    assert [(p.state, p.lid, p.active) for p in device.ports] == [("DOWN", 0x2F, False)]


def test_only_gids_in_use_are_listed(soft_roce):
    gids = rdma_devices.gids("rxe0", 1, soft_roce)
    assert [(g.index, g.kind, g.interface) for g in gids] == [(0, "RoCE v2", "v0"), (1, "RoCE v2", "v0")]
    assert [g.ipv4 for g in gids] == [None, IPv4Address("10.0.0.1")]


def test_wire_counters_are_the_ports_own(soft_roce):
    assert rdma_devices.wire_counters("rxe0", 1, soft_roce) == {"duplicate_request": 0, "sent_pkts": 7}
    assert rdma_devices.wire_counters("rxe0", 2, soft_roce) == {}


def gid(index, address, kind="RoCE v2", interface="eth0"):
    return Gid(index, IPv6Address(address), kind, interface)


LINK, GLOBAL = gid(0, "fe80::1"), gid(1, "2001:db8::1")
OTHER, OWN = gid(2, "::ffff:10.0.0.9"), gid(3, "::ffff:10.0.0.1")
V1 = gid(4, "::ffff:10.0.0.1", "IB/RoCE v1")


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([LINK, GLOBAL, OTHER, OWN, V1], OWN),
        ([LINK, GLOBAL, OTHER, V1], OTHER),
        ([LINK, GLOBAL, V1], GLOBAL),
        ([LINK, V1], LINK),
        ([V1], None),
        ([], None),
    ],
)
def test_the_address_of_the_interface_is_preferred_and_roce_v1_is_never_chosen(candidates, chosen):
    addresses = {"eth0": IPv4Address("10.0.0.1")}
    for order in (candidates, candidates[::-1]):
        assert rdma_devices.choose_gid("Ethernet", order, addresses.get) == chosen


def test_infiniband_takes_its_first_gid():
    candidates = [gid(0, "fe80::5", "IB/RoCE v1", ""), gid(1, "fe80::6", "IB/RoCE v1", "")]
    assert rdma_devices.choose_gid("InfiniBand", candidates) == candidates[0]
    assert rdma_devices.choose_gid("InfiniBand", []) is None


def test_an_interface_is_asked_for_its_address():
    assert rdma_devices.interface_address("lo") == IPv4Address("127.0.0.1")
    assert rdma_devices.interface_address("nosuch") is None
    assert rdma_devices.interface_address("a" * 300) is None


@pytest.mark.parametrize(
    ("interface", "path"), [(9000, 4096), (4200, 4096), (4191, 2048), (1500, 1024), (352, 256), (351, None)]
)
def test_the_path_mtu_leaves_room_for_the_headers(interface, path):
    assert rdma_devices.roce_mtu(interface) == path
