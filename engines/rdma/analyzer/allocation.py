"""Allocation sites: let the operation that produces a tensor write it into registered memory.

A tensor that is to be sent must lie in registered memory, and copying it there costs one pass over it at every step.
Instead the *first* step is traced: for every tensor that reaches a send, the *allocation site* of its buffer is
recorded, the n-th allocation made while a certain operation ran. From the second step on that allocation is answered
with the tensor's slot of registered memory, and the producer writes into the slot without knowing it.

Whether that worked is never inferred. `SiteTracer.place` looks at where the tensor lies: inside its slot there is
nothing to do, anywhere else its bytes are copied and the copy is counted in a `CopyLedger`.

Training an unmodified module, gradients straight into registered memory::

    tracer = AllocationTracer(device.ledger)
    tracer.promote({name: slot for name, slot in slots})     # writable buffers, 64-byte aligned, exactly as large
    for batch in batches:
        model.zero_grad(set_to_none=True)                    # the gradients of the last step give their slots back
        with tracer.step():
            loss(model, batch).backward()                    # the forward pass may be inside or outside
        for name, parameter in model.named_parameters():
            tracer.place(name, parameter.grad)               # step 1 copies; later steps do not; counted
            send(name)                                       # the bytes lie in the slot now
        wait_until_released()                                # before the next step writes into the slots
    print(tracer.report())

A slot may be written again only after the peer has released it, so `step` must not be entered before; with two slots
for each tensor, call `promote` again between steps with the others: known sites stay known.

What is copied, and counted, at every step:

- a buffer that no operation of the step allocated, that is only part of a larger one (a slice of a fused gradient),
  that is not contiguous, or that another tensor of the same step already sends;
- a gradient that `backward` itself must copy before it becomes `.grad` (an expanded one, of a bias that was summed).
  That copy is made straight into the slot, so it is one copy, not two; it is counted all the same;

Where the allocator hook cannot be built (no C++ compiler) the `out=` variants of operations stand in for it as far as
they go (`out_variants`); `report` says so.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from engines.rdma.analyzer.allocator_hook import HookUnavailable, Origin, Trace
from engines.rdma.analyzer.out_variants import OutVariants
from engines.rdma.placement import ShapeChanged
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from engines.rdma.copies import CopyLedger

ALIGN = 64
"""PyTorch's kernels may assume that a fresh buffer starts on a cache line."""
RETRACES = 1
"""Times a site may move before the tensor is demoted: libraries initialise themselves in their first call."""
COPYING = frozenset({"aten.clone.default", "aten._to_copy.default", "aten.new_empty_strided.default"})
"""Operations whose fresh buffer holds a copy of another tensor; `backward` ends with one where it may not hand on its
own result."""
_OFF_SITE = 1 << 63
"""Marks an announced number as not the operation that was traced under it, so that no binding applies."""


class SlotHeld(HarnessError):
    """A tensor still lives in the slot that another one is to be placed in."""


class UnusableSlot(HarnessError):
    """Memory that cannot serve as a slot."""


class State(StrEnum):
    """What is known about one tensor."""

    TRACING = "tracing"
    """Not seen yet."""
    PROMOTED = "promoted"
    """Its allocation site allocates from its slot."""
    CLONED = "cloned"
    """The same, but what writes there is a copy that `backward` makes; counted."""
    DEMOTED = "demoted"
    """Copied at every step, for the reason given; counted."""


@dataclass(frozen=True)
class Site:
    """An allocation site."""

    origin: Origin
    operation: str
    """Name of the operation."""

    def __str__(self) -> str:
        return f"allocation {self.origin.ordinal} of operation {self.origin.operation} ({self.operation})"


@dataclass(frozen=True)
class Placed:
    """How one tensor came to lie in its slot."""

    copied: bool
    reason: str
    """Why it was copied; empty if it was not."""


@dataclass
class Promotion:
    """The history of one tensor."""

    name: str
    nbytes: int
    state: State = State.TRACING
    site: Site | None = None
    reason: str = ""
    zero_copy_steps: int = 0
    copied_steps: int = 0
    moves: int = 0

    def to_json(self) -> dict[str, Any]:
        """For records."""
        site = self.site and {
            "operation": self.site.origin.operation,
            "name": self.site.operation,
            "allocation": self.site.origin.ordinal,
        }
        return {
            "name": self.name,
            "bytes": self.nbytes,
            "state": str(self.state),
            "site": site,
            "reason": self.reason,
            "zero_copy_steps": self.zero_copy_steps,
            "copied_steps": self.copied_steps,
        }


