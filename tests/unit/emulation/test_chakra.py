import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from emulation.evaluate import simulate
from emulation.graph import Workload, WorkloadError
from emulation.io import FormatError, chakra
from emulation.program import Mesh, Part, Program

pytest.importorskip("google.protobuf")

from emulation.io.chakra.messages import OWN, attributes, read_messages, schema, set_attribute, write_message

A, B, C = "host0/gpu0", "host0/gpu1", "host0/gpu2"
PROTO = Path(chakra.__file__).parent / "trace.proto"


def _step():
    """Every kind of node, and every way in which one can wait for another."""
    work = Workload()
    held = work.alloc(A, 1000, name="activations")
    kernels = [
        work.compute(d, 1.5e9, 1000, dtype="fp16", after=[held] if d == A else [], name="forward") for d in (A, B)
    ]
    moved = work.transfer(A, B, 10**6, cap=1e9, efficiency=0.5, seconds=1.25e-6, stream="out", after=[kernels[0]])
    work.transfer(A, A, 4096, after=[kernels[0]])
    work.copy(A, B, 5000, after=[moved])
    work.send(B, C, 777, tag="logits", after=[moved])
    got = work.recv(B, C, 777, tag="logits")
    joined = work.barrier(after=[*kernels, moved])
    reduced = work.collective("all-reduce", [A, B], 2**20, after=[joined], name="gradients")
    for rank in (A, B, C):
        work.enter("all-gather", rank, [A, B, C], 1001, after=[got] if rank == C else [reduced])
    work.host(A, 0.4e-6, after=[reduced], stream="cpu", grade="measured")
    work.free(held, after=[reduced])
    return work


def _rewritten(path, change):
    """The file again, with every message passed through `change` (None leaves it out)."""
    messages = [change(number, message) for number, message in enumerate(read_messages(path))]
    with path.open("wb") as file:
        for message in messages:
            if message is not None:
                write_message(file, message)


def _bare(prefix):
    """The files as another tool would have written them: without our attributes."""
    for path in prefix.parent.glob("*.et"):

        def strip(_, message):
            kept = [a for a in message.attr if not a.name.startswith(OWN)]
            del message.attr[:]
            message.attr.extend(kept)
            return message

        _rewritten(path, strip)


def _node(id_, kind, *, deps=(), micros=0, **values):
    message = schema().Node(
        id=id_, name=f"n{id_}", type=schema().NodeType[kind], data_deps=deps, duration_micros=micros
    )
    for name, value in values.items():
        set_attribute(message, name, value)
    return message


def _files(tmp_path, *ranks):
    """Traces as another tool would write them."""
    for rank, nodes in enumerate(ranks):
        with (tmp_path / f"t.{rank}.et").open("wb") as file:
            write_message(file, schema().GlobalMetadata(version="0.0.4"))
            for node in nodes:
                write_message(file, node)
    return tmp_path / "t"


def test_workload_comes_back_and_takes_the_same_time(tmp_path, small):
    before = _step()
    chakra.write(tmp_path / "step", before)
    after = chakra.read(tmp_path / "step")
    first, second = simulate(before, small()), simulate(after, small())
    assert second.picoseconds == first.picoseconds > 0
    assert second.peak_memory == first.peak_memory
    assert [n.kind for n in after.nodes] == [n.kind for n in before.nodes if n.kind != "barrier"]
    assert {n.name for n in after.nodes} == {n.name for n in before.nodes}


def test_same_workload_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        chakra.write(tmp_path / name, _step())
    for rank in range(3):
        assert (tmp_path / f"a.{rank}.et").read_bytes() == (tmp_path / f"b.{rank}.et").read_bytes()


def test_other_tools_find_each_attribute_in_the_member_they_read(tmp_path):
    paths, groups = chakra.write(tmp_path / "step", _step())
    nodes = [node for path in paths for node in list(read_messages(path))[1:]]
    found = {(a.name, a.WhichOneof("value")) for node in nodes for a in node.attr if not a.name.startswith(OWN)}
    assert found == {
        ("is_cpu_op", "bool_val"),
        ("num_ops", "int64_val"),
        ("tensor_size", "uint64_val"),
        ("comm_type", "int64_val"),
        ("comm_size", "int64_val"),
        ("comm_priority", "int32_val"),
        ("comm_src", "int32_val"),
        ("comm_dst", "int32_val"),
        ("comm_tag", "int32_val"),
        ("pg_name", "string_val"),
    }
    assert json.loads(groups.read_text()) == {"1": [0, 1], "2": [0, 1, 2]}
    gather = next(n for n in nodes if attributes(n).get("comm_type") == schema().CollectiveCommType["ALL_GATHER"])
    assert attributes(gather)["comm_size"] == 334, "one rank's shard of 1001 bytes"


