"""What a host is made of, as NCCL's topology file and as `nvidia-smi topo -m` say it."""

from pathlib import Path

import pytest
import yaml

from emulation.evaluate import simulate
from emulation.graph import Workload
from emulation.io import FormatError, nccl_xml, topo_matrix
from emulation.profile import Profile

HARDWARE = Path(__file__).resolve().parents[3] / "specs" / "hardware"

# Two NUMA nodes; gpu0 and gpu1 behind a bridge with one adapter, gpu2 alone below a chain of bridges; six NVSwitches.
XML = """\
<system version="1">
  <cpu host_hash="0x1" numaid="3" affinity="0000ffff" arch="x86_64" vendor="AuthenticAMD" familyid="175" modelid="1">
    <pci busid="0000:01:00.0" class="0x060400" link_speed="16.0 GT/s PCIe" link_width="16">
      <pci busid="0000:02:00.0" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
        <gpu dev="1" sm="80" rank="1" gdr="1">
          <nvlink target="0000:c0:00.0" count="6" tclass="0x068000"/>
          <nvlink target="0000:c1:00.0" count="6" tclass="0x068000"/>
        </gpu>
      </pci>
      <pci busid="0000:03:00.0" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
        <gpu dev="0" sm="80" rank="0" gdr="1">
          <nvlink target="0000:c0:00.0" count="6" tclass="0x068000"/>
          <nvlink target="0000:c1:00.0" count="6" tclass="0x068000"/>
        </gpu>
      </pci>
      <pci busid="0000:04:00.0" class="0x020700" link_speed="16.0 GT/s PCIe" link_width="8">
        <nic><net name="mlx5_0" dev="0" speed="200000" port="1" guid="0x64774a0003a1420c" gdr="1"/></nic>
      </pci>
    </pci>
    <pci busid="0000:c0:00.0" class="0x068000" link_speed="16.0 GT/s PCIe" link_width="2"/>
  </cpu>
  <cpu host_hash="0x1" numaid="7" affinity="ffff0000" arch="x86_64" vendor="AuthenticAMD" familyid="175" modelid="1">
    <pci busid="0000:41:00.0" class="0x060400" link_speed="16.0 GT/s PCIe" link_width="16">
      <pci busid="0000:42:00.0" class="0x060400" link_speed="8.0 GT/s PCIe" link_width="16">
        <pci busid="0000:43:00.0" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
          <gpu dev="2" sm="80" rank="2" gdr="1">
            <nvlink target="0000:c0:00.0" count="6" tclass="0x068000"/>
            <nvlink target="0000:c1:00.0" count="6" tclass="0x068000"/>
          </gpu>
        </pci>
      </pci>
    </pci>
    <nic><net name="eth0" dev="1" speed="10000" port="0" guid="0x1" gdr="0"/></nic>
  </cpu>
</system>
"""

CUBE = """\
	\x1b[4mGPU0	GPU1	GPU2	GPU3	NIC0	NIC1	CPU Affinity	NUMA Affinity	GPU NUMA ID\x1b[0m
GPU0	 X 	NV1	NV2	SYS	PIX	SYS	0-15,32-47	0		N/A
GPU1	NV1	 X 	SYS	NV2	PXB	SYS	0-15,32-47	0		N/A
GPU2	NV2	SYS	 X 	NV1	SYS	NODE	16-31,48-63	1		N/A
GPU3	SYS	NV2	NV1	 X 	SYS	NODE	16-31,48-63	1		N/A
NIC0	PIX	PXB	SYS	SYS	 X 	SYS
NIC1	SYS	SYS	NODE	NODE	SYS	 X

Legend:

  X    = Self
  PIX  = Connection traversing at most a single PCIe bridge

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
"""


def _all_to_all(gpus, links):
    names = [f"GPU{n}" for n in range(gpus)]
    lines = ["        " + "    ".join(names) + "    CPU Affinity    NUMA Affinity"]
    lines += [f"{a}    " + "    ".join("X" if a == b else links for b in names) + "    0-63    0" for a in names]
    return "\n".join(lines)


@pytest.fixture
def base():
    return lambda name="a100x8-hdr": yaml.safe_load((HARDWARE / f"{name}.yaml").read_text())


