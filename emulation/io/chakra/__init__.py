"""Chakra execution traces: one file per rank, for ASTRA-sim and its relatives.

`write` turns a workload graph into `<name>.<rank>.et` and `<name>.groups.json` (process group -> ranks, which ASTRA-sim
takes as its communicator-group file); `read` turns such files into a workload graph. What Chakra has no field for
(streams, number formats, picoseconds) is kept in attributes of our own, `harness.*`, which other tools skip and `read`
prefers; so a workload that went through files simulates to the same picosecond.

A file is a sequence of protobuf messages, each after its length as a varint: GlobalMetadata once, then Nodes (MLCommons
Chakra, schema/protobuf/et_def.proto and src/third_party/utils/protolib.py). Needs the `protobuf` package.
"""

from emulation.io.chakra.parts import devices, files
from emulation.io.chakra.reading import read
from emulation.io.chakra.writing import write

__all__ = ["devices", "files", "read", "write"]