def test_without_our_attributes_the_standard_ones_carry_the_graph(tmp_path, small):
    work = Workload()
    group = [A, B]
    kernels = [work.compute(d, 2e9, 10**6) for d in group]
    for op in ("all-reduce", "all-gather", "reduce-scatter", "broadcast", "reduce", "all-to-all"):
        for rank, kernel in zip(group, kernels, strict=True):
            work.enter(op, rank, group, 10**6, after=[kernel])
    sent = work.send(A, B, 4000, tag="3", after=[kernels[0]])
    got = work.recv(A, B, 4000, tag="3")
    work.compute(A, 1e9, after=[sent])
    work.compute(B, 1e9, after=[got])
    chakra.write(tmp_path / "step", work)
    _bare(tmp_path / "step")
    again = chakra.read(tmp_path / "step", devices=group)
    assert simulate(again, small()).picoseconds == simulate(work, small()).picoseconds


def test_kernel_shorter_than_a_microsecond_keeps_its_time(tmp_path, small):
    work = Workload()
    for _ in range(3):
        work.host(A, 123_457e-12)
    paths, _ = chakra.write(tmp_path / "short", work)
    assert [node.duration_micros for node in list(read_messages(paths[0]))[1:]] == [0, 0, 0]
    assert simulate(chakra.read(tmp_path / "short"), small()).picoseconds == 3 * 123_457


def test_result_gives_nodes_their_times(tmp_path, small):
    work = Workload()
    work.compute(A, 3e6, after=[work.host(A, 5e-6)])
    result = simulate(work, small())
    paths, _ = chakra.write(tmp_path / "timed", work, result=result)
    host, kernel = list(read_messages(paths[0]))[1:]
    assert (host.start_time_micros, host.duration_micros) == (0, 5)
    assert (kernel.start_time_micros, kernel.duration_micros) == (5, 3)


def test_recorded_durations_are_taken_when_asked_for(tmp_path, small):
    prefix = _files(tmp_path, [_node(0, "COMP_NODE", micros=70, is_cpu_op=False, num_ops=10**6)])
    assert simulate(chakra.read(prefix, devices=[A]), small()).picoseconds == 1_000_000
    assert simulate(chakra.read(prefix, devices=[A], recorded=True), small()).picoseconds == 70_000_000


def test_cpu_operations_run_beside_kernels_as_in_the_feeder(tmp_path, small):
    nodes = [_node(0, "COMP_NODE", micros=7), _node(1, "COMP_NODE", micros=9, is_cpu_op=False)]
    assert simulate(chakra.read(_files(tmp_path, nodes), devices=[A]), small()).picoseconds == 9_000_000


def test_nodes_of_other_tools_may_come_in_any_order(tmp_path, small):
    nodes = [_node(9, "COMP_NODE", deps=[4], micros=1), _node(4, "COMP_NODE", deps=[7], micros=2)]
    nodes += [_node(7, "METADATA_NODE")]
    work = chakra.read(_files(tmp_path, nodes), devices=[A])
    assert [node.name for node in work.nodes] == ["n7", "n4", "n9"]
    assert simulate(work, small()).picoseconds == 3_000_000


def test_edge_between_ranks_is_refused(tmp_path):
    work = Workload()
    work.compute(B, 1.0, after=[work.compute(A, 1.0, name="first")], name="second")
    with pytest.raises(
        WorkloadError, match=r"#1 compute 'second' on host0/gpu1 waits for #0 compute 'first' on host0/gpu0"
    ):
        chakra.write(tmp_path / "x", work)


def test_barrier_between_ranks_that_only_a_collective_waits_for_is_kept(tmp_path, small):
    work = Workload()
    joined = work.barrier(after=[work.host(A, 1e-6), work.host(B, 5e-6)])
    work.collective("all-reduce", [A, B], 1000, after=[work.barrier(after=[joined])])
    chakra.write(tmp_path / "x", work)
    assert simulate(chakra.read(tmp_path / "x"), small()).picoseconds == simulate(work, small()).picoseconds


