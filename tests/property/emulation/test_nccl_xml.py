"""A host that went through NCCL's topology file is the host that went in."""

import tempfile
from itertools import pairwise
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.io import nccl_xml
from emulation.profile import Profile

BASE = yaml.safe_load(
    (Path(__file__).resolve().parents[3] / "specs" / "hardware" / "a100x8-hdr.yaml").read_text("utf-8")
)
LINKS = st.tuples(st.sampled_from([2.5, 5.0, 8.0, 16.0, 32.0, 64.0]), st.sampled_from([1, 2, 4, 8, 16]))


@st.composite
def hosts(draw):
    """Dumps of hosts: trees of bridges of any shape, devices in any order, NVLinks of either kind."""
    cpus = draw(st.integers(1, 3))
    gpus, nics = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    sm, switched = draw(st.sampled_from([70, 80, 90, 100])), draw(st.booleans())
    count = draw(st.integers(1, 4))
    leaves = draw(st.permutations([("gpu", n) for n in range(gpus)] + [("net", n) for n in range(nics)]))
    buses = iter(range(1, 200))
    bus = {n: f"0001:{n:02x}:00.0" for n in range(gpus)}

    def pci(inside, kind, busid=""):
        speed, width = draw(LINKS)
        where = f'busid="{busid or f"0000:{next(buses):02x}:00.0"}" class="{kind}"'
        return f'<pci {where} link_speed="{speed} GT/s PCIe" link_width="{width}">{inside}</pci>'

    def leaf(kind, number):
        if kind == "net":
            guid = draw(st.sampled_from([hex(2**40 + number), hex(number)]))
            return pci(f'<nic><net name="n" dev="{number}" speed="100000" guid="{guid}"/></nic>', "0x020700")
        to = ["0000:ff:00.0"] if switched else [bus[n] for n in range(gpus) if n != number]
        kind = "0x068000" if switched else "0x030200"
        links = "".join(f'<nvlink target="{target}" count="{count}" tclass="{kind}"/>' for target in to)
        return pci(f'<gpu dev="{number}" sm="{sm}" rank="0" gdr="1">{links}</gpu>', "0x030200", bus[number])

    def tree(inside):
        if len(inside) > 1 and draw(st.booleans()):
            cut = draw(st.integers(1, len(inside) - 1))
            return pci(tree(inside[:cut]) + tree(inside[cut:]), "0x060400")
        bare = "".join(leaf(*one) for one in inside)
        return pci(bare, "0x060400") if draw(st.booleans()) else bare

    cuts = [0, *sorted(draw(st.integers(0, len(leaves))) for _ in range(cpus - 1)), len(leaves)]
    family = draw(st.sampled_from([23, 25, 26]))
    below = [tree(leaves[a:b]) if a < b else "" for a, b in pairwise(cuts)]
    body = "".join(
        f'<cpu numaid="{n}" arch="x86_64" vendor="AuthenticAMD" familyid="{family}" modelid="1">{inside}</cpu>'
        for n, inside in enumerate(below)
    )
    return sm, f'<system version="1">{body}</system>'


@settings(max_examples=100, deadline=None)
@given(hosts())
def test_host_comes_back_from_the_file_that_was_written_of_its_profile(dump):
    sm, text = dump
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "host.xml"
        path.write_text(text)
        found = nccl_xml.read(path)
        profile = Profile.model_validate(found.onto(BASE, name="made"))
        path.write_text(nccl_xml.write(profile, sm=sm))
        assert nccl_xml.read(path).host() == found.host()
