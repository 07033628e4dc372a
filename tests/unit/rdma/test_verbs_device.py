import errno
import json
import sys
from dataclasses import replace

import pytest

from emulation import rdma_devices
from engines.rdma.device import (
    Access,
    ChannelOptions,
    ChannelState,
    InvalidDescriptor,
    ProviderUnavailable,
    Status,
    Unavailable,
)
from engines.rdma.providers import open_device
from engines.rdma.providers.verbs import bindings, lifetime
from engines.rdma.providers.verbs.adapter import Finished, Limits, MemoryAccess, Port, PortState

GID = "0000:0000:0000:0000:0000:ffff:0a00:0001"


class FakeMemory:
    def __init__(self, adapter, key):
        self._adapter, self.lkey, self.rkey = adapter, key, key + 1

    def close(self):
        del self._adapter.registered[self.lkey]


class FakeQueuePair:
    """Completes what was posted when it is told to."""

    def __init__(self, adapter, number, receives):
        self.adapter, self.number, self.receives = adapter, number, receives
        self.calls, self.posted, self.done = [], [], []

    def initialize(self, port, access):
        self.calls.append("init")

    def ready_to_receive(self, path):
        if self.adapter.unreachable:
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        self.calls.append(path)

    def ready_to_send(self, sequence, patience, reads):
        self.calls.append((sequence, patience, reads))

    def fail(self):
        self.calls.append("fail")

    def post(self, request):
        self.posted.append(request)

    def post_receive(self, number, address, nbytes, lkey):
        self.receives -= 1
        assert self.receives >= 0, "more receives than the queue pair takes"

    def poll(self, most):
        found, self.done = self.done[:most], self.done[most:]
        return found

    def close(self):
        self.calls.append("close")


class FakeAdapter:
    name = "rxe0"
    limits = Limits(work_requests=1000, completions=64, reads=16, regions=100, queue_pairs=10)

    def __init__(self, state=PortState.ACTIVE):
        self.state, self.pairs, self.registered, self.closed = state, [], {}, False
        self.refuses = self.unreachable = False
        self.keys = 100

    def port(self, number):
        return Port(int(self.state), 0, 5, 1 << 31, 2)

    def gid(self, port, index):
        return bytes(12) + bytes([10, 0, 0, 1])

    def register(self, address, nbytes, access):
        if self.refuses:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self.keys += 10
        self.registered[self.keys] = (address, nbytes, access)
        return FakeMemory(self, self.keys)

    def queue_pair(self, sends, receives):
        assert sends + receives <= self.limits.completions
        self.pairs.append(FakeQueuePair(self, len(self.pairs) + 1, receives))
        return self.pairs[-1]

    def close(self):
        self.closed = True