ALL_REDUCE = {"is_cpu_op": False, "comm_type": 0, "comm_size": 64}


def _wrong_member(name="comm_size"):
    node = _node(7, "COMM_COLL_NODE", is_cpu_op=False, comm_type=0)
    node.attr.add(name="comm_size", uint64_val=4096)
    return [node]


WRONG = [
    ([[_node(1, "COMP_NODE"), _node(1, "COMP_NODE")]], r"t\.0\.et: node 1: the id is used twice"),
    ([[_node(1, "COMP_NODE", deps=[5])]], r"t\.0\.et: node 1: depends on node 5, which is not in the file"),
    (
        [[_node(1, "COMP_NODE", deps=[2]), _node(2, "COMP_NODE", deps=[3]), _node(3, "COMP_NODE", deps=[1])]],
        r"t\.0\.et: node \d: waits for itself: (1 -> 3 -> 2 -> 1|2 -> 1 -> 3 -> 2|3 -> 2 -> 1 -> 3)",
    ),
    (
        [_wrong_member()],
        r"t\.0\.et: node 7: comm_size is in uint64_val; it is read from int64_val, where it would be 0",
    ),
    (
        [[_node(3, "COMM_SEND_NODE", comm_dst=1, comm_size=8)], [_node(0, "COMP_NODE")]],
        r"send 't?.*t\.0\.et: node 3' .*has no matching receive",
    ),
    (
        [[_node(3, "COMM_SEND_NODE", comm_dst=1, comm_size=8)], [_node(4, "COMM_RECV_NODE", comm_src=0, comm_size=9)]],
        r"sizes differ: .*t\.0\.et: node 3' of 8 B, .*t\.1\.et: node 4' of 9 B",
    ),
    (
        [
            [_node(0, "COMM_COLL_NODE", **ALL_REDUCE), _node(1, "COMM_COLL_NODE", **ALL_REDUCE | {"comm_type": 5})],
            [_node(0, "COMM_COLL_NODE", **ALL_REDUCE | {"comm_type": 5}), _node(1, "COMM_COLL_NODE", **ALL_REDUCE)],
        ],
        r"in different orders:\n  host0/gpu0: #0 all-reduce '.*t\.0\.et: node 0'",
    ),
    ([[_node(2, "COMM_COLL_NODE", **ALL_REDUCE, pg_name="4")]], r"node 2: process group '4' is not among"),
    ([[_node(2, "COMM_COLL_NODE", **ALL_REDUCE | {"comm_type": 3})]], r"node 2: collective GATHER is not modelled"),
    ([[_node(2, "COMM_COLL_NODE", is_cpu_op=False, comm_size=1)]], r"node 2: a COMM_COLL_NODE needs .* comm_type"),
    ([[_node(2, "COMM_SEND_NODE", comm_dst=8, comm_size=8)]], r"node 2: there is no rank 8"),
    (
        [[_node(2, "COMM_SEND_NODE", comm_src=1, comm_dst=0, comm_size=8)], []],
        r"node 2: comm_src 1 in the trace of rank 0",
    ),
    ([[_node(2, "COMM_COLL_NODE", **ALL_REDUCE | {"comm_size": -1})]], r"node 2: .*-1 is not a number of bytes"),
]


