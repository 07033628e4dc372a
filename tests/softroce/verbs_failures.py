"""What can go wrong with real verbs on one host with two Soft-RoCE devices; runs inside a guest, as root.

`python verbs_failures.py` prints one JSON line a case: name, status, message, seconds. The cases change the network
under the devices and put it back; the conformance suite holds what needs no such thing.
"""

import gc
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager

from engines.rdma.conformance.expectations import equal, expect
from engines.rdma.conformance.pair import EVERYTHING, Pair, Setting
from engines.rdma.conformance.victim import Victim
from engines.rdma.device import Access, ChannelState, ProviderUnavailable, Status, Unavailable
from engines.rdma.providers import open_device

INTERFACES = ("v0", "v1")
CAPACITY = 8 << 20
NOBODY = 65534
RETRANSMISSIONS = ("duplicate_request", "out_of_seq_request", "rcvd_seq_err", "completer_retry_err")
PATIENT = {"timeout": 18, "retries": 7}
HASTY = {"timeout": 12, "retries": 3}
CASES = {}


def case(function):
    CASES[function.__name__.replace("_", " ")] = function
    return function


def pair(near=None, far=None, **options):
    setting = Setting("verbs", {"device": "rxe0", **(near or {})}, {"device": "rxe1", **(far or {})})
    return Pair(setting, CAPACITY, options, options)


def shell(command):
    subprocess.run(command.split(), check=True, capture_output=True, text=True)


@contextmanager
def changed(do, undo):
    """The interfaces changed by one command each, and put back; `{}` is the interface."""
    for interface in INTERFACES:
        shell(do.format(interface))
    try:
        yield
    finally:
        for interface in INTERFACES:
            shell(undo.format(interface))


def write_and_compare(both, nbytes=1 << 20, times=1):
    source, (memory, target) = both.near.region(nbytes), both.far.published(nbytes)
    for step in range(times):
        source.view[:] = os.urandom(nbytes)
        ticket = both.near.channel.write(source, target, offset=0, at=0, nbytes=nbytes, imm=step)
        equal(both.arrival(), step, "the immediate")
        expect(memory.view == source.view, f"the bytes of write {step} changed on the way")
        equal(both.status_of(ticket), Status.SUCCESS, "the write")


@case
def bytes_are_intact_where_packets_are_lost():
    with (
        changed("tc qdisc add dev {} root netem loss 1% delay 2ms", "tc qdisc del dev {} root"),
        pair(**PATIENT) as both,
    ):
        before = both.near.device.counters().wire, both.far.device.counters().wire
        write_and_compare(both, times=4)
        after = both.near.device.counters().wire, both.far.device.counters().wire
    sent_again = sum(new[name] - old[name] for new, old in zip(after, before, strict=True) for name in RETRANSMISSIONS)
    expect(sent_again > 0, f"nothing was sent again: {after}")


@case
def an_interface_that_goes_down_ends_what_is_under_way_and_a_reset_mends_it():
    with pair(**HASTY) as both:
        source, (_, target) = both.near.region(1 << 20), both.far.published(1 << 20)
        channel = both.near.channel
        shell("ip link set v1 down")
        try:
            start = time.monotonic()
            tickets = [channel.write(source, target, offset=0, at=0, nbytes=1 << 20) for _ in range(4)]
            statuses = [c.status for c in both.end_of(*tickets, look=both.near.collect)]
            took = time.monotonic() - start
        finally:
            shell("ip link set v1 up")
        # The first is told of by whoever notices first: the retries, or Soft-RoCE's own failure to send.
        noticed = (Status.RETRY_EXCEEDED, Status.LOCAL_OPERATION, Status.FLUSHED)
        expect(statuses[0] in noticed, f"the first write ended {statuses[0]}")
        equal(statuses[1:], [Status.FLUSHED] * 3, "the others")
        equal(channel.state, ChannelState.ERROR, "the state")
        expect(took < 20, f"it took {took:.1f} s to find out")
        time.sleep(0.5)
        shell("ip route replace 10.0.0.1 dev v1 src 10.0.0.2 table 102")
        both.reconnect()
        both.near.done.clear()
        write_and_compare(both)


