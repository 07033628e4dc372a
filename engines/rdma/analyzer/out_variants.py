"""Writing results into slots where no allocator hook can be built: PyTorch's own `out=` variants.

Many operations have a variant that writes its result into a tensor it is given. From the second step on an operation
whose result is to be sent runs as that variant, with the slot as its `out`. It serves where three things hold: the
operation has one result; its variant is native (PyTorch also generates variants that compute elsewhere and copy); and
its operands have the shapes of the first step, because an `out` of another shape would have to grow. Convolutions,
normalisations, embeddings and recurrent layers have no such variant, so their gradients are copied.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.rdma.analyzer.allocator_hook import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch


@dataclass(frozen=True)
class _Call:
    """An operation as it ran when its result was traced."""

    operands: tuple[Any, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class _Bound:
    call: _Call
    slot: torch.Tensor


class OutVariants:
    """The same questions and orders as `allocator_hook.Trace`, without a hook."""

    def __init__(self) -> None:
        self._made: dict[int, Origin] = {}
        """Address of a buffer -> which operation made it last, where that could write elsewhere."""
        self._calls: dict[int, _Call] = {}
        """Operation -> how it ran last on memory of its own."""
        self._bound: dict[int, _Bound] = {}
        self._lent: dict[int, Any] = {}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Nothing is to be put in charge."""
        yield

    def run(self, number: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, into its slot if it is bound to one and fits."""
        operands = _signature((args, kwargs))
        bound = self._bound.get(number)
        variant = _variant(function) if bound else None
        if bound and variant and bound.call.operands == operands and not self.is_lent(bound.slot.data_ptr()):
            result = self._lend(bound)
            variant[0](*args, **kwargs, **{variant[1]: result})
            return result
        before = {leaf.untyped_storage().data_ptr() for leaf in _tensors((args, kwargs))}
        result = function(*args, **kwargs)
        if _is_tensor(result) and result.untyped_storage().data_ptr() not in before and _variant(function):
            self._calls[number] = _Call(operands, tuple(result.shape), tuple(result.stride()), result.dtype)
            storage = result.untyped_storage()
            self._made[storage.data_ptr()] = Origin(number, 0, storage.nbytes())
        else:
            for leaf in _tensors(result):
                address = leaf.untyped_storage().data_ptr()
                if address not in before:
                    self._made.pop(address, None)
        return result

    def bind(self, origin: Origin, slot: torch.Tensor) -> None:
        """Let the result of `origin.operation` be written into `slot`."""
        self._bound[origin.operation] = _Bound(self._calls[origin.operation], slot)

    def unbind_all(self) -> None:
        """Let every operation make its own result."""
        self._bound.clear()

    def origin(self, address: int) -> Origin | None:
        """Which operation made the buffer at `address`, where that operation could write elsewhere."""
        return self._made.get(address)

    def is_lent(self, address: int) -> bool:
        """Whether a tensor holds the slot at `address`."""
        reference = self._lent.get(address)
        return reference is not None and not reference.expired()

    def _lend(self, bound: _Bound) -> torch.Tensor:
        import torch
        from torch.multiprocessing.reductions import StorageWeakRef

        # A storage of its own, whose end can be seen: the slot's lives as long as the slot.
        memory = torch.frombuffer(memoryview(bound.slot.numpy()), dtype=torch.uint8)
        self._lent[bound.slot.data_ptr()] = StorageWeakRef(memory.untyped_storage())
        return memory.view(bound.call.dtype).as_strided(bound.call.shape, bound.call.stride)


@functools.cache
def _variant(function: Any) -> tuple[Callable[..., Any], str] | None:
    """The native variant of an operation with one result that writes it into an operand, and the operand's name."""
    import torch

    schema = getattr(function, "_schema", None)
    if schema is None or len(schema.returns) != 1:
        return None
    wanted = [(argument.name, str(argument.type)) for argument in schema.arguments]
    for name in function.overloadpacket.overloads():
        variant = getattr(function.overloadpacket, name)
        arguments = variant._schema.arguments
        outs = [argument.name for argument in arguments if argument.is_out]
        same = [(argument.name, str(argument.type)) for argument in arguments if not argument.is_out] == wanted
        if len(outs) == 1 and same and torch.Tag.generated not in variant.tags:
            return variant, outs[0]
    return None


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _tensors(tree: Any) -> list[torch.Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(tree) if _is_tensor(leaf)]


def _signature(tree: Any) -> tuple[Any, ...]:
    """Everything about the operands that decides the shape of a result."""
    from torch.utils._pytree import tree_leaves

    return tuple(
        (tuple(leaf.shape), tuple(leaf.stride()), leaf.dtype) if _is_tensor(leaf) else repr(leaf)
        for leaf in tree_leaves(tree)
    )
