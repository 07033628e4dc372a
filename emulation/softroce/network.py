"""What a guest runs to have an address and an RDMA device on it."""

from __future__ import annotations

from dataclasses import dataclass

SUBNET = "10.0.0"
MTU = 4200
"""The least at which RDMA gets a path MTU of 4096."""
GID_INDEX = 1
"""Of an rxe device's RoCEv2 IPv4 address; index 0 is its link-local IPv6 one."""


@dataclass(frozen=True)
class Device:
    """An RDMA device of a guest."""

    name: str
    interface: str
    address: str


def devices(host: int, hosts: int) -> tuple[Device, ...]:
    """The RDMA devices of a guest: one on its wire, or two on a pair of joined interfaces where it is alone."""
    if hosts > 1:
        return (Device("rxe0", "eth0", f"{SUBNET}.{host + 1}"),)
    return tuple(Device(f"rxe{i}", f"v{i}", f"{SUBNET}.{i + 1}") for i in range(2))


def commands(host: int, hosts: int) -> list[str]:
    """What makes them."""
    found = ["modprobe -a rdma_rxe ib_uverbs rdma_ucm crc32_generic"]
    mine = devices(host, hosts)
    if hosts == 1:
        found += [f"ip link add v0 mtu {MTU} type veth peer name v1 mtu {MTU}"]
    for device in mine:
        found += [
            f"ip link set {device.interface} mtu {MTU} up",
            f"ip address add {device.address}/24 dev {device.interface}",
        ]
    if hosts == 1:
        found += _onto_the_wire()
    found += [f"rdma link add {d.name} type rxe netdev {d.interface}" for d in mine]
    return found


def _onto_the_wire() -> list[str]:
    """Policy routing that keeps the kernel from short-cutting two addresses of one host through loopback."""
    first, second = f"{SUBNET}.1", f"{SUBNET}.2"
    return [
        *(
            f"sysctl -qw net.ipv4.conf.{name}.accept_local=1 net.ipv4.conf.{name}.rp_filter=0"
            for name in ("all", "v0", "v1")
        ),
        "ip rule add pref 10 iif v0 lookup local",
        "ip rule add pref 11 iif v1 lookup local",
        f"ip rule add pref 20 from {first} to {second} lookup 101",
        f"ip rule add pref 21 from {second} to {first} lookup 102",
        f"ip route add {second} dev v0 src {first} table 101",
        f"ip route add {first} dev v1 src {second} table 102",
        # The copy first: without either the guest has no local addresses at all.
        "ip rule add pref 30 lookup local",
        "ip rule del pref 0",
    ]