@pytest.mark.parametrize(("ranks", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_trace_is_refused_with_file_and_node(tmp_path, ranks, message):
    with pytest.raises(FormatError, match=message):
        chakra.read(_files(tmp_path, *ranks), devices=[A, B])


def test_barrier_is_an_all_reduce_of_nothing(tmp_path, small):
    ranks = [[_node(0, "COMM_COLL_NODE", is_cpu_op=False, comm_type=9)] for _ in range(2)]
    work = chakra.read(_files(tmp_path, *ranks), devices=[A, B])
    assert {(node.op, node.nbytes) for node in work.nodes} == {("all-reduce", 0)}


def test_own_attribute_of_another_type_is_refused(tmp_path):
    paths, _ = chakra.write(tmp_path / "x", _step())

    def change(number, message):
        for attribute in message.attr if number else ():
            if attribute.name == f"{OWN}cap":
                attribute.string_val = "fast"
        return message

    _rewritten(paths[0], change)
    with pytest.raises(FormatError, match=r"x\.0\.et: node 3: "):
        chakra.read(tmp_path / "x")


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_file_that_ends_early_names_the_byte(tmp_path, cut):
    (path, *_), _ = chakra.write(tmp_path / "x", _step())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError, match=r"x\.0\.et: byte \d+: the file ends within"):
        chakra.read(tmp_path / "x")


def test_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.0.et").write_bytes(b"<system version='1'>" * 20)
    with pytest.raises(FormatError, match=r"x\.0\.et: byte \d+"):
        chakra.read(tmp_path / "x", devices=[A])


def test_rank_without_its_file_is_named(tmp_path):
    paths, _ = chakra.write(tmp_path / "x", _step())
    paths[2].unlink()
    with pytest.raises(FormatError, match="2 files of a trace of 3 ranks"):
        chakra.read(tmp_path / "x")
    paths[0].unlink()
    with pytest.raises(FormatError, match="rank 0 is missing"):
        chakra.read(tmp_path / "x")


def test_half_of_a_transfer_that_is_gone_is_named(tmp_path):
    paths, _ = chakra.write(tmp_path / "x", _step())
    lost = schema().NodeType["COMM_RECV_NODE"]
    _rewritten(paths[1], lambda n, m: None if n and m.type == lost and "transfer" in str(m.attr) else _without(m, 3))
    with pytest.raises(FormatError, match=r"x\.0\.et: node 3: the transfer is not in the trace of rank 1"):
        chakra.read(tmp_path / "x")


def _without(message, node):
    for deps in (message.data_deps, message.ctrl_deps) if hasattr(message, "data_deps") else ():
        if node in deps:
            deps.remove(node)
    return message


def test_trace_that_names_no_devices_asks_for_them(tmp_path):
    with pytest.raises(FormatError, match="give the device of each rank"):
        chakra.read(_files(tmp_path, []))
    with pytest.raises(FormatError, match="2 ranks, and only 1 devices"):
        chakra.read(_files(tmp_path, [], []), devices=[A])


def test_descriptor_says_what_the_proto_file_says():
    text = re.sub(r"//.*", "", PROTO.read_text())
    declared = {
        f"{message}.{name}": int(number)
        for message, body in re.findall(r"message (\w+) \{((?:[^{}]|\{[^{}]*\})*)\}", text)
        for name, number in re.findall(r"(\w+) = (\d+);", body)
    }
    types = schema()
    messages = (types.AttributeProto, types.GlobalMetadata, types.IOInfo, types.Node)
    loaded = {f"{m.DESCRIPTOR.name}.{f.name}": f.number for m in messages for f in m.DESCRIPTOR.fields}
    assert declared == loaded
    for enum in ("NodeType", "CollectiveCommType"):
        body = re.search(rf"enum {enum} \{{([^}}]*)\}}", text)[1]
        assert {name: int(number) for name, number in re.findall(r"(\w+) = (\d+);", body)} == getattr(types, enum)


def test_descriptor_is_what_protoc_makes_of_the_proto_file(tmp_path):
    if shutil.which("protoc") is None:
        pytest.skip("protoc is not installed")
    from google.protobuf import descriptor_pb2, json_format

    out = tmp_path / "set"
    subprocess.run(["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={out}", PROTO.name], check=True)
    made = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    described = json.loads((PROTO.parent / "descriptor.json").read_text())
    assert json_format.ParseDict(described, descriptor_pb2.FileDescriptorProto()) == made


def test_program_goes_through_files_as_what_it_stands_for(tmp_path, small):
    mesh = Mesh.over(small(), {"dp": 2, "tp": 2})
    program = Program(mesh, name="step")
    parts = [Part.compute(flops=1e9, dtype="fp16"), Part.collective("tp", "all-reduce", 10**6)]
    last = program.chain(mesh.block(), parts)
    program.collective(mesh.block(), "dp", "reduce-scatter", 10**7, after=[last])
    chakra.write(tmp_path / "step", program.expand(), ranks=mesh.devices)
    again = chakra.read(tmp_path / "step")
    assert simulate(again, small()).picoseconds == simulate(program, small()).picoseconds