@dataclass(frozen=True)
class Report:
    """What was found out about all tensors."""

    steps: int
    promotions: tuple[Promotion, ...]
    unavailable: str = ""
    """Why there is no allocator hook, and `out=` variants stand in for it; empty if there is one."""

    @property
    def nbytes(self) -> int:
        """Bytes that are placed in one step."""
        return sum(promotion.nbytes for promotion in self.promotions)

    @property
    def zero_copy_bytes(self) -> int:
        """Those of them whose producer writes into the slot."""
        return sum(promotion.nbytes for promotion in self.promotions if promotion.state is State.PROMOTED)

    @property
    def zero_copy_share(self) -> float:
        """Share of bytes, 0 to 1; 1 where nothing is to be placed."""
        return self.zero_copy_bytes / self.nbytes if self.nbytes else 1.0

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {
            "steps": self.steps,
            "bytes": self.nbytes,
            "zero_copy_bytes": self.zero_copy_bytes,
            "zero_copy_share": self.zero_copy_share,
            "hook_unavailable": self.unavailable,
            "tensors": [promotion.to_json() for promotion in self.promotions],
        }

    def __str__(self) -> str:
        head = f"{self.zero_copy_share:.1%} of {self.nbytes} bytes without a copy after {self.steps} steps"
        lines = [f"{head} (no allocator hook: {self.unavailable})" if self.unavailable else head]
        for promotion in self.promotions:
            where = f", {promotion.site}" if promotion.site else ""
            why = f": {promotion.reason}" if promotion.reason else ""
            lines.append(f"  {promotion.name}: {promotion.nbytes} B, {promotion.state}{where}{why}")
        return "\n".join(lines)


@dataclass
class _Bound:
    """An operation that allocates from slots."""

    operation: str
    names: list[str]


@dataclass
class _Slot:
    """Registered memory for one tensor; keeps it alive."""

    tensor: torch.Tensor
    """uint8, one dimension."""
    address: int = field(init=False)

    def __post_init__(self) -> None:
        self.address = self.tensor.data_ptr()

    @property
    def nbytes(self) -> int:
        return self.tensor.numel()

    def shaped(self, like: torch.Tensor) -> torch.Tensor:
        """The slot as a contiguous tensor of the shape and element type of `like`."""
        return self.tensor.view(like.dtype).view(like.shape)