@case
def ends_of_different_mtu_agree_on_the_smaller():
    shell("ip link set v1 mtu 1500")
    try:
        time.sleep(0.2)
        with pair(**PATIENT) as both:
            found = [end.device.traits.detail["mtu"] for end in (both.near, both.far)]
            equal(found, ["4096", "1024"], "active MTUs")
            write_and_compare(both)
    finally:
        shell("ip link set v1 mtu 4200")


@case
def a_gid_that_does_not_lead_to_the_peer_is_refused():
    try:
        with pair(near={"gid_index": 0}):
            raise AssertionError("a link-local GID was joined with an IPv4 one")
    except ProviderUnavailable as error:
        equal(error.reason, Unavailable.PEER, "the reason")


@case
def a_gid_index_that_is_not_in_use_is_refused():
    try:
        open_device("verbs", 4096, device="rxe0", gid_index=900)
        raise AssertionError("an unused GID was accepted")
    except ProviderUnavailable as error:
        equal(error.reason, Unavailable.GID, "the reason")


@case
def a_port_that_is_down_is_refused():
    shell("ip link set v0 down")
    try:
        open_device("verbs", 4096, device="rxe0")
        raise AssertionError("a port that is down was opened")
    except ProviderUnavailable as error:
        equal(error.reason, Unavailable.PORT, "the reason")
    finally:
        shell("ip link set v0 up")
        shell("ip route replace 10.0.0.2 dev v0 src 10.0.0.1 table 101")
        time.sleep(0.5)


