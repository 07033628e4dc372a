"""Operators that move or rename elements: views, transposes, slices, joins, shifts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.operators.cost import free
from engines.superscaler.operators.shapes import dims, line, unary, view
from engines.superscaler.operators.table import define

if TYPE_CHECKING:
    import torch

    from engines.superscaler.operators.cost import Sizes, Work
    from engines.superscaler.operators.table import Call, Local


def copied(sizes: Sizes) -> Work:
    """Elements are read and written, forward and backward; nothing is kept."""
    nbytes = 2 * sum(sizes.output_bytes(number) for number in range(len(sizes.op.outputs)))
    return sizes.work(family="layout", nbytes=nbytes, backward_nbytes=nbytes)


def _view_cost(sizes: Sizes) -> Work:
    return copied(sizes) if sizes.op.attributes.get("copies") else free(sizes)


define("view", view, lambda local: local.inputs[0].reshape(local.shape()), _view_cost)
define("copy", unary(), lambda local: local.inputs[0].contiguous(), copied)


def _permuted(call: Call) -> str:
    names = dims(len(call.inputs[0]))
    return line([names], [[names[place] for place in call.attributes["dims"]]])


define("permute", _permuted, lambda local: local.inputs[0].permute(local.get("dims")), free)


def _expanded(call: Call) -> str:
    given, shape = call.inputs[0], call.outputs[0]
    names = dims(len(shape))
    skipped = len(shape) - len(given)
    kept = ["1" if size == 1 != shape[skipped + n] else names[skipped + n] for n, size in enumerate(given)]
    return line([kept], [names])


define("expand", _expanded, lambda local: local.inputs[0].expand(local.shape()), free)

# --- parts of a dim: that dim must be whole -----------------------------------------------------------------------


def _selected(call: Call) -> str:
    dim = call.attributes["dim"]
    names = dims(len(call.inputs[0]), (dim,))
    return line([names], [[name for place, name in enumerate(names) if place != dim]] * len(call.outputs))


def _sliced(call: Call) -> str:
    """One dim (attribute `dim`) has another size in every tensor."""
    dim = call.attributes["dim"]
    names = dims(len(call.inputs[0]))

    def own(side: str, number: int) -> list[str]:
        return [f"{side}{number}^" if place == dim else name for place, name in enumerate(names)]

    return line(
        [own("i", number) for number in range(len(call.inputs))],
        [own("o", number) for number in range(len(call.outputs))],
    )


def _slice(local: Local) -> torch.Tensor:
    index = [slice(None)] * local.inputs[0].dim()
    index[local.get("dim")] = slice(local.get("start", 0), local.get("end"), local.get("step", 1))
    return local.inputs[0][tuple(index)]


def _slice_cost(sizes: Sizes) -> Work:
    # The gradient is written into zeros of the whole.
    return sizes.work(family="layout", nbytes=0, backward_nbytes=sizes.input_bytes(0) + sizes.output_bytes())


def _split_cost(sizes: Sizes) -> Work:
    # The gradients of all pieces are joined.
    return sizes.work(family="layout", nbytes=0, backward_nbytes=2 * sizes.input_bytes(0))


define("select", _selected, lambda local: local.inputs[0].select(local.get("dim"), local.get("index")), _slice_cost)
define("unbind", _selected, lambda local: tuple(local.inputs[0].unbind(local.get("dim"))), _split_cost)
define("slice", _sliced, _slice, _slice_cost)
define("split", _sliced, lambda local: tuple(local.inputs[0].split(local.get("sizes"), local.get("dim"))), _split_cost)


def _cat(local: Local) -> torch.Tensor:
    import torch

    return torch.cat(tuple(local.inputs), local.get("dim"))


def _stack(local: Local) -> torch.Tensor:
    import torch

    return torch.stack(tuple(local.inputs), local.get("dim"))


def _stacked(call: Call) -> str:
    names = dims(len(call.outputs[0]), (call.attributes["dim"],))
    return line([[name for name in names if not name.endswith("^")]] * len(call.inputs), [names])


def _joined_cost(sizes: Sizes) -> Work:
    return sizes.work(family="layout", nbytes=2 * sizes.output_bytes(), backward_nbytes=0)


define("cat", _sliced, _cat, _joined_cost)
define("stack", _stacked, _stack, _joined_cost)

# --- others -------------------------------------------------------------------------------------------------------


def _roll(local: Local) -> torch.Tensor:
    return local.inputs[0].roll(tuple(local.get("shifts")), tuple(local.get("dims")))


def _padded(call: Call) -> str:
    before, after = call.inputs[0], call.outputs[0]
    names = [
        (f"d{n}", f"d{n}") if a == b else (f"i{n}^", f"o{n}^")
        for n, (a, b) in enumerate(zip(before, after, strict=True))
    ]
    return line([[name for name, _ in names]], [[name for _, name in names]])


def _pad(local: Local) -> torch.Tensor:
    import torch

    return torch.nn.functional.pad(local.inputs[0], tuple(local.get("pad")), value=local.get("value", 0.0))


define("roll", unary("dims"), _roll, copied)
define("flip", unary("dims"), lambda local: local.inputs[0].flip(tuple(local.get("dims"))), copied)
define("pad", _padded, _pad, copied)


def _triangle(call: Call) -> str:
    rank = len(call.inputs[0])
    names = dims(rank, (rank - 2, rank - 1))
    return line([names], [names])


define("triu", _triangle, lambda local: local.inputs[0].triu(local.get("diagonal", 0)), copied)
define("tril", _triangle, lambda local: local.inputs[0].tril(local.get("diagonal", 0)), copied)
