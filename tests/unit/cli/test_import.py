"""`harness import` sees from a file's content what it is, and writes what can be used."""

import gzip
import json

import pytest

from emulation.graph import Workload
from emulation.io import chakra
from emulation.profile import Profile
from harness import cli
from harness.load import load_yaml_model

MATRIX = """\
        GPU0    GPU1    NIC0    CPU Affinity    NUMA Affinity
GPU0     X      NV12    PIX     0-31    0
GPU1    NV12     X      PIX     0-31    0
NIC0    PIX     PIX      X
"""
SYSTEM = """\
<system version="1">
  <cpu numaid="0" arch="x86_64" vendor="AuthenticAMD" familyid="25" modelid="1">
    <pci busid="0000:01:00.0" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
      <gpu dev="0" sm="80" rank="0" gdr="1"/>
    </pci>
  </cpu>
</system>
"""
TABLE = "size(B),count,type,time(ns),busbw(GB/s),time(ns),busbw(GB/s)\n" + "".join(
    f"{2**power},1,float,{10_000 + 2**power / 100:.0f},{2**power / (10_000 + 2**power / 100) * 1.5:.2f},"
    f"{10_000 + 2**power / 100:.0f},{2**power / (10_000 + 2**power / 100) * 1.5:.2f}\n"
    for power in range(10, 28)
)


@pytest.fixture
def told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        assert cli.main(["import", *arguments]) == code
        output = capsys.readouterr()
        return output.out if code == 0 else output.err

    return call


def test_matrix_is_told_from_its_content_and_becomes_a_profile(told, tmp_path):
    (tmp_path / "pasted").write_text("some shell prompt\n" + MATRIX)
    assert told("pasted").startswith("nvidia-smi topo -m: 2 gpu, 1 nic, 1 pcie-switch; links: 1 nvlink, 4 pcie\nnote: ")
    told("pasted", "--hardware", "a100x8-hdr", "--to", "ours.yaml")
    profile = load_yaml_model(tmp_path / "ours.yaml", Profile)
    assert profile.name == "ours"
    assert profile.capabilities().gpus == 2


def test_nccl_topology_is_told_from_its_content(told, tmp_path):
    (tmp_path / "dump").write_text(SYSTEM)
    assert json.loads(told("dump", "--json")) == {
        "kind": "NCCL topology",
        "gpus": 1,
        "nics": {},
        "switches": {},
        "links": {"pcie": 1},
        "notes": [],
    }


def test_measurements_become_tables_of_a_profile_and_replace_older_ones(told, tmp_path):
    (tmp_path / "allreduce_4gpu.csv").write_text(TABLE)
    assert "all-reduce of 4 ranks" in told("allreduce_4gpu.csv")
    told("allreduce_4gpu.csv", "--hardware", "a100x8-hdr", "--to", "ours.yaml")
    profile = load_yaml_model(tmp_path / "ours.yaml", Profile)
    (table,) = profile.collective_tables
    assert (table.op, table.ranks, table.link, table.grade) == ("all-reduce", 4, "nvlink", "measured")
    assert profile.sources[table.source] == "nccl-tests, allreduce_4gpu.csv"

    folder = tmp_path / "specs" / "hardware"
    folder.mkdir(parents=True)
    (tmp_path / "ours.yaml").rename(folder / "ours.yaml")
    (tmp_path / "results").mkdir()
    told("allreduce_4gpu.csv", "--op", "all-reduce", "--ranks", "4", "--hardware", "ours", "--to", "again.yaml")
    assert len(load_yaml_model(tmp_path / "again.yaml", Profile).collective_tables) == 1


def test_chakra_trace_is_emulated_on_a_profile(told, tmp_path):
    work = Workload()
    for rank in (group := ["host0/gpu0", "host0/gpu1"]):
        work.enter("all-reduce", rank, group, 2**20, after=[work.compute(rank, 1e12, dtype="fp16")])
    chakra.write(tmp_path / "step", work)
    assert told("step.0.et") == "Chakra trace of 2 ranks: 2 all-reduce, 2 compute\n"
    text = told("step.1.et", "--hardware", "a100x8-hdr", "--to", "step.trace.json.gz")
    assert "emulated on a100x8-hdr: 3." in text
    assert "80 % band" in text
    assert json.loads(gzip.decompress((tmp_path / "step.trace.json.gz").read_bytes()))["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pasted", "--to", "x.yaml"], "--to needs --hardware"),
        (["pasted", "--to", "x.yaml", "--hardware", "laptop"], "profile 'laptop' has no accelerators"),
        (["pasted", "--to", "x.yaml", "--hardware", "a100x8"], "no hardware profile 'a100x8'"),
        (
            ["pasted", "--to", "Bad Name.yaml", "--hardware", "a100x8-hdr"],
            "the profile would not hold together: name: ",
        ),
        (["notes"], "notes is nothing that is understood; expected output of nccl-tests"),
        (["table.csv", "--op", "all-reduse"], "'all-reduse' is no collective; expected one of: all-reduce"),
        (["table.csv", "--op", "all-reduce"], "table.csv: does not say how many ranks took part"),
        (["table.csv", "--op", "all-reduce", "--ranks", "2"], "table.csv:2: busbw"),
        (["empty.0.et"], "empty.0.et: an empty file"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(told, tmp_path, arguments, message):
    (tmp_path / "pasted").write_text(MATRIX)
    (tmp_path / "notes").write_text("nothing\n")
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "empty.0.et").write_bytes(b"")
    assert message in told(*arguments, code=2)
