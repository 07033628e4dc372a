"""Random programs of both ends against a model in plain Python: what must be in memory and in the queues in the end.

Each end writes to memory that only it writes to, and reads only that, so that what must be there depends on its own
requests and their order, however the two ends interleave and whatever is held back meanwhile.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.rdma.conformance.pair import EVERYTHING, Pair, Setting
from engines.rdma.device import Operation, ProviderUnavailable, Status

SIZE = 64
CONTENT = bytes(range(1, SIZE + 1)), bytes(range(101, SIZE + 101))
PROVIDERS = [name for name in ("shm", "sim") if find_spec(f"engines.rdma.providers.{name}")]

places = st.integers(0, SIZE)
steps = st.one_of(
    st.tuples(st.just("write"), places, places, places, st.none() | st.integers(0, 2**32 - 1), st.booleans()),
    st.tuples(st.just("read"), places, places, places),
    st.tuples(st.just("send"), st.binary(max_size=40)),
    st.tuples(st.sampled_from(["receive", "arrived", "poll"])),
)
programs = st.lists(st.tuples(st.integers(0, 1), steps), max_size=60)


class Model:
    """What one end did, carried out at once."""

    def __init__(self, content):
        self.content = content
        self.target, self.back = bytearray(SIZE), bytearray(SIZE)
        self.messages, self.immediates, self.done = [], [], []

    def write(self, offset, at, nbytes, imm, signaled):
        self.target[at : at + nbytes] = self.content[offset : offset + nbytes]
        if imm is not None:
            self.immediates.append(imm)
        if signaled:
            self.done.append((Operation.WRITE, nbytes))

    def read(self, offset, at, nbytes):
        self.back[offset : offset + nbytes] = self.target[at : at + nbytes]
        self.done.append((Operation.READ, nbytes))

    def send(self, message):
        self.messages.append(message)
        self.done.append((Operation.SEND, len(message)))


class Side:
    """One end of the real thing, and what arrived there."""

    def __init__(self, end, other, content):
        self.end = end
        self.source, self.back = end.region(SIZE, EVERYTHING), end.region(SIZE, EVERYTHING)
        self.source.view[:] = content
        self.target, self.remote = other.published(SIZE, EVERYTHING)
        self.messages, self.immediates = [], []

    def write(self, offset, at, nbytes, imm, signaled):
        self.end.channel.write(
            self.source, self.remote, offset=offset, at=at, nbytes=nbytes, imm=imm, signaled=signaled
        )

    def read(self, offset, at, nbytes):
        self.end.channel.read(self.back, self.remote, offset=offset, at=at, nbytes=nbytes)

    def send(self, message):
        self.end.channel.send(message)

    def receive(self):
        self.messages += [message for message in [self.end.channel.receive()] if message is not None]

    def arrived(self):
        self.immediates += [imm for imm in [self.end.channel.arrived()] if imm is not None]

    def poll(self):
        self.end.collect()

    def look(self):
        self.receive()
        self.arrived()


def clipped(step):
    """A step that stays inside the memory."""
    kind, *rest = step
    if kind in ("write", "read"):
        rest[2] = min(rest[2], SIZE - rest[0], SIZE - rest[1])
    return kind, rest


@pytest.fixture(scope="module", params=PROVIDERS)
def setting(request):
    setting = Setting(request.param)
    try:
        setting.probe(4096)
    except ProviderUnavailable as reason:
        pytest.skip(str(reason))
    return setting


@settings(max_examples=60, deadline=None)
@given(program=programs, depth=st.integers(1, 4))
def test_any_program_leaves_the_memory_and_the_arrivals_that_the_model_says(setting, program, depth):
    options = {"depth": depth, "message_bytes": 40}
    models = [Model(content) for content in CONTENT]
    with Pair(setting, 4096, options, options) as pair:
        sides = Side(pair.near, pair.far, CONTENT[0]), Side(pair.far, pair.near, CONTENT[1])
        for index, step in program:
            kind, arguments = clipped(step)
            getattr(sides[index], kind)(*arguments)
            if kind in ("write", "read", "send"):
                getattr(models[index], kind)(*arguments)

        def finish():
            for side in sides:
                side.look()
            pair.look()

        def finished():
            return all(
                len(side.end.done) >= len(model.done)
                and len(other.messages) >= len(model.messages)
                and len(other.immediates) >= len(model.immediates)
                for side, other, model in zip(sides, reversed(sides), models, strict=True)
            )

        pair.until(finished, "the end of the program", look=finish)
        for side, model in zip(sides, models, strict=True):
            # Unsignalled requests say nothing; one that is signalled ends after them.
            side.read(0, 0, 0)
            model.read(0, 0, 0)
        pair.until(finished, "the last read", look=finish)
        for _ in range(2):
            finish()
        for side, other, model in zip(sides, reversed(sides), models, strict=True):
            assert [(c.operation, c.nbytes) for c in side.end.done] == model.done
            assert {c.status for c in side.end.done} == {Status.SUCCESS}
            assert other.messages == model.messages
            assert other.immediates == model.immediates
            assert bytes(side.target.view) == bytes(model.target)
            assert bytes(side.back.view) == bytes(model.back)
