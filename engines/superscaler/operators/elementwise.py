"""Operators that work on each element by itself, with broadcasting; and those that only fill a tensor."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from engines.superscaler.operators import random
from engines.superscaler.operators.cost import passing
from engines.superscaler.operators.dtypes import torch_dtype
from engines.superscaler.operators.shapes import broadcast, dims, line, unary
from engines.superscaler.operators.table import define

if TYPE_CHECKING:
    import torch

    from engines.superscaler.operators.cost import Sizes, Work
    from engines.superscaler.operators.table import Call, Local

# --- of one tensor: what the backward pass needs is the input, the output, or nothing -----------------------------

INPUT, OUTPUT, NOTHING = "input", "output", "nothing"
UNARY = {
    "relu": OUTPUT,
    "gelu": INPUT,
    "silu": INPUT,
    "sigmoid": OUTPUT,
    "tanh": OUTPUT,
    "exp": OUTPUT,
    "log": INPUT,
    "sqrt": OUTPUT,
    "rsqrt": OUTPUT,
    "reciprocal": OUTPUT,
    "abs": INPUT,
    "sin": INPUT,
    "cos": INPUT,
    "erf": INPUT,
    "square": INPUT,
    "neg": NOTHING,
    "logical_not": NOTHING,
}
ACTIVATIONS = frozenset({"relu", "gelu", "silu", "sigmoid", "tanh"})


def _unary(local: Local, name: str) -> torch.Tensor:
    import torch

    if name == "gelu":
        return torch.nn.functional.gelu(local.inputs[0], approximate=local.get("approximate", "none"))
    if name == "silu":
        return torch.nn.functional.silu(local.inputs[0])
    return getattr(torch, name)(local.inputs[0])


def _unary_cost(sizes: Sizes, kept: str, family: str) -> Work:
    if kept == NOTHING:
        return passing(sizes)
    return sizes.work(
        inputs=(0,) if kept == INPUT else (),
        outputs=(0,) if kept == OUTPUT else (),
        family=family,
        flops=float(sizes.output()),
        backward_flops=float(sizes.output()),
    )


for _name, _kept in UNARY.items():
    _family = "activation" if _name in ACTIVATIONS else "elementwise"
    define(
        _name,
        unary(),
        partial(_unary, name=_name),
        partial(_unary_cost, kept=_kept, family=_family),
    )

# --- of two tensors, or of one and a number -----------------------------------------------------------------------

COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or")


def _both(local: Local) -> tuple[Any, Any]:
    """The operands; a number stands where a tensor is missing."""
    if len(local.inputs) == 2:
        return local.inputs[0], local.inputs[1]
    return local.inputs[0], float(local.get("other")) if isinstance(local.get("other"), str) else local.get("other")


def _linear(local: Local, name: str) -> torch.Tensor:
    import torch

    first, second = _both(local)
    return getattr(torch, name)(first, second, alpha=local.get("alpha", 1))


def _binary(local: Local, name: str) -> torch.Tensor:
    import torch

    return getattr(torch, name)(*_both(local))


def _product_cost(sizes: Sizes) -> Work:
    two = len(sizes.op.inputs) == 2
    kept = [number for number in (0, 1) if two and sizes.needs(1 - number)]
    return sizes.work(
        inputs=kept, flops=float(sizes.output()), backward_flops=float(sizes.output() * len(sizes.op.inputs))
    )


def _quotient_cost(sizes: Sizes) -> Work:
    two = len(sizes.op.inputs) == 2
    kept = [*([0] if two and sizes.needs(1) else []), *([1] if two else [])]
    return sizes.work(
        inputs=kept, flops=float(sizes.output()), backward_flops=float(sizes.output() * len(sizes.op.inputs))
    )


def _compared_cost(sizes: Sizes) -> Work:
    return sizes.work(inputs=range(len(sizes.op.inputs)), flops=float(sizes.output()))


def _power(local: Local) -> torch.Tensor:
    return local.inputs[0] ** local.get("exponent")


def _power_cost(sizes: Sizes) -> Work:
    return sizes.work(inputs=(0,), flops=float(sizes.output()), backward_flops=2.0 * sizes.output())


for _name in ("add", "sub"):
    define(_name, broadcast, partial(_linear, name=_name), passing)
define("mul", broadcast, partial(_binary, name="mul"), _product_cost)
define("div", broadcast, partial(_binary, name="div"), _quotient_cost)
define("maximum", broadcast, partial(_binary, name="maximum"), _compared_cost)
define("minimum", broadcast, partial(_binary, name="minimum"), _compared_cost)
define("pow", broadcast, _power, _power_cost)
for _name in COMPARISONS:
    define(_name, broadcast, partial(_binary, name=_name), passing)


# --- chosen by a mask ---------------------------------------------------------------------------------------------


def _masked_fill(local: Local) -> torch.Tensor:
    return local.inputs[0].masked_fill(local.inputs[1], float(local.get("value")))


def _where(local: Local) -> torch.Tensor:
    import torch

    return torch.where(*local.inputs)


def _clamp(local: Local) -> torch.Tensor:
    return local.inputs[0].clamp(local.get("min"), local.get("max"))


define("masked_fill", broadcast, _masked_fill, lambda sizes: sizes.work(inputs=(1,), flops=float(sizes.output())))
define("where", broadcast, _where, lambda sizes: sizes.work(inputs=(0,), flops=float(sizes.output())))
define("clamp", unary(), _clamp, lambda sizes: sizes.work(inputs=(0,), flops=float(sizes.output())))

# --- dropout: which elements are dropped depends on their place in the whole, not on who computes them ------------


def _dropout(local: Local) -> torch.Tensor:
    import torch

    given = local.inputs[0]
    rate = local.get("p")
    names = [dim[0] if dim else "" for dim in local.op.annotation.inputs[0]]
    starts = [local.start(name) if name else 0 for name in names]
    kept = random.kept(
        local.op.name, rate, local.op.annotation.input_shape(0), starts, tuple(given.shape), given.device
    )
    return torch.where(kept, given / (1 - rate), torch.zeros((), dtype=given.dtype, device=given.device))


def _dropout_cost(sizes: Sizes) -> Work:
    return sizes.work(
        extra=sizes.output(), flops=2.0 * sizes.output(), backward_flops=float(sizes.output()), family="activation"
    )


define("dropout", unary(), _dropout, _dropout_cost)

# --- another dtype, no gradient -----------------------------------------------------------------------------------


def _cast(local: Local) -> torch.Tensor:
    import torch

    return local.inputs[0].to(torch_dtype(torch, local.get("dtype")))


def _cast_cost(sizes: Sizes) -> Work:
    return sizes.work(family="layout", backward_nbytes=sizes.input_bytes(0) + sizes.output_bytes())


define("cast", unary(), _cast, _cast_cost)
define("detach", unary(), lambda local: local.inputs[0].detach(), lambda sizes: sizes.work(nbytes=0, family="layout"))

# --- made from nothing --------------------------------------------------------------------------------------------


def _made(call: Call) -> str:
    return line([], [dims(len(call.outputs[0]))])


def _arange(local: Local) -> torch.Tensor:
    import torch

    start, step, count = local.get("start", 0), local.get("step", 1), local.length("d0")
    steps = torch.arange(local.start("d0"), local.start("d0") + count)
    return (start + step * steps).to(torch_dtype(torch, local.get("dtype")))


def _full(local: Local) -> torch.Tensor:
    import torch

    value = local.get("value")
    value = float(value) if isinstance(value, str) else value
    return torch.full(local.shape(), value, dtype=torch_dtype(torch, local.get("dtype")))


def _constant(local: Local) -> torch.Tensor:
    import torch

    made = torch.tensor(local.get("value"), dtype=torch_dtype(torch, local.get("dtype")))
    for place, dim in enumerate(local.op.annotation.outputs[0]):
        if dim:
            made = made.narrow(place, local.start(dim[0]), local.length(dim[0]))
    return made


define("arange", _made, _arange, passing)
define("full", _made, _full, passing)
define("constant", _made, _constant, passing)
