"""NCCL's topology files: what `NCCL_TOPO_DUMP_FILE` writes and `NCCL_TOPO_FILE` reads.

`read` makes a fragment of a profile of a dump; `write` makes a file of a profile's host, so that NCCL can be run as if
it were there. The format (NCCL, src/graph/xml.cc and topo.cc, file version 1): a system has one element per NUMA node
(`cpu`), below them the PCI tree (`pci`, nested), and at its leaves `gpu` (with `nvlink` and `c2c`) and `nic` with its
ports (`net`, speed in Mbit/s).
"""

from emulation.io.nccl_xml.reading import read, recognises
from emulation.io.nccl_xml.writing import write

__all__ = ["read", "recognises", "write"]
