"""Shared memory between processes that run at the same time, and of which one may be killed at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.rdma.device import WORD, Access, Descriptor
from engines.rdma.providers import open_device

WRITER = Path(__file__).with_name("writer.py")


class Reader:
    """This process: a slot, and a word of the writer's to acknowledge in."""

    def __init__(self, nbytes):
        self.nbytes = nbytes
        self.device = open_device("shm", nbytes + 4096)
        self.slot = self.device.allocate(nbytes + WORD, access=Access.REMOTE_WRITE | Access.LOCAL_WRITE)
        self.word = self.device.allocate(WORD, access=Access.LOCAL_WRITE)
        self.tail, self.words = self.slot.view[nbytes:].cast("Q"), self.word.view.cast("Q")
        self.channel = self.device.channel()

    @contextmanager
    def writer(self, first, last):
        order = {
            "address": self.channel.address(), "target": self.device.describe(self.slot).to_json(),
            "nbytes": self.nbytes, "first": first, "last": last,
        }  # fmt: skip
        command = [sys.executable, "-W", "error", str(WRITER), json.dumps(order)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            self.channel.connect(process.stdout.readline())
            self.ack = Descriptor.from_json(process.stdout.readline())
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def announced(self):
        """The step that the writer is about to write."""
        while (message := self.channel.receive()) is None:
            self.device.idle()
            assert self.channel.alive()
        return int.from_bytes(message, "little")

    def wait_for(self, step):
        while self.tail[0] != step:
            self.device.idle()
            assert self.tail[0] <= step
            assert self.channel.alive() or self.tail[0] == step

    def whole(self, step):
        return bytes(self.slot.view[: self.nbytes]) == bytes([step % 256]) * self.nbytes

    def acknowledge(self, step):
        self.words[0] = step
        self.channel.write(self.word, self.ack, offset=0, at=0, nbytes=WORD, signaled=False)

    def close(self):
        self.tail.release()
        self.words.release()
        self.channel.close()
        self.device.close()


@pytest.fixture
def reader(request):
    reader = Reader(request.param)
    yield reader
    reader.close()


@pytest.mark.parametrize("reader", [8, 1000, 2**20], indirect=True)
def test_whoever_sees_the_tail_sees_the_payload_in_another_process(reader):
    with reader.writer(1, 200) as process:
        for step in range(1, 201):
            assert reader.announced() == step
            reader.wait_for(step)
            assert reader.whole(step)
            reader.acknowledge(step)
        assert process.wait(60) == 0
    assert not reader.channel.alive()


@pytest.mark.parametrize("reader", [16 * 2**20], indirect=True)
def test_a_writer_killed_in_a_write_never_leaves_a_new_tail_on_an_old_payload(reader):
    step = 1
    for attempt in range(5):
        with reader.writer(step, step + 1) as process:
            assert reader.announced() == step
            reader.wait_for(step)
            assert reader.whole(step)
            reader.acknowledge(step)
            assert reader.announced() == step + 1
            # A write of 16 MiB takes a few milliseconds; the kill comes before, within, or after it.
            time.sleep(attempt * 0.001)
            process.kill()
            process.wait()
        assert reader.tail[0] in (step, step + 1)
        if reader.tail[0] == step + 1:
            assert reader.whole(step + 1)
        assert not reader.channel.alive()
        reader.channel.reset()
        step = reader.tail[0] + 1