def in_child(use):
    """What a forked child says of itself; it ends as Python programs end, collecting its garbage."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            said = use()
        except BaseException:
            said = traceback.format_exc()
        os.write(writer, str(said).encode())
        gc.collect()
        sys.exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


@case
def an_ordinary_user_may_not_lock_more_than_the_limit():
    def use():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (256 << 10, 256 << 10))
        os.setgroups([])
        os.setuid(NOBODY)
        device = open_device("verbs", CAPACITY, device="rxe0")
        device.allocate(64 << 10, access=EVERYTHING)
        try:
            device.allocate(4 << 20, access=EVERYTHING)
        except ProviderUnavailable as error:
            return error
        return "4 MiB were locked"

    said = in_child(use)
    expect(said.startswith(Unavailable.MEMORY) and "limit: 262144 bytes" in said, said)


@case
def a_child_that_ends_leaves_the_parents_connection_alone():
    with pair(**PATIENT) as both:
        source, (memory, target) = both.near.region(4096), both.far.published(4096)
        held = [both]

        def use():
            held.clear()
            gc.collect()
            memory.view[:] = b"c" * 4096
            return "ended"

        equal(in_child(use), "ended", "what the child said")
        source.view[:] = b"p" * 4096
        ticket = both.near.channel.write(source, target, offset=0, at=0, nbytes=4096, imm=1)
        equal(both.arrival(), 1, "the immediate")
        equal(both.status_of(ticket), Status.SUCCESS, "the write")
        equal(bytes(memory.view), b"p" * 4096, "what the parent sees after its child wrote to its own copy")


UNCLOSED = """
from engines.rdma.conformance.pair import Pair, Setting
pair = Pair(Setting("verbs", {"device": "rxe0", "binding": "BINDING"}, {"device": "rxe1"}), 4096, {}, {})
region = pair.near.region(64)
print("last line", flush=True)
"""


@case
def a_program_that_closes_nothing_ends_well():
    for binding in ("ibverbs", "pyverbs"):
        program = [sys.executable, "-c", UNCLOSED.replace("BINDING", binding)]
        ended = subprocess.run(program, capture_output=True, text=True, check=False)
        equal((ended.returncode, ended.stdout), (0, "last line\n"), f"the end of a program with {binding}")


@case
def a_peer_that_dies_ends_requests_in_time_with_the_most_retries_there_are():
    with pair(timeout=12, retries=7) as both:
        source, (_, target) = both.near.region(64), both.far.published(64)
        both.far.channel.close()
        start = time.monotonic()
        ticket = both.near.channel.write(source, target, offset=0, at=0, nbytes=64)
        equal(both.status_of(ticket, look=both.near.collect), Status.RETRY_EXCEEDED, "the write")
        expect(time.monotonic() - start < 10, "it took ten seconds")


@case
def a_write_reaches_its_memory_while_a_child_lives():
    with pair(**PATIENT) as both:
        memory, target = both.far.published(4096)
        source = both.near.region(4096)
        child = os.fork()
        if child == 0:
            time.sleep(3)
            os._exit(0)
        # A page that the child shares would be copied now, were it not pinned.
        memory.view[:] = b"x" * 4096
        source.view[:] = b"p" * 4096
        both.near.channel.write(source, target, offset=0, at=0, nbytes=4096, imm=1)
        equal(both.arrival(), 1, "the immediate")
        equal(bytes(memory.view), b"p" * 4096, "the memory")
        os.kill(child, 9)
        os.waitpid(child, 0)


@case
def a_peer_that_dies_while_nothing_is_under_way_is_found_out():
    with pair(**HASTY) as both:
        channel = both.near.channel
        channel.reset()
        with Victim(both.setting, nbytes=4096, **HASTY) as victim:
            channel.connect(victim.address)
            victim.connect(channel.address())
            time.sleep(1.1)
            expect(channel.alive(), "a living peer was taken for dead")
            victim.kill()
            start = time.monotonic()
            both.until(lambda: not channel.alive(), "word of the death", look=both.near.collect)
            expect(time.monotonic() - start < 10, "it took ten seconds")
        equal(channel.state, ChannelState.ERROR, "the state")
        equal(list(channel.poll()), [], "completions, of which nobody asked for any")


@case
def ends_with_different_bindings_understand_each_other():
    with pair(near={"binding": "ibverbs"}, far={"binding": "pyverbs"}, **PATIENT) as both:
        found = [end.device.traits.detail["binding"] for end in (both.near, both.far)]
        equal(found, ["ibverbs", "pyverbs"], "bindings")
        source, (_, target) = both.near.region(8), both.far.published(8)
        for value in (1, 0x01020304, 2**32 - 1):
            both.near.channel.write(source, target, offset=0, at=0, nbytes=8, imm=value)
            equal(both.arrival(), value, "an immediate from the wheel to pyverbs")
        back, (_, home) = both.far.region(8), both.near.published(8)
        both.far.channel.write(back, home, offset=0, at=0, nbytes=8, imm=0x01020304)
        equal(both.next_of(both.near.channel.arrived, "an immediate"), 0x01020304, "one from pyverbs to the wheel")


@case
def a_tensor_of_another_library_is_registered_in_place():
    import numpy as np

    with pair(**PATIENT) as both:
        tensor = np.arange(1 << 16, dtype=np.float32)
        source = both.near.device.register(memoryview(tensor).cast("B"), access=Access.LOCAL_WRITE)
        memory, target = both.far.published(tensor.nbytes)
        both.status_of(both.near.channel.write(source, target, offset=0, at=0, nbytes=tensor.nbytes))
        equal(bytes(memory.view), tensor.tobytes(), "what arrived")


def main():
    """Run the cases; those named, or all."""
    for name, function in CASES.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        start, status, message = time.perf_counter(), "ok", ""
        try:
            function()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1].lineno
            status, message = "failed", f"{type(error).__name__}: {error} (line {where})"
        sys.stdout.write(json.dumps(
            {"name": name, "status": status, "message": message, "seconds": time.perf_counter() - start}
        ) + "\n")  # fmt: skip
        sys.stdout.flush()


if __name__ == "__main__":
    main()
