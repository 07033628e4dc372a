from pathlib import Path

import pytest

from emulation.softroce import Image, Layer, Share, SoftRoceError, ToolsMissing, Wire, machine, network, tools
from emulation.softroce.cluster import Cluster
from emulation.softroce.machine import Machine, mount_commands

IMAGE = Image(Path("/cache/image"))


def command(**more):
    return Machine(image=IMAGE, control=Path("/logs/guest0"), **more).command(agent=7, wire=9, number=1)


def options(words, name):
    return [words[i + 1] for i, word in enumerate(words) if word == name]


def test_the_command_line_boots_the_image_and_leaves_it_as_it_is():
    words = command(memory=768 << 20, processors=3)
    assert options(words, "-kernel") == ["/cache/image/vmlinuz"]
    assert options(words, "-drive") == ["file=/cache/image/root.ext4,if=virtio,format=raw,snapshot=on"]
    assert (options(words, "-m"), options(words, "-smp")) == (["768M"], ["3"])
    assert options(words, "-chardev") == ["socket,id=agent,fd=7"]
    assert options(words, "-netdev") == ["stream,id=wire,server=off,addr.type=fd,addr.str=9"]
    assert "virtio-net-pci,netdev=wire,mac=52:54:00:00:00:02,host_mtu=4300" in options(words, "-device")


def test_qemu_and_its_timer_die_with_their_parents():
    words = command(lifetime=90)
    deadly = ["setpriv", "--pdeathsig", "KILL", "--"]
    assert words[:13] == [*deadly, "timeout", "--signal", "KILL", "90", *deadly, tools.QEMU]


@pytest.mark.parametrize(("accelerator", "expected"), [("tcg", ["tcg,thread=multi", "max"]), ("kvm", ["kvm", "host"])])
def test_the_processor_fits_the_accelerator(accelerator, expected):
    words = command(accelerator=accelerator)
    assert [*options(words, "-accel"), *options(words, "-cpu")] == expected


def test_a_guest_alone_has_no_wire():
    assert "-netdev" not in Machine(image=IMAGE, control=Path("/logs")).command(agent=7)


def test_commas_in_names_do_not_end_an_option():
    words = command(shares=(Share(Path("/a,b"), "/there"),), disks=(Path("/c,d.ext4"),))
    assert any("path=/a,,b,security_model" in word for word in options(words, "-fsdev"))
    assert "file=/c,,d.ext4,if=virtio,format=raw,readonly=on" in options(words, "-drive")


def test_only_writable_shares_can_be_written_and_they_are_not_cached():
    shares = (Share(Path("/code"), "/code"), Share(Path("/run dir"), "/run dir", writable=True))
    guest = Machine(image=IMAGE, control=Path("/logs"), shares=shares, disks=(Path("/p.ext4"),))
    exported = {word.split(",")[1]: word for word in options(guest.command(agent=7), "-fsdev")}
    assert "readonly=on" in exported["id=share0"]
    assert "readonly" not in exported["id=share1"] + exported["id=control"]
    mounts = mount_commands(guest, ["/opt/packages"])
    assert mounts[1].endswith("cache=loose,ro share0 /code")
    assert mounts[3].endswith("cache=none share1 '/run dir'")
    assert mounts[-1] == "mount -t ext4 -o ro,noload /dev/vdb /opt/packages"


def test_a_share_that_is_no_folder_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "need", lambda programs: None)
    guest = Machine(image=IMAGE, control=tmp_path / "logs", shares=(Share(tmp_path / "nowhere", "/x"),))
    with pytest.raises(SoftRoceError, match="nowhere with a guest: it is no folder"):
        guest.start(":")


def test_missing_programs_are_one_command(monkeypatch):
    monkeypatch.setattr(tools.shutil, "which", lambda name, path: None)
    monkeypatch.setattr(tools.os, "geteuid", lambda: 1000)
    with pytest.raises(ToolsMissing) as raised:
        tools.need({"modprobe": "kmod", "depmod": "kmod", "cpio": "cpio"})
    assert str(raised.value).endswith("install them: sudo apt-get install --no-install-recommends kmod cpio")


@pytest.mark.parametrize(
    ("hosts", "memory", "said"), [(0, 1 << 30, "1 to 8"), (9, 1 << 30, "1 to 8"), (2, 1 << 20, "256")]
)
def test_a_cluster_that_cannot_be_is_refused(tmp_path, hosts, memory, said):
    with pytest.raises(SoftRoceError, match=said):
        Cluster(hosts, tmp_path, image=IMAGE, memory=memory, accelerator="tcg")


def test_guests_of_a_wire_have_a_device_each_and_one_alone_has_two():
    assert [network.devices(i, 3)[0].address for i in range(3)] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert [d.name for d in network.devices(0, 1)] == ["rxe0", "rxe1"]
    assert network.commands(1, 2)[-1] == "rdma link add rxe0 type rxe netdev eth0"


def test_one_guests_local_addresses_are_looked_up_anew_before_the_old_rule_goes():
    lines = network.commands(0, 1)
    assert lines.index("ip rule add pref 30 lookup local") < lines.index("ip rule del pref 0")


@pytest.mark.parametrize(
    ("wire", "options"),
    [
        (Wire(loss=0.01), "netem limit 20000 loss 1.000000%"),
        (Wire(delay=0.005), "netem limit 20000 delay 5000us"),
        (Wire(loss=1e-4, delay=3e-6, rate=1e8), "netem limit 20000 delay 3us loss 0.010000% rate 100000000bit"),
        (Wire(), "pfifo limit 1000"),
    ],
)
def test_a_wire_is_one_netem_command(wire, options):
    (words,) = wire.commands("eth0")
    assert " ".join(words) == f"tc qdisc replace dev eth0 root {options}"


@pytest.mark.parametrize("figures", [{"loss": 1.5}, {"loss": -0.1}, {"delay": 11}, {"delay": -1}, {"rate": -1}])
def test_a_wire_with_impossible_figures_is_refused(figures):
    with pytest.raises(SoftRoceError, match=next(iter(figures))):
        Wire(**figures)


def test_a_layer_has_a_plain_name():
    with pytest.raises(SoftRoceError, match="letters, digits and dashes"):
        Layer.build("../up", ())
