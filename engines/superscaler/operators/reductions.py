"""Operators that take dims away, and running ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.operators.shapes import dims, line, reduction, unary
from engines.superscaler.operators.table import define

if TYPE_CHECKING:
    import torch

    from engines.superscaler.operators.cost import Sizes, Work
    from engines.superscaler.operators.table import Call, Local


def _sum(local: Local) -> torch.Tensor:
    return local.inputs[0].sum(tuple(local.get("dim")), keepdim=local.get("keepdim"))


def _amax(local: Local) -> torch.Tensor:
    return local.inputs[0].amax(tuple(local.get("dim")), keepdim=local.get("keepdim"))


def _var(local: Local) -> torch.Tensor:
    return local.inputs[0].var(
        tuple(local.get("dim")), correction=local.get("correction", 1), keepdim=local.get("keepdim")
    )


def _sum_cost(sizes: Sizes) -> Work:
    # The gradient is the output's, expanded: a view.
    return sizes.work(flops=float(sizes.input(0)), backward_nbytes=0)


def _amax_cost(sizes: Sizes) -> Work:
    return sizes.work(inputs=(0,), outputs=(0,), flops=float(sizes.input(0)), backward_flops=2.0 * sizes.input(0))


def _var_cost(sizes: Sizes) -> Work:
    return sizes.work(inputs=(0,), flops=3.0 * sizes.input(0), backward_flops=2.0 * sizes.input(0))


define("sum", reduction("+"), _sum, _sum_cost)
define("amax", reduction("|max"), _amax, _amax_cost)
define("var", reduction("^"), _var, _var_cost)


def _topk_annotation(call: Call) -> str:
    dim = call.attributes["dim"]
    names = dims(len(call.inputs[0]), (dim,))
    made = [name if place != dim else "k^" for place, name in enumerate(names)]
    return line([names], [made, made])


def _topk(local: Local) -> tuple[torch.Tensor, ...]:
    return tuple(local.inputs[0].topk(local.get("k"), dim=local.get("dim")))


def _topk_cost(sizes: Sizes) -> Work:
    return sizes.work(outputs=(1,), flops=float(sizes.input(0)), backward_nbytes=sizes.input_bytes(0))


define("topk", _topk_annotation, _topk, _topk_cost)
define("cumsum", unary("dim"), lambda local: local.inputs[0].cumsum(local.get("dim")), _sum_cost)
