"""Runs one machine's part of a divided graph, without ever blocking on another machine.

Running a node, sending a value and receiving one are *polling-asynchronous operations*: generators that look whether
they can get on and yield what they wait for where they cannot. Those whose operands are there stand in a ready queue;
one that is not ready goes back to its tail, so a machine that waits for one value computes on the others. A whole step
is such an operation itself: `executor.drive` runs it in a process of its own, `take_turns` those of several machines in
one.

The producer of a static value writes into the value's slot (`allocation`), so it is also not ready while a receiver
still holds the slot's last content.

Results lie where they were produced or received, also in registered memory: they are valid until the next step, or
until `release`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from engines.rdma.analyzer.allocation import SiteTracer, slot_memory
from engines.rdma.analyzer.capture import Role, UnsupportedGraph
from engines.rdma.analyzer.edges import Protocol, result_nodes
from engines.rdma.analyzer.effects import Effects
from engines.rdma.analyzer.partition import is_everywhere
from engines.rdma.placement import ShapeChanged
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch
    from torch.fx import Node

    from engines.rdma.analyzer.edges import Edge
    from engines.rdma.analyzer.plan import Plan
    from engines.rdma.analyzer.ports import Port
    from engines.rdma.copies import CopyLedger
    from engines.rdma.executor import Operation


class GraphExecutor:
    """One machine of a plan.

    Args:
        plan: the divided graph, the same on every machine.
        machine: which one this is.
        port: its end of the edges.
        ledger: where payload copies are counted.

    Raises:
        UnsupportedGraph: the plan has no such machine.
    """

    def __init__(self, plan: Plan, machine: str, port: Port, ledger: CopyLedger) -> None:
        if machine not in plan.machines:
            raise UnsupportedGraph(f"no machine {machine!r} in the plan; there are {', '.join(plan.machines)}")
        self.plan, self.machine, self.steps = plan, machine, 0
        self.ledger, self.tracer = ledger, SiteTracer(ledger)
        self._port = port
        self._slots = {name: slot_memory(name, slot) for name, slot in port.slots().items()}
        program = plan.program
        self._numbers = {node: number for number, node in enumerate(program.nodes)}
        self._by_name = {node.name: node for node in program.nodes}
        self._nodes = [node for node in program.nodes if plan.machine_of.get(node) == machine]
        self._placeholders = [
            each for each in program.inputs if plan.machine_of.get(self._by_name[each.node]) == machine
        ]
        self._incoming = {self._by_name[edge.producer]: edge for edge in plan.received_by(machine)}
        self._outgoing: dict[Node, list[Edge]] = {}
        for edge in plan.sent_by(machine):
            self._outgoing.setdefault(self._by_name[edge.producer], []).append(edge)
        self._state_nodes = {self._by_name[each.node] for each in program.inputs if each.role is not Role.INPUT}
        self._sources = {edge.source for edge in self._incoming.values()}
        self._stateful = {edge.source for node, edge in self._incoming.items() if node in self._state_nodes}
        nodes = result_nodes(program)
        self._results = {name: nodes[name] for name, where in plan.results.items() if where == machine}
        self._order = list(Effects(program).order(self._nodes))
        self.tracer.promote(
            {
                edge.producer: self._slots[edge.producer]
                for edges in plan.slot_groups(machine).values()
                for edge in edges
                if not edge.scalar
            }
        )
        self._everywhere: dict[Node, Any] = {}
        self.state: dict[str, torch.Tensor] = {}
        """Parameters, buffers and constants of this machine by name. Those that are sent lie in their slots: change
        them in place, between steps."""
        self._load()
        self._failed = False
        self._held: frozenset[str] = frozenset()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what `step` must be given here."""
        return tuple(each.name for each in self._placeholders if each.role is Role.INPUT)

    def step(self, inputs: Mapping[str, torch.Tensor]) -> Operation[dict[str, torch.Tensor]]:
        """One execution of the graph, as a polling-asynchronous operation.

        Args:
            inputs: those of `inputs`.

        Returns:
            The results that are wanted on this machine, by name; valid until the next step or `release`.

        Raises:
            ShapeChanged: a static value does not have the shape of the plan.
            SlotHeld: a result of an earlier step is still alive, and lies where a new one must go.
            HarnessError: an input is missing.
        """
        if missing := sorted(set(self.inputs) - set(inputs)):
            raise HarnessError(f"machine {self.machine!r} needs the inputs {', '.join(missing)}")
        if self._failed:
            raise HarnessError(
                f"machine {self.machine!r}: step {self.steps} failed, and its peers wait for the rest of it"
            )
        self.release()
        self.steps += 1
        self._failed = True
        self.tracer.begin_step()
        values: dict[Node, Any] = dict(self._everywhere)
        for each in self._placeholders:
            value = self.state[each.name] if each.name in self.state else inputs[each.name].detach()
            values[self._by_name[each.node]] = value
        step = _Step(self, values)
        yield from self._drain(step)
        results = self._collect(step)
        for source in self._sources - self._held:
            self._port.release(self.steps, source)
        yield from self._await_state()
        self._failed = False
        return results

    def release(self) -> None:
        """Give up the results of the latest step, and let their senders write their slots again."""
        for source in self._held:
            self._port.release(self.steps, source)
        self._held = frozenset()

    def close(self) -> None:
        """Let go of registered memory: state that is sent, and the latest results, must not be used again."""
        self.release()
        self.state.clear()
        self._slots.clear()
        self.tracer.forget()

    def _drain(self, step: _Step) -> Operation[None]:
        moves = 0
        ready = deque((task, None) for task in step.begin())
        while ready:
            for _ in range(len(ready)):
                task, waiting = ready.popleft()
                try:
                    found = next(task.operation)
                except StopIteration:
                    moves += 1
                    ready.extend((following, None) for following in step.finish(task))
                    continue
                moves += found != waiting
                ready.append((task, found))
            if ready:
                yield f"{self.machine}: {_say(ready[0][1])}", moves
        step.check_complete()

    def _collect(self, step: _Step) -> dict[str, torch.Tensor]:
        """The results, and which machines' slots must be held for them."""
        found, held = {}, set()
        for name, node in self._results.items():
            value = step.values[node]
            source = step.source_of(value)
            if source in self._stateful:
                # Its owner waits for the release before it may change its state, and we would wait for its next step.
                self.ledger.count("result: out of a slot", value.nbytes)
                value = value.clone()
            elif source is not None:
                held.add(source)
            found[name] = value
        self._held = frozenset(held)
        return found

    def _await_state(self) -> Operation[None]:
        """A step is over only when the state that it sent was taken: its owner may change it then."""
        for node in self._outgoing:
            if node in self._state_nodes:
                while not self._port.writable(node.name, self.steps + 1):
                    yield f"{self.machine}: release of {node.name}"

    def _load(self) -> None:
        program = self.plan.program
        for each in program.inputs:
            node = self._by_name[each.node]
            if is_everywhere(node, program):
                self.state[each.name] = self._everywhere[node] = program.state[each.name]
            elif each.role is not Role.INPUT and each in self._placeholders:
                self.state[each.name] = self._settle(node, program.state[each.name])
        for node in program.nodes:
            if node.op == "get_attr":
                self._everywhere[node] = _attribute(program.module, str(node.target))

    def _settle(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        """State that is sent moves into its slot for good, before the first step."""
        edge = next((edge for edge in self._outgoing.get(node, ()) if edge.protocol is Protocol.STATIC), None)
        if edge is None or not edge.nbytes:
            return value
        slot = self._slots[node.name]
        settled = edge.from_wire(slot.view(value.dtype).view(edge.wire_shape))
        return settled.copy_(value) if not edge.repeated else value


class _Task:
    """An operation of a step."""

    def __init__(self, operation: Operation[Any], needs: Iterable[Node], gives: Node | None) -> None:
        self.operation, self.needs, self.gives = operation, tuple(dict.fromkeys(needs)), gives
        self.missing = 0
        self.followers: list[_Task] = []


class _Step:
    """One execution of a machine's part: its operations, and the values between them."""

    def __init__(self, executor: GraphExecutor, values: dict[Node, Any]) -> None:
        self.executor, self.values = executor, values
        self.port, self.tracer = executor._port, executor.tracer
        self.number = executor.steps
        self._tasks: list[_Task] = []
        self._done = 0
        self._uses: dict[Node, int] = {}
        self._received: dict[int, str] = {}
        """Storage -> machine that it was received from."""
        makers: dict[Node, _Task] = {}
        for node, edge in executor._incoming.items():
            makers[node] = self._add(self._receive(node, edge), (), node)
        for node in executor._nodes:
            if node.op != "placeholder":
                makers[node] = self._add(self._run(node), node.all_input_nodes, node)
            if node in executor._outgoing:
                self._add(self._send(node, executor._outgoing[node]), (node,), None)
        for task in self._tasks:
            for node in task.needs:
                self._uses[node] = self._uses.get(node, 0) + 1
                if node in makers:
                    self._follow(makers[node], task)
        for before, after in executor._order:
            if before in makers and after in makers:
                self._follow(makers[before], makers[after])
        for node in executor._results.values():
            self._uses[node] = self._uses.get(node, 0) + 1

    def begin(self) -> list[_Task]:
        """Operations that need nothing but state and inputs."""
        return [task for task in self._tasks if not task.missing]

    def finish(self, task: _Task) -> list[_Task]:
        """Note that an operation is done; returns those for which it was the last that was missing."""
        self._done += 1
        for node in task.needs:
            self._uses[node] -= 1
            if not self._uses[node]:
                # The last user is done: its memory, maybe a slot, is free for others.
                del self.values[node]
        if task.gives is not None and not self._uses.get(task.gives):
            del self.values[task.gives]
        ready = []
        for follower in task.followers:
            follower.missing -= 1
            if not follower.missing:
                ready.append(follower)
        return ready

    def check_complete(self) -> None:
        """Every operation has run.

        Raises:
            UnsupportedGraph: some could not, because they wait for one another.
        """
        if self._done != len(self._tasks):
            left = [task.gives.name for task in self._tasks if task.missing and task.gives is not None]
            raise UnsupportedGraph(f"operations that wait for one another: {', '.join(left)}")

    def source_of(self, value: Any) -> str | None:
        """The machine from which the memory of `value` was received, if it was."""
        storage = _storage(value)
        return None if storage is None else self._received.get(storage)

    def _add(self, operation: Operation[Any], needs: Iterable[Node], gives: Node | None) -> _Task:
        task = _Task(operation, needs, gives)
        self._tasks.append(task)
        return task

    @staticmethod
    def _follow(before: _Task, after: _Task) -> None:
        before.followers.append(after)
        after.missing += 1

    def _run(self, node: Node) -> Operation[None]:
        import torch
        from torch.fx.node import map_arg

        number = self.executor._numbers[node]
        for name in self.tracer.bound_to(number):
            while not self.port.writable(name, self.number):
                yield f"release of {name}"
        args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
        with torch.set_grad_enabled(self.executor.plan.program.grad_mode), self.tracer.running():
            name = f"{node.name} = {node.target}"
            self.values[node] = self.tracer.run(number, name, node.target, args, kwargs)

    def _send(self, node: Node, edges: Sequence[Edge]) -> Operation[None]:
        value = self.values[node]
        static = [edge for edge in edges if edge.protocol is Protocol.STATIC]
        for edge in edges:
            if edge.protocol is Protocol.DYNAMIC:
                yield from self.port.send(edge, self._wire(edge, value), self.number)
        if not static:
            return
        while not self.port.writable(node.name, self.number):
            yield f"release of {node.name}"
        self._place(static[0], value)
        for edge in static:
            self.port.post(edge, self.number)

    def _place(self, edge: Edge, value: Any) -> None:
        import torch

        if edge.scalar:
            self.executor._slots[edge.producer].view(getattr(torch, edge.dtype)).fill_(value)
            return
        self.tracer.place(edge.producer, self._wire(edge, value))

    def _wire(self, edge: Edge, value: torch.Tensor) -> torch.Tensor:
        """A value in the order of the wire.

        Raises:
            ShapeChanged: it is not what the plan says.
        """
        shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
        fits = len(shape) == len(edge.shape) and all(
            isinstance(planned, str) or planned == found for planned, found in zip(edge.shape, shape, strict=True)
        )
        if not fits or dtype != edge.dtype:
            planned = f"{edge.dtype}[{', '.join(map(str, edge.shape))}]"
            raise ShapeChanged(
                f"{edge.producer!r}: expected {planned}, got {dtype}{list(shape)}; declare the dimension as dynamic "
                "when the model is exported"
            )
        return edge.to_wire(value)

    def _receive(self, node: Node, edge: Edge) -> Operation[None]:
        wire = yield from self.port.receive(edge, self.number)
        import torch

        if edge.scalar:
            self.values[node] = wire.view(getattr(torch, edge.dtype)).item()
            return
        dtype = getattr(torch, edge.dtype)
        if edge.protocol is Protocol.STATIC:
            wire = wire.view(dtype).view(edge.wire_shape)
        self.values[node] = edge.from_wire(wire)
        if wire.nbytes:
            self._received[wire.untyped_storage().data_ptr()] = edge.source


def take_turns(steps: Mapping[str, Operation[Any]]) -> dict[str, Any]:
    """Run the steps of several machines in this thread, in turn, until all are done; returns what they return.

    Raises:
        HarnessError: no machine gets on: they wait for one another.
    """
    running, results, latest = dict(steps), {}, {}
    while running:
        moved = False
        for machine, step in list(running.items()):
            try:
                found = next(step)
            except StopIteration as end:
                results[machine], moved = end.value, True
                del running[machine]
                continue
            moved |= found != latest.get(machine)
            latest[machine] = found
        if not moved:
            raise HarnessError(f"no machine gets on: {'; '.join(str(latest[machine][0]) for machine in running)}")
    return results


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _say(waiting: Any) -> str:
    """What is waited for, in words; operations put a counter behind them to show that they get on."""
    while isinstance(waiting, tuple):
        waiting = waiting[0]
    return str(waiting or "its own work")


def _storage(value: Any) -> int | None:
    storage: Callable[[], Any] | None = getattr(value, "untyped_storage", None)
    return storage().data_ptr() if storage else None