class SiteTracer:
    """Finds allocation sites and binds them to slots; somebody else runs the operations through it.

    Args:
        ledger: where copies are counted, under `allocation: ...`.
        required: refuse to work without the allocator hook instead of copying what it alone could spare.

    Raises:
        HookUnavailable: `required`, and it cannot be built.
    """

    copying: frozenset[str] = frozenset()
    """Operations that nobody asked for and whose result is a copy; a graph has none, all its nodes were asked for."""

    def __init__(self, ledger: CopyLedger, *, required: bool = False) -> None:
        self.ledger = ledger
        self.steps = 0
        self._unavailable = ""
        self._trace: Trace | OutVariants
        try:
            self._trace = Trace()
        except HookUnavailable as error:
            if required:
                raise
            self._unavailable = str(error)
            self._trace = OutVariants()
        self._slots: dict[str, _Slot] = {}
        self._promotions: dict[str, Promotion] = {}
        self._names: dict[int, str] = {}
        self._bound: dict[int, _Bound] = {}
        self._stale = True

    def promote(self, slots: Mapping[str, Any]) -> None:
        """Say where each tensor is to lie; may be called again with other slots of the same sizes.

        Args:
            slots: tensor name -> writable buffer or uint8 tensor, aligned to 64 bytes, exactly as large as the tensor.

        Raises:
            UnusableSlot: misaligned, read-only, or another size than before.
        """
        made = {name: _Slot(slot_memory(name, buffer)) for name, buffer in slots.items()}
        for name, slot in made.items():
            known = self._promotions.get(name)
            if known and known.nbytes != slot.nbytes:
                raise UnusableSlot(f"slot of {name!r}: expected {known.nbytes} bytes as before, got {slot.nbytes}")
        for name, slot in made.items():
            self._promotions.setdefault(name, Promotion(name, slot.nbytes))
            self._slots[name] = slot
        self._stale = True

    def begin_step(self) -> None:
        """Start a step of the job; sites that were found in earlier ones allocate from their slots from now on."""
        self.steps += 1
        self._names = {}
        if self._stale:
            self._bind()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Trace what this thread allocates; several tracers may take turns within their steps."""
        with self._trace.entered():
            yield

    def bound_to(self, number: int) -> Sequence[str]:
        """Names of the tensors whose slots operation `number` of this step will write into."""
        found = self._bound.get(number)
        return found.names if found else ()

    def run(self, number: int, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run operation `number` of this step, under `running`; the result lies in a slot if it is bound to one."""
        self._names[number] = name
        bound = self._bound.get(number)
        on_site = bound is None or bound.operation == name
        return self._trace.run(number if on_site else number | _OFF_SITE, function, args, kwargs)

    def place(self, name: str, tensor: torch.Tensor) -> Placed:
        """Make the bytes of `tensor` lie in its slot; free if its producer wrote them there, else a counted copy.

        Raises:
            ShapeChanged: its size is not that of the slot.
            SlotHeld: a live tensor of an earlier step would be overwritten.
            UnusableSlot: `name` was not promoted.
        """
        import torch

        if name not in self._slots:
            raise UnusableSlot(f"{name!r} has no slot: promote it first")
        slot, promotion = self._slots[name], self._promotions[name]
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise ShapeChanged(f"{name!r}: expected a strided CPU tensor, got {tensor.layout} on {tensor.device}")
        if tensor.nbytes != slot.nbytes:
            shape = list(tensor.shape)
            raise ShapeChanged(f"{name!r}: expected {slot.nbytes} bytes, got {tensor.nbytes} ({tensor.dtype}, {shape})")
        if slot.nbytes == 0:
            promotion.state = State.PROMOTED
            return self._placed(promotion, "")
        if tensor.data_ptr() == slot.address and tensor.is_contiguous():
            if promotion.state is State.CLONED:
                self.ledger.count("allocation: cloned by backward", slot.nbytes)
                return self._placed(promotion, promotion.reason)
            promotion.state = State.PROMOTED
            return self._placed(promotion, "")
        if self._trace.is_lent(slot.address):
            raise SlotHeld(
                f"slot of {name!r} still holds a live tensor: drop it before the next step "
                "(zero_grad(set_to_none=True)), or promote another slot"
            )
        reason = self._learn(promotion, tensor)
        slot.shaped(tensor).copy_(tensor.detach())
        self.ledger.count("allocation: to slot", slot.nbytes)
        return self._placed(promotion, reason)

    def forget(self) -> None:
        """Let go of all slots; what is known of their tensors stays in the report."""
        self._slots.clear()
        self._bound.clear()
        self._trace.unbind_all()

    def report(self) -> Report:
        """What is known by now."""
        return Report(self.steps, tuple(self._promotions.values()), self._unavailable)

    def held(self) -> tuple[str, ...]:
        """Names whose slots a tensor lives in; their memory must stay until it is dropped."""
        return tuple(name for name, slot in self._slots.items() if slot.nbytes and self._trace.is_lent(slot.address))

    def _bind(self) -> None:
        self._trace.unbind_all()
        self._bound = {}
        for name, promotion in self._promotions.items():
            site = promotion.site
            if site and promotion.state in (State.PROMOTED, State.CLONED):
                self._trace.bind(site.origin, self._slots[name].tensor)
                self._bound.setdefault(site.origin.operation, _Bound(site.operation, [])).names.append(name)
        self._stale = False

    def _learn(self, promotion: Promotion, tensor: torch.Tensor) -> str:
        """Find the site of a tensor that lies outside its slot; says why it must be copied now."""
        if promotion.state is State.DEMOTED:
            return promotion.reason
        site, obstacle = self._site(promotion, tensor)
        if obstacle or site is None:
            return self._demote(promotion, obstacle)
        before = promotion.site
        if site == before:
            return "its producer could not write into the slot this time"
        if before is not None:
            promotion.moves += 1
            if promotion.moves > RETRACES:
                return self._demote(promotion, f"its allocation site is not stable: first {before}, then {site}")
        promotion.site = site
        cloned = site.operation in self.copying
        promotion.state = State.CLONED if cloned else State.PROMOTED
        promotion.reason = f"backward copies it ({site.operation})" if cloned else ""
        self._stale = True
        return "its allocation site moved" if before else "its allocation site was not known yet"

    def _site(self, promotion: Promotion, tensor: torch.Tensor) -> tuple[Site | None, str]:
        """The allocation site, or what stands in the way of promoting it."""
        storage = tensor.untyped_storage()
        origin = self._trace.origin(storage.data_ptr())
        if origin is None or origin.operation & ~_OFF_SITE not in self._names:
            if self._unavailable:
                return None, f"no operation that can write elsewhere made it (no allocator hook: {self._unavailable})"
            return None, "no operation of the step allocated its buffer"
        origin = Origin(origin.operation & ~_OFF_SITE, origin.ordinal, origin.nbytes)
        if storage.nbytes() != tensor.nbytes:
            return None, f"it is a part of a larger buffer ({storage.nbytes()} bytes)"
        if not tensor.is_contiguous():
            return None, f"it is not contiguous (strides {list(tensor.stride())})"
        site = Site(origin, self._names[origin.operation])
        for other in self._promotions.values():
            if other is not promotion and other.site and other.site.origin == origin and other.state != State.DEMOTED:
                return None, f"it shares its buffer with {other.name!r}"
        return site, ""

    def _demote(self, promotion: Promotion, reason: str) -> str:
        promotion.state, promotion.reason = State.DEMOTED, reason
        self._stale = True
        return reason

    @staticmethod
    def _placed(promotion: Promotion, reason: str) -> Placed:
        if reason:
            promotion.copied_steps += 1
        else:
            promotion.zero_copy_steps += 1
        return Placed(bool(reason), reason)


