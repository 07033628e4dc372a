"""Ways to end."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fake.spec import Spec
from harness.api import Engine, EnvironmentLacks, Measurement, Plan


def measured(part="first", value=1.5):
    return Measurement("time", [value, value * 2], {"part": part})


class Fake(Engine):
    Spec = Spec

    def plan(self, spec, profile):
        payload = spec.model_dump()
        if spec.mode == "plans_differ":
            payload["pid"] = os.getpid()
        return Plan(payload)

    def predict(self, plan, context):
        if plan.payload["mode"] != "noop":
            yield Measurement("time", 2.0, {"part": "first"}, band=(1.0, 3.0))
        if plan.payload["mode"] == "raise":
            raise ValueError("the cluster is on fire")
        (context.artifacts / "note.txt").write_text("kept")

    def run(self, plan, context):
        yield from getattr(self, plan.payload["mode"])(plan.payload, context)

    def ok(self, told, context):
        yield measured()
        yield measured("second", 0.1)

    def noop(self, told, context):
        return iter(())

    def counted(self, told, context):
        """Notes in a file that it ran; a cell that runs twice is seen there."""
        log = os.open(Path(told["folder"]) / "ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{told['seconds']}\n".encode())
        os.close(log)
        time.sleep(0.01)
        yield measured()

    def raises(self, told, context):
        yield measured()
        sys.stdout.write("to stdout\n")
        raise ValueError("the engine is out of steam")

    def undeclared(self, told, context):
        yield Measurement("tiem", 1.0)

    def unlabelled(self, told, context):
        yield Measurement("time", 1.0)

    def infinite(self, told, context):
        yield Measurement("time", math.inf, {"part": "first"})

    def any_loss(self, told, context):
        yield Measurement("loss", [math.nan, math.inf, -math.inf, 1.0])

    def exits(self, told, context):
        yield measured()
        os._exit(3)

    def exits_with_zero(self, told, context):
        yield measured()
        os._exit(0)

    def leaves(self, told, context):
        yield measured()
        sys.exit("I have had enough")

    def segfaults(self, told, context):
        yield measured()
        ctypes.string_at(0)

    def kills_itself(self, told, context):
        yield measured()
        os.kill(os.getpid(), signal.SIGKILL)

    def allocates(self, told, context):
        yield measured()
        held = []
        while True:
            held.append(bytearray(16 * 2**20))

    def shares(self, told, context):
        """Shared memory is not data: only the watch sees it."""
        import mmap

        yield measured()
        held = mmap.mmap(-1, 2**30)
        for page in range(0, 2**30, 4096):
            held[page] = 1
            if page % 2**24 == 0:
                time.sleep(0.02)

    def cuda_out_of_memory(self, told, context):
        yield measured()
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def lacks(self, told, context):
        raise EnvironmentLacks("no such device here; load its driver")
        yield

    def hangs(self, told, context):
        yield measured()
        (Path(told["folder"]) / "hanging").write_text(str(os.getpid()))
        time.sleep(3600)

    def hangs_on(self, told, context):
        """Hangs, and will not be told to stop."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        yield from self.hangs(told, context)

    def hangs_once(self, told, context):
        if not (Path(told["folder"]) / "hanging").exists():
            yield from self.hangs(told, context)
        yield measured()

    def leaves_grandchildren(self, told, context):
        yield measured()
        stay = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(3600)"]
        started = subprocess.Popen(stay)
        (Path(told["folder"]) / "grandchild").write_text(str(started.pid))

    def slow(self, told, context):
        yield measured()
        time.sleep(told["seconds"])
        yield measured("second")

    def crashes_once(self, told, context):
        mark = Path(told["folder"]) / "crashed"
        yield measured()
        if not mark.exists():
            mark.touch()
            os._exit(9)

    def writes_much(self, told, context):
        line = "x" * 1023 + "\n"
        sys.stdout.write("first\n")
        for _ in range(20 * 1024):
            sys.stdout.write(line)
        sys.stdout.write("last\n")
        yield measured()

    def descriptors(self, told, context):
        """Descriptors above the standard three that the harness's own files do not explain, and a readable stdin."""
        foreign = 0
        for entry in Path("/proc/self/fd").iterdir():
            if int(entry.name) > 2 and entry.is_symlink() and not str(entry.readlink()).endswith("events.jsonl"):
                foreign += not str(entry.readlink()).startswith("/proc/")
        yield Measurement("time", foreign + len(sys.stdin.read()), {"part": "first"})

    def reads_environment(self, told, context):
        yield Measurement("time", float(os.environ["OMP_NUM_THREADS"]), {"part": "first"})

    def notes(self, told, context):
        with context.span("work", part="a"):
            samples = context.sample(lambda: None, warmup=2, runs=4)
        (context.artifacts / "note.txt").write_text("kept")
        (context.scratch / "thrown-away").write_text("gone")
        (Path(told["folder"]) / "scratch").write_text(str(context.scratch))
        yield Measurement("time", samples, {"part": "sampled"})

    def meet(self, told, context):
        context.rendezvous.set(f"address {context.rank}", f"port {context.rank}")
        other = context.rendezvous.get(f"address {1 - context.rank}")
        context.rendezvous.barrier("met")
        with context.span("met"):
            yield Measurement("time", float(other.split()[1]), {"part": f"rank {context.rank}"})

    def parting_word(self, told, context):
        """The last thing rank 1 does is to publish a key, long after the ranks met."""
        if context.rank == 1:
            time.sleep(2)
            context.rendezvous.set("parting word", "5")
            return
        yield Measurement("time", float(context.rendezvous.get("parting word", timeout=20)), {"part": "first"})

    def second_rank_dies(self, told, context):
        yield measured(f"rank {context.rank}")
        context.rendezvous.barrier("both have reported")
        if context.rank == 1:
            os._exit(7)
        time.sleep(3600)

    plans_differ = ok

    def all_reduce(self, told, context):
        import torch
        import torch.distributed as dist

        context.init_process_group("gloo")
        tensor = torch.ones(4) * (context.rank + 1)
        dist.all_reduce(tensor)
        yield Measurement("time", float(tensor.sum()), {"part": f"rank {context.rank}"})


ENGINE = Fake()