class FakeBinding:
    name = "fake"

    def __init__(self, adapter, names=("rxe0",), error=None):
        self.adapter, self.names, self.error = adapter, names, error

    def devices(self):
        if self.error:
            raise self.error
        return self.names

    def open(self, device):
        return self.adapter


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with one Soft-RoCE device as sysfs shows it; returns its adapter and a way to open it."""
    port = tmp_path / "rxe0" / "ports" / "1"
    files = {
        tmp_path / "rxe0" / "parent": "v0", port / "state": "4: ACTIVE", port / "link_layer": "Ethernet",
        port / "lid": "0x0", port / "gids" / "0": GID, port / "gid_attrs" / "types" / "0": "RoCE v2",
        port / "gid_attrs" / "ndevs" / "0": "v0", port / "hw_counters" / "sent_pkts": "3",
    }  # fmt: skip
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def in_the_fake(real):
        return lambda *args: real(*(arg for arg in args if arg != rdma_devices.SYSFS), tmp_path)

    for function in ("devices", "gids", "wire_counters"):
        monkeypatch.setattr(rdma_devices, function, in_the_fake(getattr(rdma_devices, function)))
    binding = FakeBinding(FakeAdapter())
    monkeypatch.setattr(bindings, "load", lambda wanted: binding)

    def start(capacity=4096, **options):
        return open_device("verbs", capacity, **options)

    start.binding, start.root = binding, tmp_path
    return start


def refusal(action):
    with pytest.raises(ProviderUnavailable) as caught:
        action()
    return caught.value


@pytest.mark.parametrize("wanted", ["auto", "ibverbs", "pyverbs"])
def test_without_a_binding_there_is_no_library(monkeypatch, wanted):
    for name in ("ibverbs", "pyverbs"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, f"engines.rdma.providers.verbs.binding_{name}", raising=False)
    error = refusal(lambda: open_device("verbs", 4096, binding=wanted))
    assert error.reason is Unavailable.LIBRARY
    assert "pip install ibverbs" in str(error)


def test_an_unknown_binding_is_the_callers_mistake():
    with pytest.raises(ValueError, match="no binding 'rust'; there are auto, ibverbs, pyverbs"):
        bindings.load("rust")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOENT])
def test_without_the_kernels_modules_there_is_no_kernel_support(machine, code):
    machine.binding.error = OSError(code, "no")
    assert refusal(machine).reason is Unavailable.KERNEL


def test_without_a_device_there_is_none_and_the_message_says_how_to_make_one(machine):
    machine.binding.names = ()
    error = refusal(machine)
    assert (error.reason, "rdma link add" in str(error)) == (Unavailable.DEVICE, True)


def test_a_device_that_is_not_here_is_named_with_those_that_are(machine):
    error = refusal(lambda: machine(device="mlx5_0"))
    assert (error.reason, str(error)) == (
        Unavailable.DEVICE, "no device: no RDMA device 'mlx5_0'; there are rxe0",
    )  # fmt: skip


def test_a_port_that_is_down_is_said_and_the_adapter_given_back(machine):
    machine.binding.adapter.state = PortState.DOWN
    error = refusal(machine)
    assert (error.reason, "is DOWN" in str(error)) == (Unavailable.PORT, True)
    assert machine.binding.adapter.closed


@pytest.mark.parametrize("options", [{"gid_index": 7}, {}])
def test_no_address_to_connect_with_is_said_with_those_there_are(machine, options):
    (machine.root / "rxe0" / "ports" / "1" / "gid_attrs" / "types" / "0").write_text("IB/RoCE v1")
    error = refusal(lambda: machine(**options))
    assert (error.reason, "0: ::ffff:" in str(error)) == (Unavailable.GID, True), str(error)
    assert machine.binding.adapter.closed


def test_memory_that_cannot_be_locked_is_said_with_the_limit(machine):
    device = machine()
    machine.binding.adapter.refuses = True
    error = refusal(lambda: device.allocate(64, access=Access.LOCAL_WRITE))
    assert (error.reason, "locked-memory limit" in str(error)) == (Unavailable.MEMORY, True)
    assert refusal(device.channel).reason is Unavailable.MEMORY
    assert device.counters().registrations == 0


def test_an_arena_larger_than_the_address_space_is_refused(machine):
    assert refusal(lambda: machine(1 << 60)).reason is Unavailable.MEMORY
    assert machine.binding.adapter.closed


def test_each_region_is_registered_exactly_and_with_the_rights_asked_for(machine):
    device, adapter = machine(), machine.binding.adapter
    regions = [device.allocate(100, access=access) for access in (
        Access(0), Access.LOCAL_WRITE, Access.REMOTE_READ, Access.REMOTE_WRITE,
    )]  # fmt: skip
    found = [adapter.registered[region.lkey] for region in regions]
    assert [(address, nbytes) for address, nbytes, _ in found] == [(region.offset, 100) for region in regions]
    write = MemoryAccess.LOCAL_WRITE
    assert [rights for *_, rights in found] == [
        0, write, MemoryAccess.REMOTE_READ, write | MemoryAccess.REMOTE_WRITE,
    ]  # fmt: skip


def test_an_empty_region_lets_no_peer_touch_a_byte(machine):
    device = machine()
    region = device.allocate(0, access=Access.REMOTE_WRITE | Access.REMOTE_READ)
    assert machine.binding.adapter.registered[region.lkey][1:] == (1, MemoryAccess(0))
    assert region.view.nbytes == 0


def test_closing_gives_everything_back_in_order(machine):
    device, adapter = machine(), machine.binding.adapter
    channel = device.channel()
    device.allocate(64, access=Access.LOCAL_WRITE)
    device.close()
    assert (channel.state, adapter.registered, adapter.closed) == (ChannelState.CLOSED, {}, True)
    assert adapter.pairs[0].calls[-1] == "close"
    assert device.counters().registered_bytes == 0


@pytest.mark.parametrize("largest", [1 << 40, 1000])
def test_a_device_says_what_its_user_must_know(machine, largest):
    traits = machine(largest_write=largest).traits
    assert (traits.provider, traits.in_order, traits.largest_write) == ("verbs", True, min(largest, 1 << 31))
    assert traits.detail == {
        "device": "rxe0", "driver": "rdma_rxe", "binding": "fake", "link layer": "Ethernet",
        "gid": "0: ::ffff:a00:1", "mtu": "4096",
    }  # fmt: skip


@pytest.mark.parametrize(("told", "found"), [(None, False), (True, True)])
def test_an_adapter_is_not_trusted_to_place_bytes_in_order_unless_told(machine, told, found):
    (machine.root / "rxe0" / "parent").unlink()
    assert machine(in_order=told).traits.in_order is found


def test_the_completion_queue_has_room_for_both_directions(machine):
    channel = machine().channel(ChannelOptions(depth=500))
    # The fake refuses more than its limit of 64 completions, and more receives than it was asked for.
    assert channel.state is ChannelState.UNCONNECTED


def connected(machine, **options):
    device = machine()
    channel = device.channel(ChannelOptions(**options))
    peer = {**json.loads(channel.address()), "mtu": 3, "reads": 4, "queue_pair": 99, "sequence": 1234}
    channel.connect(json.dumps(peer))
    return device, channel, machine.binding.adapter.pairs[-1]


def test_a_connection_takes_the_lesser_of_both_ends(machine):
    _, channel, pair = connected(machine, timeout=12, retries=3, rnr_retries=2)
    _, path, (sequence, patience, reads) = pair.calls
    assert (path.queue_pair, path.sequence, path.mtu, path.reads, path.is_global) == (99, 1234, 3, 4, True)
    assert (patience.timeout, patience.retries, patience.rnr_retries, reads) == (12, 3, 2, 4)
    assert sequence == json.loads(channel.address())["sequence"]
    assert channel.state is ChannelState.READY


def test_a_peer_that_cannot_be_reached_is_said_and_the_channel_stays_to_be_connected(machine):
    machine.binding.adapter.unreachable = True
    error = refusal(lambda: connected(machine))
    assert error.reason is Unavailable.PEER


@pytest.mark.parametrize(
    ("field", "value"),
    [("mtu", 0), ("mtu", 6), ("queue_pair", 1 << 24), ("gid", "00"), ("gid", "G" * 32), ("provider", "shm"),
     ("epoch", 0), ("lid", 1 << 16), ("reads", 256), ("sequence", -1), ("device", 7), ("link_layer", True)],
)  # fmt: skip
def test_an_address_out_of_range_is_refused(machine, field, value):
    channel = machine().channel()
    address = {**json.loads(channel.address()), field: value}
    with pytest.raises(InvalidDescriptor):
        channel.connect(json.dumps(address))
    assert channel.state is ChannelState.UNCONNECTED


def test_ends_of_different_networks_do_not_join(machine):
    channel = machine().channel()
    address = {**json.loads(channel.address()), "link_layer": 1}
    assert refusal(lambda: channel.connect(json.dumps(address))).reason is Unavailable.PEER


def test_a_descriptor_from_before_a_later_one_is_stale(machine):
    device, channel, pair = connected(machine)
    region = device.allocate(64, access=Access.LOCAL_WRITE)
    old = device.describe(region)
    new = replace(old, epoch=2)
    channel.write(region, new, offset=0, at=0, nbytes=8)
    channel.write(region, old, offset=0, at=0, nbytes=8)
    assert [request.nbytes for request in pair.posted] == [8, 0]
    pair.done = [Finished(request.number, 0, 1, 0, 0) for request in pair.posted]
    assert [c.status for c in channel.poll()] == [Status.SUCCESS, Status.STALE_REGION]
    assert channel.state is ChannelState.ERROR
    assert pair.calls[-1] == "fail"


@pytest.mark.parametrize("change", [{"rkey": 1 << 32}, {"address": 2**64 - 4}, {"device": "other"}])
def test_what_no_adapter_could_be_asked_is_not_asked(machine, change):
    device, channel, pair = connected(machine)
    region = device.allocate(64, access=Access.LOCAL_WRITE)
    channel.write(region, replace(device.describe(region), **change), offset=0, at=0, nbytes=8)
    pair.done = [Finished(pair.posted[0].number, 0, 1, 0, 0)]
    assert [c.status for c in channel.poll()] == [Status.REMOTE_ACCESS]
    assert pair.posted[0].nbytes == 0


def test_a_silent_peer_is_asked_whether_it_lives_once_at_a_time(machine, monkeypatch):
    from engines.rdma.providers.verbs import channel as module

    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    _, channel, pair = connected(machine)
    assert channel.alive()
    assert pair.posted == []
    now[0] = 1.5
    assert channel.alive()
    now[0] = 30.0
    assert channel.alive()
    assert [request.nbytes for request in pair.posted] == [0], "asked again before the answer"
    pair.done = [Finished(pair.posted[0].number, 12, 0, 0, 0)]
    assert not channel.alive()
    assert (channel.state, channel.poll()) == (ChannelState.ERROR, [])


def test_a_host_says_in_its_environment_which_adapter_is_its_own(machine, monkeypatch):
    for name, value in (("DEVICE", "rxe0"), ("GID_INDEX", "0"), ("IN_ORDER", "no"), ("PORT", "")):
        monkeypatch.setenv(f"HARNESS_VERBS_{name}", value)
    traits = machine().traits
    assert (traits.detail["device"], traits.in_order) == ("rxe0", False)
    assert machine(in_order=True).traits.in_order, "an option comes before the variable"


@pytest.mark.parametrize(("name", "value"), [("PORT", "one"), ("GID_INDEX", "-1"), ("IN_ORDER", "1")])
def test_a_variable_that_makes_no_sense_is_named(machine, monkeypatch, name, value):
    monkeypatch.setenv(f"HARNESS_VERBS_{name}", value)
    with pytest.raises(ValueError, match=f"HARNESS_VERBS_{name} must be"):
        machine()


@pytest.mark.parametrize(("driver", "retries"), [("rdma_rxe", 6), ("", 7)])
def test_soft_roce_is_not_given_the_number_of_retries_that_it_takes_for_endless(machine, driver, retries):
    if not driver:
        (machine.root / "rxe0" / "parent").unlink()
    _, _, pair = connected(machine, retries=7)
    assert pair.calls[2][1].retries == retries


def test_a_device_that_nobody_closed_is_closed_when_its_process_ends(machine):
    device = machine()
    device.channel()
    lifetime.close_all()
    assert machine.binding.adapter.closed
    lifetime.close_all()
