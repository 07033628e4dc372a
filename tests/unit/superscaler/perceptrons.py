"""A multi-layer perceptron as a graph, made by hand: what `trace` makes of `models.mlp`, without importing torch."""

from engines.superscaler.annotation import resolve
from engines.superscaler.graph import Graph, Op, Tensor


def perceptron(layers: int = 2, batch: int = 8, hidden: int = 16, inner: int = 24) -> Graph:
    """Residual layers of up, gelu and down, and a mean squared error; every tensor fp32."""
    tensors: dict[str, Tensor] = {}
    ops: list[Op] = []

    def tensor(name, shape, role, grad):
        tensors[name] = Tensor(name, shape, "fp32", role, grad)
        return name

    def op(name, target, inputs, shape, line, attributes=None):
        out = tensor(name, shape, "activation", True)
        annotation = resolve(line, [tensors[t].shape for t in inputs], [shape])
        ops.append(Op(name, target, tuple(inputs), (out,), attributes or {}, annotation))
        return out

    def linear(name, x, n, k):
        weight = tensor(f"{name}.weight", (n, k), "parameter", True)
        bias = tensor(f"{name}.bias", (n,), "parameter", True)
        return op(name, "linear", (x, weight, bias), (batch, n), "* k+, n k+, n -> * n")

    x = tensor("x", (batch, hidden), "input", False)
    y = tensor("y", (batch, hidden), "input", False)
    for number in range(layers):
        prefix = f"layers.{number}"
        up = linear(f"{prefix}.up", x, inner, hidden)
        gelu = op(f"{prefix}.activation", "gelu", (up,), (batch, inner), "d0 d1 -> d0 d1")
        down = linear(f"{prefix}.down", gelu, hidden, inner)
        x = op(f"{prefix}.add", "add", (x, down), (batch, hidden), "d0 d1, d0 d1 -> d0 d1")
    sub = op("sub", "sub", (x, y), (batch, hidden), "d0 d1, d0 d1 -> d0 d1")
    square = op("square", "square", (sub,), (batch, hidden), "d0 d1 -> d0 d1")
    total = op("mean.sum", "sum", (square,), (), "d0+ d1+ -> ")
    loss = op("mean.scale", "mul", (total,), (), " -> ", {"other": 1.0 / (batch * hidden)})
    parameters = tuple(name for name, t in tensors.items() if t.role == "parameter")
    return Graph("mlp", tensors, tuple(ops), ("x", "y"), loss, parameters, "by hand")