@pytest.fixture
def write(tmp_path):
    def make(text, name="host.xml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


def _links(fragment):
    return {(w.left, w.right): (w.kind, w.lanes, w.rate) for w in fragment.wires}


def test_nccl_file_is_the_host_it_was_dumped_on(write):
    found = nccl_xml.read(write(XML))
    assert found.gpus == 3
    assert found.nics == {"nic": [25e9], "ethernet": [1.25e9]}
    assert found.switches == {"numa": 2, "pcie-switch": 1, "nvswitch": 1}
    links = _links(found)
    lane4, lane3 = 1_969_230_769.0, 984_615_385.0
    assert {ends: link for ends, link in links.items() if link[0] == "pcie"} == {
        ("pcie-switch0", "numa0"): ("pcie", 16, lane4),
        ("gpu0", "pcie-switch0"): ("pcie", 16, lane4),
        ("gpu1", "pcie-switch0"): ("pcie", 16, lane4),
        ("nic0", "pcie-switch0"): ("pcie", 8, lane4),
        # The narrowest of the links one after another.
        ("gpu2", "numa1"): ("pcie", 16, lane3),
        ("ethernet0", "numa1"): ("pcie", 16, lane3),
    }
    assert {ends: link for ends, link in links.items() if link[0] == "nvlink"} == {
        (f"gpu{n}", "nvswitch0"): ("nvlink", 12, 20e9) for n in range(3)
    }
    assert links["numa0", "cpu"] == ("cpu", 1, 24e9)


def test_fragment_makes_a_profile_that_simulates(write, base):
    document = nccl_xml.read(write(XML)).onto(base(), name="mine")
    profile = Profile.model_validate(document)
    assert profile.capabilities().gpus == 3
    assert profile.capabilities().rdma
    work = Workload()
    work.collective("all-reduce", ["host0/gpu0", "host0/gpu1", "host0/gpu2"], 2**28)
    work.transfer("host0/gpu0", "host1/gpu2", 2**20)
    used = {use.name: use.capacity for use in simulate(work, profile).links}
    assert used["host0/gpu0>host0/nvswitch0"] == 240e9
    assert used["host0/gpu0>host0/pcie-switch0"] == pytest.approx(24e9, rel=1e-5), "the payload NCCL counts on"
    assert used["host0/nic0>fabric/leaf0"] == pytest.approx(25e9 * 0.96)


def test_host_without_adapters_becomes_one_host(write, base):
    text = "\n".join(line for line in XML.splitlines() if "<nic>" not in line)
    profile = Profile.model_validate(nccl_xml.read(write(text)).onto(base(), name="mine"))
    assert profile.capabilities().hosts == 1
    assert profile.fabric.links == []


@pytest.mark.parametrize(("name", "sm"), [("a100x8-hdr", 80), ("h100x8-ndr", 90), ("v100x8-nvlink", 70)])
def test_shipped_host_comes_back_from_its_nccl_file(write, base, name, sm):
    profile = Profile.model_validate(base(name))
    text = nccl_xml.write(profile, sm=sm)
    found = nccl_xml.read(write(text))
    host = profile.hosts[0]
    assert found.gpus == sum(group.count for group in host.devices)
    assert len(found.nics.get("nic", [])) == sum(nic.count for nic in host.nics)
    again = Profile.model_validate(found.onto(base(name), name="again"))
    assert nccl_xml.read(write(nccl_xml.write(again, sm=sm))).host() == found.host()
    nvlinks = {(link.lanes, len(link.pairs)) for link in again.hosts[0].links if link.kind == "nvlink"}
    assert (
        nvlinks
        == {
            "a100x8-hdr": {(12, 8)},
            "h100x8-ndr": {(18, 8)},
            "v100x8-nvlink": {(1, 8), (2, 8)},
        }[name]
    )


def test_adapter_beside_its_gpu_is_put_below_one_bridge_with_it(write, base):
    found = nccl_xml.read(write(nccl_xml.write(Profile.model_validate(base()), sm=80)))
    assert found.switches == {"pcie-switch": 8, "nvswitch": 1}
    ends = set(_links(found))
    assert all({(f"gpu{n}", f"pcie-switch{n}"), (f"nic{n}", f"pcie-switch{n}")} <= ends for n in range(8))


BAD_XML = [
    ('version="1"', 'version="2"', r"host\.xml:1: <system>: file version 2; NCCL writes and reads version 1"),
    ('version="1"', "", r"host\.xml:1: <system>: lacks the attribute version"),
    ("<system", "<topology", r"host\.xml:\d+: not well-formed XML: mismatched tag"),
    ('dev="2" sm', 'dev="two" sm', r"host\.xml:26: <gpu>: dev='two' is not a whole number"),
    ('link_speed="8.0 GT/s PCIe"', 'link_speed="fast"', r"host\.xml:24: <pci>: link_speed='fast'; expected"),
    ('link_speed="8.0 GT/s PCIe"', 'link_speed="800 GT/s"', r"host\.xml:24: <pci>: no PCI Express link has 800 GT/s"),
    ('count="6" tclass="0x068000"', 'count="6" tclass="0x01"', r"host\.xml:6: <nvlink>: tclass='0x01' is no"),
    ('count="6" tclass="0x068000"', 'count="0" tclass="0x068000"', r"host\.xml:6: <nvlink>: count=0 links"),
    ('busid="0000:03:00.0"', 'busid="0000:02:00.0"', r"host\.xml:10: busid 0000:02:00\.0 stands on line 4"),
    ('host_hash="0x1" numaid="7"', 'host_hash="0x2" numaid="7"', r"host\.xml:1: <system>: describes several hosts"),
    (
        '<nvlink target="0000:c0:00.0" count="6" tclass="0x068000"/>',
        '<nvlink target="0000:03:00.0" count="6" tclass="0x030200"/>',
        r"host\.xml:6: <nvlink>: the two ends disagree on their NVLinks: 0 from gpu0 and 6 from gpu1",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_XML, ids=range(len(BAD_XML)))
def test_malformed_nccl_file_names_file_and_line(write, old, new, message):
    assert old in XML
    with pytest.raises(FormatError, match=message):
        nccl_xml.read(write(XML.replace(old, new, 1)))


def test_file_of_hints_without_accelerators_says_what_to_give(write):
    text = '<system version="1"><cpu numaid="0"><pci busid="0000:00:1b.0"/></cpu></system>'
    with pytest.raises(FormatError, match="NCCL_TOPO_DUMP_FILE"):
        nccl_xml.read(write(text))


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">\n' for n in range(1, 10))


@pytest.mark.parametrize(
    "declaration",
    [
        f'<!DOCTYPE system [\n<!ENTITY l0 "ha">\n{LAUGHS}]>',
        '<!DOCTYPE system [<!ENTITY f SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE system SYSTEM "http://localhost/x.dtd">',
    ],
    ids=["billion-laughs", "external-entity", "external-dtd"],
)
def test_entities_are_refused_before_they_are_read(write, declaration):
    path = write(f'<?xml version="1.0"?>\n{declaration}\n<system version="1">&l9;</system>')
    with pytest.raises(FormatError, match=r"host\.xml:2: document types and entities are not read"):
        nccl_xml.read(path)


def test_deep_file_is_refused(write):
    with pytest.raises(FormatError, match="within one another"):
        nccl_xml.read(write('<system version="1">' + "<cpu>" * 1000 + "</cpu>" * 1000 + "</system>"))


def test_host_without_accelerators_has_no_nccl_file(base):
    with pytest.raises(FormatError, match="has no accelerators"):
        nccl_xml.write(Profile.model_validate(base("laptop")), sm=80)


def test_matrix_is_read_with_its_escapes_and_legend(write):
    matrix = topo_matrix.read_matrix(write(CUBE, "topo.txt"))
    assert matrix.devices == ("GPU0", "GPU1", "GPU2", "GPU3", "NIC0", "NIC1")
    assert matrix.entries[1] == ("NV1", "X", "SYS", "NV2", "PXB", "SYS")
    assert matrix.numa == ("0", "0", "1", "1", "", "")
    assert matrix.legend == {"NIC0": "mlx5_0", "NIC1": "mlx5_1"}


def test_matrix_gives_switches_numa_nodes_and_nvlinks(write):
    found = topo_matrix.read(write(CUBE, "topo.txt"))
    assert {ends: link[:2] for ends, link in _links(found).items()} == {
        ("numa0", "cpu"): ("cpu", None),
        ("numa1", "cpu"): ("cpu", None),
        # gpu0 and nic0 behind one bridge, and gpu1 behind several that lead to it.
        ("pcie-switch0", "numa0"): ("pcie", None),
        ("pcie-switch1", "pcie-switch0"): ("pcie", None),
        ("gpu0", "pcie-switch1"): ("pcie", None),
        ("nic0", "pcie-switch1"): ("pcie", None),
        ("gpu1", "pcie-switch0"): ("pcie", None),
        ("gpu2", "numa1"): ("pcie", None),
        ("gpu3", "numa1"): ("pcie", None),
        ("nic1", "numa1"): ("pcie", None),
        ("gpu0", "gpu1"): ("nvlink", 1),
        ("gpu0", "gpu2"): ("nvlink", 2),
        ("gpu1", "gpu3"): ("nvlink", 2),
        ("gpu2", "gpu3"): ("nvlink", 1),
    }


@pytest.mark.parametrize(
    ("gpus", "links", "switched"),
    [(8, "NV12", True), (8, "NV18", True), (4, "NV12", True), (4, "NV4", False), (2, "NV12", False), (4, "PHB", False)],
)
def test_more_nvlinks_than_a_processor_has_mean_an_nvswitch(write, gpus, links, switched):
    found = topo_matrix.read(write(_all_to_all(gpus, links), "topo.txt"))
    assert ("nvswitch" in found.switches) == switched
    nvlinks = [wire for wire in found.wires if wire.kind == "nvlink"]
    direct = gpus * (gpus - 1) // 2 if links.startswith("NV") else 0
    assert len(nvlinks) == (gpus if switched else direct)


def test_matrix_takes_rates_from_the_profile_it_is_put_into(write, base):
    document = topo_matrix.read(write(_all_to_all(8, "NV12"), "topo.txt")).onto(base(), name="mine")
    host = Profile.model_validate(document).hosts[0]
    nvlink = next(link for link in host.links if link.kind == "nvlink")
    assert (nvlink.rate.value, nvlink.lanes, nvlink.efficiency.value) == (25e9, 12, 0.8)
    cube = topo_matrix.read(write(CUBE, "topo.txt")).onto(base(), name="mine")
    assert Profile.model_validate(cube).capabilities().hosts == 2
    with pytest.raises(FormatError, match="profile 'laptop' has no accelerators"):
        topo_matrix.read(write(CUBE, "topo.txt")).onto(base("laptop"), name="mine")


BAD_MATRIX = [
    (
        "GPU1	NV1	 X 	SYS	NV2	PXB	SYS	0-15,32-47	0		N/A\n",
        "",
        r"topo\.txt: the matrix has a column GPU1 and no row",
    ),
    (
        "NIC1	SYS	SYS	NODE	NODE	SYS	 X",
        "NIC1	SYS	SYS	NODE",
        r"topo\.txt:7: row NIC1 has 3 entries for 6 columns",
    ),
    ("GPU2	NV2	SYS", "GPU2	NVX	SYS", r"topo\.txt:4: 'NVX' in row GPU2, column GPU0; there is X, NV#, PIX"),
    ("GPU2	NV2	SYS", "GPU2	NV4	SYS", r"topo\.txt:4: GPU2 to GPU0 is NV4, and GPU0 to GPU2 is NV2"),
    ("GPU0	 X 	NV1", "GPU0	NV1	NV1", r"topo\.txt:2: 'NV1' in row GPU0, column GPU0: X is for"),
    ("GPU0	GPU1", "CPU0	CPU1", r"topo\.txt: no line of column names"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_MATRIX, ids=range(len(BAD_MATRIX)))
def test_malformed_matrix_names_file_and_line(write, old, new, message):
    assert old in CUBE
    with pytest.raises(FormatError, match=message):
        topo_matrix.read(write(CUBE.replace(old, new, 1), "topo.txt"))
