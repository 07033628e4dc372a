"""The ring's arithmetic against numpy, for any number of ranks, any size, and any cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from engines.rdma.executor import Executor, interleave  # noqa: E402 - torch is optional
from engines.rdma.providers import open_device  # noqa: E402
from engines.rdma.training import ring as rings_module  # noqa: E402
from engines.rdma.training.ring import Piece, Ring, join  # noqa: E402

PIECE = 64
LONGEST = 256


class Circle:
    """Ranks of one process, each with a device of its own."""

    def __init__(self, ranks, signal):
        self.devices = [open_device("shm", Ring.capacity(LONGEST * 8, ranks, PIECE)) for _ in range(ranks)]
        self.rings = [
            Ring(device, rank=rank, ranks=ranks, nbytes=LONGEST * 8, signal=signal, piece=PIECE)
            for rank, device in enumerate(self.devices)
        ]
        join(self.rings)

    def run(self, operation):
        executors = [Executor(device, timeout=10) for device in self.devices]
        for executor, ring in zip(executors, self.rings, strict=True):
            executor.submit(operation(ring))
        interleave(executors)

    def close(self):
        for ring in self.rings:
            ring.close()
        for device in self.devices:
            device.close()


@pytest.fixture(scope="module")
def circles():
    made = {}

    def circle(ranks, signal):
        if (ranks, signal) not in made:
            made[ranks, signal] = Circle(ranks, signal)
        return made[ranks, signal]

    yield circle
    for each in made.values():
        each.close()


ranks = st.integers(1, 8)
sizes = st.integers(0, LONGEST)
signals = st.sampled_from(["tail", "imm"])


def chunks(size, count):
    return [rings_module.chunk(number, size, count) for number in range(count)]


@settings(max_examples=60, deadline=None)
@given(ranks=ranks, size=sizes, signal=signals, data=st.data())
def test_an_all_reduce_is_the_sum_over_ranks(circles, ranks, size, signal, data):
    circle = circles(ranks, signal)
    seed = data.draw(st.integers(0, 1000))
    inputs = np.random.default_rng(seed).integers(-1000, 1000, (ranks, size))
    for ring, values in zip(circle.rings, inputs, strict=True):
        ring.items(torch.int64, LONGEST)[:size] = torch.from_numpy(values)
    circle.run(lambda ring: ring.all_reduce(torch.int64, size))
    for ring in circle.rings:
        np.testing.assert_array_equal(ring.items(torch.int64, LONGEST)[:size].numpy(), inputs.sum(0))


@settings(max_examples=20, deadline=None)
@given(ranks=ranks, size=sizes, reduction=st.sampled_from([("min", np.min), ("max", np.max), ("product", np.prod)]))
def test_other_reductions(circles, ranks, size, reduction):
    name, expected = reduction
    circle = circles(ranks, "tail")
    inputs = np.random.default_rng(size).integers(-3, 4, (ranks, size))
    for ring, values in zip(circle.rings, inputs, strict=True):
        ring.items(torch.int64, LONGEST)[:size] = torch.from_numpy(values)
    circle.run(lambda ring: ring.all_reduce(torch.int64, size, name))
    for ring in circle.rings:
        np.testing.assert_array_equal(ring.items(torch.int64, LONGEST)[:size].numpy(), expected(inputs, axis=0))


@settings(max_examples=20, deadline=None)
@given(ranks=ranks, size=sizes, seed=st.integers(0, 99))
def test_every_rank_holds_the_same_bytes_near_the_sum_of_floats(circles, ranks, size, seed):
    circle = circles(ranks, "tail")
    inputs = np.random.default_rng(seed).standard_normal((ranks, size)).astype(np.float32)
    for ring, values in zip(circle.rings, inputs, strict=True):
        ring.items(torch.float32, LONGEST)[:size] = torch.from_numpy(values)
    circle.run(lambda ring: ring.all_reduce(torch.float32, size))
    results = [ring.items(torch.float32, LONGEST)[:size].numpy() for ring in circle.rings]
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_allclose(results[0], inputs.sum(0, dtype=np.float64), rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(ranks=ranks, size=sizes, signal=signals)
def test_reduce_scatter_and_all_gather_are_the_halves_of_an_all_reduce(circles, ranks, size, signal):
    circle = circles(ranks, signal)
    inputs = np.random.default_rng(size).integers(-1000, 1000, (ranks, size))
    places, dtype = chunks(size, ranks), torch.int64
    for ring, values in zip(circle.rings, inputs, strict=True):
        ring.items(dtype, LONGEST)[:size] = torch.from_numpy(values)
    circle.run(
        lambda ring: ring.run(rings_module.reduce_scatter(ring.rank, ranks, places, ring.most(dtype)), dtype, size)
    )
    for ring, place in zip(circle.rings, places, strict=True):
        mine = slice(place.start, place.end)
        np.testing.assert_array_equal(ring.items(dtype, LONGEST)[mine].numpy(), inputs.sum(0)[mine])
    circle.run(lambda ring: ring.run(rings_module.all_gather(ring.rank, ranks, places, ring.most(dtype)), dtype, size))
    for ring in circle.rings:
        np.testing.assert_array_equal(ring.items(dtype, LONGEST)[:size].numpy(), inputs.sum(0))


@settings(max_examples=20, deadline=None)
@given(ranks=ranks, size=sizes, data=st.data())
def test_a_broadcast_leaves_the_roots_vector_everywhere(circles, ranks, size, data):
    root = data.draw(st.integers(0, ranks - 1))
    circle, dtype = circles(ranks, "tail"), torch.int64
    for ring in circle.rings:
        ring.items(dtype, LONGEST)[:size] = ring.rank * 1000 + torch.arange(size)
    circle.run(
        lambda ring: ring.run(
            rings_module.broadcast(ring.rank, ranks, Piece(0, size), ring.most(dtype), root), dtype, size
        )
    )
    for ring in circle.rings:
        np.testing.assert_array_equal(ring.items(dtype, LONGEST)[:size].numpy(), root * 1000 + np.arange(size))


@given(size=st.integers(0, 10_000), ranks=st.integers(1, 16), most=st.integers(1, 500))
def test_chunks_and_pieces_cover_every_item_once(size, ranks, most):
    parts = chunks(size, ranks)
    assert max(p.end - p.start for p in parts) - min(p.end - p.start for p in parts) <= 1
    covered = [
        item for part in parts for piece in rings_module.cut(part, most) for item in range(piece.start, piece.end)
    ]
    assert covered == list(range(size))


@given(size=st.integers(1, 5000), ranks=st.integers(2, 8))
def test_an_all_reduce_sends_what_the_bound_allows(size, ranks):
    parts = chunks(size, ranks)
    for rank in range(ranks):
        schedule = rings_module.all_reduce(rank, ranks, parts, 64)
        sent = sum(p.end - p.start for p in schedule.own)
        sent += sum(a.piece.end - a.piece.start for a in schedule.arrivals if a.forward)
        assert sent <= 2 * (ranks - 1) * -(-size // ranks)