class AllocationTracer(SiteTracer):
    """Allocation sites of ordinary, eager PyTorch: the i-th operation that reaches a kernel in a step is operation i.

    The backward pass of CPU tensors runs in the thread that calls `backward`, so its operations are seen too.
    """

    copying = COPYING

    def __init__(self, ledger: CopyLedger, *, required: bool = False) -> None:
        super().__init__(ledger, required=required)
        self._active = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step: run `backward`, and as much of the forward pass as you like, inside."""
        if self._active:
            raise HarnessError("a step is already under way: steps of one tracer do not nest")
        self._active = True
        self.begin_step()
        try:
            with self.running(), _announcer(self):
                yield
        finally:
            self._active = False

    def operations(self) -> Counter[str]:
        """How often each operation ran in the latest step."""
        return Counter(self._names.values())


def _announcer(tracer: SiteTracer) -> Any:
    """A dispatch mode that announces every operation to `tracer`, in order."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Announcer(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += 1
            # No reference to the result may stay here: `backward` copies a gradient that somebody else holds.
            return tracer.run(self.number - 1, str(func), func, args, kwargs or {})

    return Announcer()


def slot_memory(name: str, buffer: Any) -> torch.Tensor:
    """Memory of a slot as a uint8 tensor.

    Args:
        name: of the tensor that is to lie there, for messages.
        buffer: a writable buffer, or a contiguous uint8 tensor; aligned to 64 bytes.

    Raises:
        UnusableSlot: it is not.
    """
    import torch

    if isinstance(buffer, torch.Tensor):
        if buffer.dtype != torch.uint8 or not buffer.is_contiguous() or buffer.device.type != "cpu":
            raise UnusableSlot(f"slot of {name!r}: expected contiguous uint8 memory of the CPU")
        tensor = buffer.view(-1)
    else:
        view = memoryview(buffer)
        if view.readonly:
            raise UnusableSlot(f"slot of {name!r}: read-only memory")
        if not view.nbytes:
            return torch.empty(0, dtype=torch.uint8)
        tensor = torch.frombuffer(view.cast("B"), dtype=torch.uint8)
    if tensor.data_ptr() % ALIGN and tensor.numel():
        raise UnusableSlot(f"slot of {name!r}: expected an address that is a multiple of {ALIGN}")
    return tensor
