"""Convolution and pooling: batch and channels can be split, the image is whole on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.operators.table import define

if TYPE_CHECKING:
    import torch

    from engines.superscaler.operators.cost import Sizes, Work
    from engines.superscaler.operators.table import Call, Local


def _conv_annotation(call: Call) -> str | tuple[str, dict[str, int]]:
    groups = call.attributes.get("groups", 1)
    if groups == 1:
        bias = ", o" if len(call.inputs) == 3 else ""
        return f"b c+ h^ w^, o c+ p^ q^{bias} -> b o y^ x^"
    bias = ", (g o^)" if len(call.inputs) == 3 else ""
    return f"b (g c^) h^ w^, (g o^) c^ p^ q^{bias} -> b (g o^) y^ x^", {"g": groups}


def _conv(local: Local) -> torch.Tensor:
    import torch

    given, weight, *rest = local.inputs
    groups = local.get("groups", 1)
    bias = rest[0] if rest else None
    if bias is not None and not local.first("c"):
        # As in a linear layer: the first part adds the bias, it has no influence on the others.
        bias = bias * 0
    return torch.nn.functional.conv2d(
        given,
        weight,
        bias,
        stride=tuple(local.get("stride", (1, 1))),
        padding=tuple(local.get("padding", (0, 0))),
        dilation=tuple(local.get("dilation", (1, 1))),
        groups=local.length("g") if groups > 1 else 1,
    )


def _conv_cost(sizes: Sizes) -> Work:
    kernel = sizes.length("c") * sizes.length("p") * sizes.length("q")
    rows = sizes.length("b") * sizes.length("y") * sizes.length("x")
    flops = 2.0 * sizes.output() * kernel
    return sizes.work(
        inputs=(0, 1),
        family="matmul",
        flops=flops,
        backward_flops=flops * (sizes.needs(0) + sizes.needs(1)),
        shape=(rows, sizes.output() // rows, kernel),
    )


define("conv2d", _conv_annotation, _conv, _conv_cost)

_POOLED = "b c h^ w^ -> b c y^ x^"


def _max_pool(local: Local) -> torch.Tensor:
    import torch

    return torch.nn.functional.max_pool2d(
        local.inputs[0],
        tuple(local.get("kernel_size")),
        tuple(local.get("stride") or local.get("kernel_size")),
        tuple(local.get("padding", (0, 0))),
    )


def _average_pool(local: Local) -> torch.Tensor:
    import torch

    return torch.nn.functional.adaptive_avg_pool2d(local.inputs[0], tuple(local.get("output_size")))


def _max_pool_cost(sizes: Sizes) -> Work:
    # Which element was the largest is kept as 64-bit indices.
    return sizes.work(inputs=(0,), extra=8 * sizes.output(), flops=float(sizes.input(0)))


def _average_cost(sizes: Sizes) -> Work:
    if sizes.length("y") * sizes.length("x") == 1:
        # The mean of all: its gradient is the output's, expanded.
        return sizes.work(flops=float(sizes.input(0)), backward_flops=float(sizes.input(0)))
    return sizes.work(inputs=(0,), flops=float(sizes.input(0)), backward_flops=float(sizes.input(0)))


define("max_pool2d", _POOLED, _max_pool, _max_pool_cost)
define("adaptive_avg_pool2d", _POOLED, _average_pool, _average_cost)


def _unfold(local: Local) -> torch.Tensor:
    import torch

    return torch.nn.functional.unfold(
        local.inputs[0],
        tuple(local.get("kernel_size")),
        tuple(local.get("dilation", (1, 1))),
        tuple(local.get("padding", (0, 0))),
        tuple(local.get("stride", (1, 1))),
    )


define(
    "im2col",
    lambda call: ("b c h^ w^ -> b (c k^) l^", {"k": call.outputs[0][1] // call.inputs[0][1]}),
    _unfold,
    lambda sizes: sizes.work(
        family="layout", nbytes=2 * sizes.output_bytes(), backward_nbytes=2 * sizes.output_bytes()
    ),
)
