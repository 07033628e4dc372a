"""Our steps beside those of torch's DTensor, which a user would pick: equal values, and never more bytes."""

import itertools
import math
from statistics import geometric_mean

import numpy as np
import pytest

from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.redistribution import Bytes, sent_in_all, within
from engines.superscaler.redistribution.reference import carry_out, gathered, scattered

torch = pytest.importorskip("torch")

from torch.distributed._local_tensor import LocalTensor, LocalTensorMode  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

SHAPE = (24, 40)
MESH = Mesh((0, 1, 2, 3), (2, 2))
PARTIAL, COPIES = -1, 2


class Counter(TorchDispatchMode):
    """Elements that one rank receives, with ring algorithms."""

    def __init__(self) -> None:
        super().__init__()
        self.received = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        own = args[0].numel() if args and isinstance(args[0], torch.Tensor) else 0
        # All groups are axes of the mesh, of two members each.
        match name:
            case "_c10d_functional::all_gather_into_tensor" | "_c10d_functional::all_reduce":
                self.received += own
            case "_c10d_functional::reduce_scatter_tensor" | "_dtensor::shard_dim_alltoall":
                self.received += own // 2
            case _ if not name.startswith(("aten::", "prim::")) and "wait" not in name and "wrap" not in name:
                raise AssertionError(f"{name} is not counted")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def group():
    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    with LocalTensorMode(4):
        yield init_device_mesh("cpu", (2, 2))
    torch.distributed.destroy_process_group()


def layout(roles: tuple[int, ...]) -> Layout:
    dims = tuple(tuple(axis for axis, role in enumerate(roles) if role == dim) for dim in range(2))
    return Layout(MESH, dims, tuple(axis for axis, role in enumerate(roles) if role == PARTIAL))


def placements(roles: tuple[int, ...]) -> list:
    return [Partial() if role == PARTIAL else Replicate() if role == COPIES else Shard(role) for role in roles]


def by_dtensor(mesh, source, target, parts) -> tuple[dict[int, np.ndarray], int]:
    local = LocalTensor({rank: torch.from_numpy(part) for rank, part in parts.items()})
    before = DTensor.from_local(local, mesh, placements(source), run_check=False)
    with Counter() as counter:
        after = before.redistribute(mesh, placements(target)).to_local()
    return {rank: part.numpy() for rank, part in after._local_tensors.items()}, 4 * counter.received


def test_every_pair_of_layouts_is_redistributed_equally_and_with_no_more_bytes(group) -> None:
    whole = np.arange(math.prod(SHAPE), dtype=float).reshape(SHAPE)
    ours, theirs, fewer = [], [], 0
    roles = list(itertools.product((PARTIAL, 0, 1, COPIES), repeat=2))
    for one, other in itertools.product(roles, roles):
        if one == other or PARTIAL in other:
            continue
        source, target = layout(one), layout(other)
        parts = scattered(whole, source)
        steps = within(source, target, SHAPE, "fp64", Bytes(hop=8.0, local=1.0))
        expected, sent = by_dtensor(group, one, other, parts)
        found = carry_out(steps, parts, SHAPE)
        assert all(np.array_equal(found[rank], expected[rank]) for rank in range(4)), (one, other)
        assert np.array_equal(gathered(found, target, SHAPE), whole)
        assert sent_in_all(steps, SHAPE) <= sent, (one, other)
        fewer += sent_in_all(steps, SHAPE) < sent
        ours.append(sent_in_all(steps, SHAPE))
        theirs.append(sent)
    ratio = geometric_mean(t / o for o, t in zip(ours, theirs, strict=True) if o)
    assert (len(ours), fewer) == (135, 55)
    assert ratio >= 1.0, ratio
