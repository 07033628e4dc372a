"""One of two ranks that move bytes over verbs; runs inside a guest: `verbs_rank.py RANK FOLDER WRITES [DIES]`.

Rank 0 writes into rank 1's memory, each write with its number as immediate; rank 1 compares the bytes and answers with
a message. Rank 1 kills itself after DIES writes. Both print one JSON line.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

from engines.rdma.device import Access, ChannelOptions, Descriptor, Status
from engines.rdma.providers import open_device

NBYTES = 256 * 1024
OPTIONS = ChannelOptions(timeout=15)
PATIENCE = 60.0


class Rank:
    def __init__(self, number, folder):
        self.number, self.folder = number, Path(folder)
        self.device = open_device("verbs", 4 * NBYTES)
        self.channel = self.device.channel(OPTIONS)
        self.memory = self.device.allocate(NBYTES, access=Access.LOCAL_WRITE | Access.REMOTE_WRITE)
        self.tell("address", json.dumps([self.channel.address(), self.device.describe(self.memory).to_json()]))
        address, target = json.loads(self.hear("address"))
        self.target = Descriptor.from_json(target)
        self.channel.connect(address)
        # What is sent before the other end is connected is sent again, and too often means that it is dead.
        self.tell("connected", "")
        self.hear("connected")

    def tell(self, what, text):
        hidden = self.folder / f".{what}{self.number}"
        hidden.write_text(text)
        hidden.rename(self.folder / f"{what}{self.number}")

    def hear(self, what):
        file = self.folder / f"{what}{1 - self.number}"
        self.until(lambda: file.exists() or None, what, lambda: time.sleep(0.05))
        return file.read_text()

    def until(self, look, what, give_way=None):
        """What `look` finds, once it is not None."""
        deadline = time.monotonic() + PATIENCE
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {PATIENCE:g} s")
            (give_way or self.device.idle)()
        return found


def answer_or_death(channel):
    """The peer's answer; False where it is dead, None where neither is known."""
    answer = channel.receive()
    return False if answer is None and not channel.alive() else answer


def content(step):
    return random.Random(step).randbytes(NBYTES)


def send(rank, writes):
    """How each write ended, and seconds from the last answer to the end."""
    statuses, last = [], time.monotonic()
    for step in range(writes):
        rank.memory.view[:] = content(step)
        rank.channel.write(rank.memory, rank.target, offset=0, at=0, nbytes=NBYTES, imm=step)
        (done,) = rank.until(lambda: rank.channel.poll() or None, f"completion {step}")
        statuses.append(str(done.status))
        if done.status is not Status.SUCCESS:
            break
        answer = rank.until(lambda: answer_or_death(rank.channel), f"answer {step}")
        if answer is False:
            statuses.append("peer is gone")
            break
        if answer != b"%d" % step:
            raise ValueError(f"the answer to write {step} is {answer!r}")
        last = time.monotonic()
    return {"statuses": statuses, "seconds": time.monotonic() - last}


def take(rank, writes, dies):
    for step in range(writes):
        arrived = rank.until(rank.channel.arrived, f"immediate {step}")
        if arrived != step or bytes(rank.memory.view) != content(step):
            raise ValueError(f"write {step} is not whole")
        if step == dies:
            os.kill(os.getpid(), 9)
        rank.channel.send(b"%d" % step)
        rank.until(lambda: rank.channel.poll() or None, f"completion of answer {step}")
    return {"intact": writes}


def main(number, folder, writes, dies=-1):
    rank = Rank(number, folder)
    said = send(rank, writes) if number == 0 else take(rank, writes, dies)
    wire = rank.device.counters().wire
    sys.stdout.write(json.dumps({**said, "wire": wire, "detail": dict(rank.device.traits.detail)}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
