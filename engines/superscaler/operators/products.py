"""Matrix products: linear layers, batched products, einsum."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from engines.superscaler.operators.shapes import dims, line
from engines.superscaler.operators.table import OperatorError, define

if TYPE_CHECKING:
    import torch

    from engines.superscaler.operators.cost import Sizes, Work
    from engines.superscaler.operators.table import Call, Local


def _linear_annotation(call: Call) -> str:
    return "* k+, n k+, n -> * n" if len(call.inputs) == 3 else "* k+, n k+ -> * n"


def _linear(local: Local) -> torch.Tensor:
    import torch

    given, weight, *bias = local.inputs
    if bias and not local.first("k"):
        # Split on k every part would add the bias: the first one does it for all, the others add zeros that it has no
        # influence on, so that its gradient there is zero, not missing.
        bias = [bias[0] * 0]
    return torch.nn.functional.linear(given, weight, *bias)


def _linear_cost(sizes: Sizes) -> Work:
    m, n, k = sizes.output() // sizes.length("n"), sizes.length("n"), sizes.length("k")
    return product(sizes, (m, n, k), {0: 1, 1: 0})


def product(sizes: Sizes, shape: tuple[int, int, int], partner: dict[int, int], count: int = 1) -> Work:
    """Cost of `count` matrix products (m, k) by (k, n).

    Args:
        sizes: of the operator.
        shape: (m, n, k) of one product.
        partner: for each of the two factors (as number of an input) the other one.
        count: how many products, each of other data.
    """
    m, n, k = shape
    flops = 2.0 * m * n * k * count
    gradients = sum(sizes.needs(number) for number in partner)
    # Each gradient is a product of its own, that reads the gradient of the output and the other factor.
    read = sum(sizes.output_bytes() + sizes.input_bytes(other) for one, other in partner.items() if sizes.needs(one))
    written = sum(sizes.input_bytes(number) for number in range(len(sizes.op.inputs)) if sizes.needs(number))
    return sizes.work(
        inputs=[number for number, other in partner.items() if sizes.needs(other)],
        family="matmul",
        flops=flops,
        backward_flops=gradients * flops,
        backward_nbytes=read + written,
        shape=shape,
    )


define("linear", _linear_annotation, _linear, _linear_cost)


# --- matmul: leading dims broadcast -------------------------------------------------------------------------------


def _matmul_annotation(call: Call) -> str:
    first, second = call.inputs
    if len(first) < 2 or len(second) < 2:
        raise OperatorError(f"matmul of shapes {first} and {second}: write products with vectors as (x * y).sum(-1)")
    lead = max(len(first), len(second)) - 2
    names = dims(lead)
    out = call.outputs[0][:lead]
    written = []
    for given, own in ((first, ["m", "k+"]), (second, ["k+", "n"])):
        there = given[:-2]
        aligned = zip(there, out[lead - len(there) :], names[lead - len(there) :], strict=True)
        written.append([*("1" if size == 1 != whole else name for size, whole, name in aligned), *own])
    return line(written, [[*names, "m", "n"]])


def _matmul(local: Local) -> torch.Tensor:
    return local.inputs[0] @ local.inputs[1]


def _matmul_cost(sizes: Sizes) -> Work:
    shape = (sizes.length("m"), sizes.length("n"), sizes.length("k"))
    count = sizes.output() // (shape[0] * shape[1])
    if all(len(sizes.op.annotation.inputs[1][place]) == 0 for place in range(len(sizes.op.annotation.inputs[1]) - 2)):
        # One matrix for all rows: a single tall product.
        shape, count = (shape[0] * count, shape[1], shape[2]), 1
    return product(sizes, shape, {0: 1, 1: 0}, count)


define("matmul", _matmul_annotation, _matmul, _matmul_cost)

# --- einsum: an annotation already --------------------------------------------------------------------------------


def _einsum_annotation(call: Call) -> str:
    sides = call.attributes["equation"].replace(" ", "").split("->")
    if len(sides) != 2 or "." in sides[0]:
        raise OperatorError(
            f"einsum {call.attributes['equation']!r}: write the output out ('ij,jk->ik'), without '...'"
        )
    out = set(sides[1])
    inputs = [[name if name in out else f"{name}+" for name in words] for words in sides[0].split(",")]
    return line(inputs, [list(sides[1])])


def _einsum(local: Local) -> torch.Tensor:
    import torch

    return torch.einsum(local.get("equation"), *local.inputs)


def _einsum_cost(sizes: Sizes) -> Work:
    annotation = sizes.op.annotation
    if len(annotation.inputs) != 2:
        every = {name for dims_ in annotation.inputs for dim in dims_ for name in dim}
        flops = float(len(annotation.inputs) * math.prod(sizes.length(name) for name in every))
        return sizes.work(inputs=range(len(annotation.inputs)), flops=flops, backward_flops=2 * flops)
    given = [{name for dim in dims_ for name in dim} for dims_ in annotation.inputs]
    out = {name for dim in annotation.outputs[0] for name in dim}
    # What one input alone has and the output lacks is summed before the product, whose factor is then a new tensor.
    summed = [names - given[1 - number] - out for number, names in enumerate(given)]
    first, second = (names - gone for names, gone in zip(given, summed, strict=True))

    def size(names: set[str]) -> int:
        return math.prod(sizes.length(name) for name in names)

    shape = (size(first & out - second), size(second & out - first), size((first | second) - out))
    work = product(sizes, shape, {0: 1, 1: 0}, size(first & second & out))
    made = [number for number in (0, 1) if summed[number] and sizes.op.inputs[number] in work.saved]
    extra = sum(sizes.input_bytes(number) // size(summed[number]) for number in made)
    saved = tuple(name for name in work.saved if name not in {sizes.op.inputs[number] for number in made})
    return replace(work, saved=saved, saved_extra=work.saved_extra + extra)


define("einsum", _einsum_annotation, _einsum, _einsum_cost)
