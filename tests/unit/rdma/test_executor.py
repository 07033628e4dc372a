"""Polling-asynchronous operations: who is looked at when, and when a peer counts as lost."""

from __future__ import annotations

import pytest

from engines.rdma.executor import IDLES_PER_CHECK, Executor, drive, interleave, together
from engines.rdma.placement import PeerLost, ProtocolError


class Clock:
    """A device as far as an executor knows it: every time of giving way takes a millisecond."""

    def __init__(self):
        self.now = 0.0
        self.then = {}
        """Number of times of giving way -> what happens then."""
        self.idles = 0

    def idle(self):
        self.now += 1e-3
        self.idles += 1
        self.then.get(self.idles, lambda: None)()

    def clock(self):
        return self.now


def waits_for(flags, name, log=None):
    """An operation that ends when its flag is set."""
    while name not in flags:
        if log is not None:
            log.append(name)
        yield name
    return f"{name} came"


def run(operation, device, **how):
    return drive(operation, device, timeout=how.pop("timeout", 60.0), **how)


def test_an_operation_that_is_ready_never_gives_way():
    device = Clock()
    assert run(waits_for({"a"}, "a"), device) == "a came"
    assert device.idles == 0


def test_a_flag_that_is_set_meanwhile_is_seen():
    flags, device = set(), Clock()
    device.then[7] = lambda: flags.add("a")
    assert run(waits_for(flags, "a"), device) == "a came"
    assert device.idles == 7


def test_nothing_for_too_long_is_a_lost_peer():
    with pytest.raises(PeerLost, match=r"^a: nothing came within 2 s$"):
        run(waits_for(set(), "a"), Clock(), timeout=2.0)


def test_getting_on_starts_the_time_again():
    flags, device = set(), Clock()

    def three_flags():
        for name in "abc":
            yield from waits_for(flags, name)

    for number, name in ((IDLES_PER_CHECK * 2, "a"), (IDLES_PER_CHECK * 4, "b"), (IDLES_PER_CHECK * 6, "c")):
        device.then[number] = lambda name=name: flags.add(name)
    run(three_flags(), device, timeout=1.5e-3 * IDLES_PER_CHECK * 2)
    assert device.idles == IDLES_PER_CHECK * 6


def test_a_dead_peer_ends_the_wait_long_before_the_timeout():
    device = Clock()
    with pytest.raises(PeerLost, match=r"^a: the other rank ended$"):
        run(waits_for(set(), "a"), device, alive=lambda: False, timeout=1e9)
    assert device.idles == IDLES_PER_CHECK


def test_what_a_peer_did_before_it_died_still_counts():
    flags = set()

    def dies_after_two_flags():
        flags.update("ab")
        return False

    def two_flags():
        yield from waits_for(flags, "a")
        yield from waits_for(flags, "b")
        return "both"

    assert run(two_flags(), Clock(), alive=dies_after_two_flags) == "both"


def test_an_operation_that_fails_is_closed_and_its_error_passed_on():
    closed = []

    def fails():
        try:
            yield "a"
            raise ProtocolError("broken")
        finally:
            closed.append(1)

    with pytest.raises(ProtocolError, match="broken"):
        run(fails(), Clock())
    assert closed == [1]


def test_what_is_not_ready_goes_to_the_tail_and_others_end_before_it():
    flags, log, device = {"b", "c"}, [], Clock()
    executor = Executor(device, timeout=5.0)
    tasks = [executor.submit(waits_for(flags, name, log)) for name in "abc"]
    assert executor.turn()
    assert [task.done for task in tasks] == [False, True, True]
    assert not executor.turn()
    assert log == ["a", "a"]
    flags.add("a")
    executor.run()
    assert (tasks[0].result, len(executor), device.idles) == ("a came", 0, 0)


def test_a_lost_peer_is_named_by_the_operation_that_waits_for_it_and_the_rest_is_cancelled():
    executor = Executor(Clock(), timeout=1e9)
    executor.submit(waits_for(set(), "from a living peer"))
    executor.submit(waits_for(set(), "from a dead peer"), alive=lambda: False)
    with pytest.raises(PeerLost, match=r"^from a dead peer: the other rank ended$"):
        executor.run()
    assert len(executor) == 0


def test_one_operation_that_stands_still_is_found_among_others_that_get_on():
    device = Clock()

    def gets_on():
        for number in range(10**9):
            yield "busy", number

    executor = Executor(device, timeout=2.0)
    executor.submit(gets_on())
    executor.submit(waits_for(set(), "stuck"))

    def carry_on():
        while executor.turn():
            executor.give_way()

    with pytest.raises(PeerLost, match=r"^stuck: nothing came within 2 s$"):
        carry_on()
    executor.cancel()


def test_ranks_of_one_process_take_turns_and_time_passes_only_when_none_gets_on():
    flags = set()

    def ping(mine, other):
        for number in range(100):
            flags.add((mine, number))
            while (other, number) not in flags:
                yield mine, number

    devices = [Clock(), Clock()]
    executors = [Executor(device, timeout=5.0) for device in devices]
    executors[0].submit(ping(0, 1))
    executors[1].submit(ping(1, 0))
    interleave(executors)
    assert [device.idles for device in devices] == [0, 0]


def test_a_rank_that_fails_takes_the_others_with_it():
    executors = [Executor(Clock(), timeout=0.5), Executor(Clock(), timeout=1e9)]
    for executor in executors:
        executor.submit(waits_for(set(), "never"))
    with pytest.raises(PeerLost):
        interleave(executors)
    assert [len(executor) for executor in executors] == [0, 0]


def test_operations_together_end_in_any_order_and_as_one():
    flags, log = {"c"}, []
    both = together(waits_for(flags, name, log) for name in "abc")
    first, again = next(both), next(both)
    assert first == again
    flags.add("b")
    assert next(both) != again
    flags.add("a")
    with pytest.raises(StopIteration):
        next(both)
