"""What aten's operators are in terms of the operator table.

Most are an entry of the table of the same name. A few are several: a mean is a sum and a product with a constant, a
cross-entropy is eight operators that can all be split on the vocabulary. Others are none: what only renames its input
in the graph is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from engines.superscaler.operators.dtypes import FLOATS
from engines.superscaler.operators.table import OperatorError

if TYPE_CHECKING:
    from engines.superscaler.graph import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Called:
    """An aten operator as the model calls it: arguments by name, tensors as the graph's, defaults filled in."""

    name: str
    """Of its packet: `add`, or `mylib.foo`."""
    overload: str
    arguments: Mapping[str, Any]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    """Of its outputs."""
    strides: Mapping[str, tuple[int, ...]]
    """Of the tensors among its arguments, by tensor name: whether a reshape has to copy depends on them."""

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        """An argument, or the default if this overload has none of that name."""
        return self.arguments.get(argument, default)


class Emit(Protocol):
    """Add an operator to the graph; returns its outputs."""

    def __call__(
        self,
        target: str,
        inputs: Sequence[Tensor],
        attributes: Mapping[str, Any],
        shapes: Sequence[Shape],
        dtypes: Sequence[str],
        *,
        piece: str = "",
        no_grad: bool = False,
    ) -> tuple[Tensor, ...]:
        """See the class."""


Rule = Callable[[Called, Emit], "tuple[Tensor, ...]"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Say that these aten operators are lowered so."""

    def add(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return add


def plain(*attributes: str, target: str = "") -> Rule:
    """One entry of the table: all tensors in order, these arguments as attributes."""

    def lower(called: Called, emit: Emit) -> tuple[Tensor, ...]:
        kept = {name: json(called[name]) for name in attributes if called.get(name) is not None}
        return emit(target or called.name, tensors(called), kept, called.shapes, called.dtypes)

    return lower


def tensors(called: Called) -> list[Tensor]:
    """The tensors among the arguments, in order."""
    values = (value if isinstance(value, list | tuple) else (value,) for value in called.arguments.values())
    return [item for items in values for item in items if is_tensor(item)]


def is_tensor(value: Any) -> bool:
    """Whether an argument is a tensor of the graph."""
    return hasattr(value, "requires_grad") and hasattr(value, "role")


def json(value: Any) -> Any:
    """An argument as an attribute: JSON has no infinities, so they are written out."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [json(item) for item in value]
    return value


def _one(called: Called) -> Tensor:
    """The tensor it works on: aten calls it `self` or `input`."""
    return next(iter(tensors(called)))


def _dim(called: Called, argument: str = "dim", extra: int = 0) -> int:
    """A dim counted from the front."""
    rank = len(_one(called).shape) + extra
    return called[argument] % max(rank, 1)


def _dims(called: Called, argument: str = "dim") -> list[int]:
    """Several; none given means all."""
    rank = len(_one(called).shape)
    given = called.get(argument)
    if isinstance(given, int):
        given = [given]
    return sorted(dim % rank for dim in given) if given else list(range(rank))


def _same(called: Called, _emit: Emit) -> tuple[Tensor, ...]:
    """Drop it: its output is its input."""
    return (_one(called),)


# --- what needs no rule of its own: (attributes) ------------------------------------------------------------------

PLAIN = (
    *("relu", "silu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "reciprocal", "abs", "sin", "cos", "erf"),
    *("square", "neg", "logical_not", "maximum", "minimum", "logical_and", "logical_or", "matmul", "linear"),
)
for _name in PLAIN:
    RULES[_name] = plain()
RULES["gelu"] = plain("approximate")
RULES["mm"] = RULES["bmm"] = plain(target="matmul")
RULES["rms_norm"] = plain("normalized_shape", "eps")
RULES["triu"] = RULES["tril"] = plain("diagonal")
RULES["pad"] = plain("pad", "value")
RULES["constant_pad_nd"] = plain("pad", "value", target="pad")
RULES["clamp"] = plain("min", "max")
for _name in ("contiguous", "clone"):
    RULES[_name] = lambda called, emit: _copied(called, emit)
for _name in ("alias", "lift_fresh_copy", "lift_fresh", "detach_alias"):
    RULES[_name] = _same


def _copied(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given = _one(called)
    if called.strides.get(given.name) == contiguous(given.shape):
        return (given,)
    return emit("copy", [given], {}, called.shapes, called.dtypes)


# --- arithmetic ---------------------------------------------------------------------------------------------------


@rule("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge", "rsub", "true_divide")
def _arithmetic(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if called.get("rounding_mode"):
        raise OperatorError("a division that rounds has no gradient: write it outside of the model")
    target = {"rsub": "sub", "true_divide": "div"}.get(called.name, called.name)
    first, other = called["self"], called["other"]
    attributes = {} if called.get("alpha", 1) == 1 else {"alpha": called["alpha"]}
    if not is_tensor(other):
        if called.name == "rsub":
            # other - self = self * (-alpha) + other
            scaled = emit("mul", [first], {"other": -called.get("alpha", 1)}, called.shapes, called.dtypes, piece="neg")
            return emit("add", scaled, {"other": json(other)}, called.shapes, called.dtypes)
        return emit(target, [first], {**attributes, "other": json(other)}, called.shapes, called.dtypes)
    pair = [other, first] if called.name == "rsub" else [first, other]
    return emit(target, pair, attributes, called.shapes, called.dtypes)


@rule("pow")
def _pow(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if not is_tensor(called["self"]) or is_tensor(called["exponent"]):
        raise OperatorError("a power needs a tensor below and a number above: write x ** 2")
    return emit("pow", [called["self"]], {"exponent": called["exponent"]}, called.shapes, called.dtypes)


@rule("masked_fill")
def _masked_fill(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if is_tensor(called["value"]):
        raise OperatorError("masked_fill needs a number to fill with, not a tensor")
    pair = [called["self"], called["mask"]]
    return emit("masked_fill", pair, {"value": json(called["value"])}, called.shapes, called.dtypes)


@rule("where")
def _where(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if len(tensors(called)) != 3:
        raise OperatorError("where needs two tensors to choose from: use masked_fill to choose a number")
    return emit("where", tensors(called), {}, called.shapes, called.dtypes)


@rule("dropout")
def _dropout(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given = _one(called)
    if not called["train"] or called["p"] == 0:
        return (given,)
    return emit("dropout", [given], {"p": called["p"]}, called.shapes, called.dtypes)


@rule("to", "_to_copy", "type_as")
def _to(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given = _one(called)
    if called.dtypes[0] == given.dtype:
        return (given,)
    return emit("cast", [given], {"dtype": called.dtypes[0]}, called.shapes, called.dtypes)


@rule("detach")
def _detach(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given = _one(called)
    return emit("detach", [given], {}, called.shapes, called.dtypes) if given.requires_grad else (given,)


# --- made from nothing --------------------------------------------------------------------------------------------


@rule("arange")
def _arange(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    attributes = {"dtype": called.dtypes[0]}
    attributes |= {name: called[name] for name in ("start", "step") if called.get(name) is not None}
    return emit("arange", [], attributes, called.shapes, called.dtypes)


@rule(
    "ones",
    "zeros",
    "full",
    "ones_like",
    "zeros_like",
    "full_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "scalar_tensor",
)
def _full(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    value = 1 if "ones" in called.name else 0 if "zeros" in called.name else called["fill_value"]
    return emit("full", [], {"value": json(value), "dtype": called.dtypes[0]}, called.shapes, called.dtypes)


# --- views --------------------------------------------------------------------------------------------------------


@rule("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as", "reshape_as")
def _view(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given = _one(called)
    if given.shape == called.shapes[0]:
        return (given,)
    known = given.name in called.strides
    copies = known and not viewable(given.shape, called.strides[given.name], called.shapes[0])
    return emit("view", [given], {"copies": True} if copies else {}, called.shapes, called.dtypes)


def contiguous(shape: Shape) -> tuple[int, ...]:
    """Strides of a tensor in row-major order."""
    return tuple(math.prod(max(size, 1) for size in shape[place + 1 :]) for place in range(len(shape)))


def viewable(shape: Shape, strides: Sequence[int], after: Shape) -> bool:
    """Whether a tensor with these strides can be seen in another shape without a copy."""
    runs: list[int] = []
    """Elements of each run of dims that lie next to each other in memory."""
    last = 0
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if runs and last == size * stride:
            runs[-1] *= size
        else:
            runs.append(size)
        last = stride
    left = [size for size in after if size != 1]
    for run in runs:
        filled = 1
        while left and filled < run:
            filled *= left.pop(0)
        if filled != run:
            return False
    return True


@rule("transpose", "permute", "t", "numpy_T", "swapaxes", "movedim")
def _permute(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given = _one(called)
    order = list(range(len(given.shape)))
    if called.name == "permute":
        order = [dim % len(order) for dim in called["dims"]]
    elif called.name == "movedim":
        pairs = (called["source"], called["destination"])
        source, destination = ([one] if isinstance(one, int) else list(one) for one in pairs)
        moved = {to % len(order): come % len(order) for come, to in zip(source, destination, strict=True)}
        rest = iter(dim for dim in order if dim not in moved.values())
        order = [moved[place] if place in moved else next(rest) for place in order]
    elif called.name in ("t", "numpy_T"):
        order.reverse()
    else:
        names = ("axis0", "axis1") if called.name == "swapaxes" else ("dim0", "dim1")
        one, other = (_dim(called, name) for name in names)
        order[one], order[other] = order[other], order[one]
    if order == sorted(order):
        return (given,)
    return emit("permute", [given], {"dims": order}, called.shapes, called.dtypes)


@rule("expand", "expand_as", "broadcast_to")
def _expand(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given = _one(called)
    return (given,) if given.shape == called.shapes[0] else emit("expand", [given], {}, called.shapes, called.dtypes)


@rule("select")
def _select(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given, dim = _one(called), _dim(called)
    attributes = {"dim": dim, "index": called["index"] % given.shape[dim]}
    return emit("select", [given], attributes, called.shapes, called.dtypes)


@rule("slice")
def _slice(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given, dim = _one(called), _dim(called)
    start, end, _ = slice(called["start"], called["end"], called["step"]).indices(given.shape[dim])
    if given.shape == called.shapes[0]:
        return (given,)
    attributes = {"dim": dim, "start": start, "end": end, "step": called["step"]}
    return emit("slice", [given], attributes, called.shapes, called.dtypes)


@rule("narrow")
def _narrow(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given, dim = _one(called), _dim(called)
    start = called["start"] % given.shape[dim]
    attributes = {"dim": dim, "start": start, "end": start + called["length"], "step": 1}
    return emit("slice", [given], attributes, called.shapes, called.dtypes)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def _split(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    dim = _dim(called)
    attributes = {"dim": dim, "sizes": [shape[dim] for shape in called.shapes]}
    return emit("split", [_one(called)], attributes, called.shapes, called.dtypes)


@rule("unbind")
def _unbind(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    return emit("unbind", [_one(called)], {"dim": _dim(called)}, called.shapes, called.dtypes)


@rule("cat", "concat", "concatenate")
def _cat(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    return emit("cat", tensors(called), {"dim": _dim(called)}, called.shapes, called.dtypes)


@rule("stack")
def _stack(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    return emit("stack", tensors(called), {"dim": _dim(called, extra=1)}, called.shapes, called.dtypes)


@rule("roll")
def _roll(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if not called["dims"]:
        raise OperatorError("roll needs the dims it shifts along")
    rank = len(_one(called).shape)
    shifts = called["shifts"] if isinstance(called["shifts"], list | tuple) else [called["shifts"]]
    dims = called["dims"] if isinstance(called["dims"], list | tuple) else [called["dims"]]
    attributes = {"shifts": list(shifts), "dims": [dim % rank for dim in dims]}
    return emit("roll", [_one(called)], attributes, called.shapes, called.dtypes)


@rule("flip")
def _flip(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    return emit("flip", [_one(called)], {"dims": _dims(called, "dims")}, called.shapes, called.dtypes)


# --- reductions ---------------------------------------------------------------------------------------------------


@rule("sum", "mean", "amax", "var")
def _reduced(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given = _one(called)
    attributes: dict[str, Any] = {"dim": _dims(called), "keepdim": bool(called.get("keepdim", False))}
    if called.dtypes[0] != given.dtype and called.name in ("sum", "mean"):
        (given,) = emit("cast", [given], {"dtype": called.dtypes[0]}, [given.shape], called.dtypes, piece="cast")
    if called.name == "var":
        attributes["correction"] = called.get("correction", 1 if called.get("unbiased", True) else 0)
    if called.name != "mean":
        return emit(called.name, [given], attributes, called.shapes, called.dtypes)
    count = math.prod(given.shape[dim] for dim in attributes["dim"])
    total = emit("sum", [given], attributes, called.shapes, called.dtypes, piece="sum")
    return emit("mul", total, {"other": 1 / count}, called.shapes, called.dtypes, piece="scale")


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def _softmax(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    given = _one(called)
    if called.dtypes[0] != given.dtype:
        (given,) = emit("cast", [given], {"dtype": called.dtypes[0]}, called.shapes, called.dtypes, piece="cast")
    return emit(called.name.lstrip("_"), [given], {"dim": _dim(called)}, called.shapes, called.dtypes)


@rule("topk")
def _topk(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if not called["largest"]:
        raise OperatorError("topk of the smallest is not known: negate its input")
    return emit("topk", [_one(called)], {"k": called["k"], "dim": _dim(called)}, called.shapes, called.dtypes)


@rule("cumsum")
def _cumsum(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    return emit("cumsum", [_one(called)], {"dim": _dim(called)}, called.shapes, called.dtypes)


# --- norms --------------------------------------------------------------------------------------------------------


@rule("layer_norm")
def _layer_norm(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    attributes = {"normalized_shape": list(called["normalized_shape"]), "eps": called["eps"]}
    return emit("layer_norm", tensors(called), attributes, called.shapes, called.dtypes)


@rule("batch_norm")
def _batch_norm(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if called["running_mean"] is not None:
        raise OperatorError(
            "batch_norm with running statistics changes buffers while it computes, which no plan can order: build it "
            "with track_running_stats=False, or freeze it into a scale and a shift"
        )
    return emit("batch_norm", tensors(called), {"eps": called["eps"]}, called.shapes, called.dtypes)


# --- attention, convolution, lookup -------------------------------------------------------------------------------


@rule("scaled_dot_product_attention")
def _attention(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if called["dropout_p"]:
        raise OperatorError(
            "scaled_dot_product_attention with dropout_p > 0 draws numbers that depend on who computes them: write "
            "softmax, dropout and the two products out"
        )
    if called.get("enable_gqa"):
        raise OperatorError("scaled_dot_product_attention with enable_gqa=True: repeat keys and values in the model")
    attributes: dict[str, Any] = {"is_causal": called["is_causal"]}
    if called.get("scale") is not None:
        attributes["scale"] = called["scale"]
    return emit("attention", tensors(called), attributes, called.shapes, called.dtypes)


@rule("conv2d")
def _conv(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if isinstance(called["padding"], str):
        raise OperatorError(f"conv2d with padding={called['padding']!r}: give the numbers of rows and columns")
    attributes = {name: _pair(called[name]) for name in ("stride", "padding", "dilation")}
    if called["groups"] != 1:
        attributes["groups"] = called["groups"]
    return emit("conv2d", tensors(called), attributes, called.shapes, called.dtypes)


def _pair(value: int | Sequence[int]) -> list[int]:
    found = [value] if isinstance(value, int) else list(value)
    return found * 2 if len(found) == 1 else found


@rule("max_pool2d")
def _max_pool(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if _pair(called["dilation"]) != [1, 1] or called["ceil_mode"]:
        raise OperatorError("max_pool2d with dilation or ceil_mode is not known: pad its input instead")
    attributes = {name: _pair(called[name]) for name in ("kernel_size", "padding")}
    attributes["stride"] = _pair(called["stride"] or called["kernel_size"])
    return emit("max_pool2d", [_one(called)], attributes, called.shapes, called.dtypes)


@rule("adaptive_avg_pool2d")
def _average_pool(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    attributes = {"output_size": list(called.shapes[0][-2:])}
    return emit("adaptive_avg_pool2d", [_one(called)], attributes, called.shapes, called.dtypes)


@rule("im2col")
def _unfold(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    attributes = {name: _pair(called[name]) for name in ("kernel_size", "dilation", "padding", "stride")}
    return emit("im2col", [_one(called)], attributes, called.shapes, called.dtypes)


@rule("embedding")
def _embedding(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if called["scale_grad_by_freq"] or called["sparse"]:
        raise OperatorError("an embedding with sparse or frequency-scaled gradients is not known: leave both off")
    attributes = {} if called["padding_idx"] < 0 else {"padding_idx": called["padding_idx"]}
    pair = [called["weight"], called["indices"]]
    return emit("embedding", pair, attributes, called.shapes, called.dtypes)


@rule("index")
def _index(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    used = [(place, index) for place, index in enumerate(called["indices"]) if index is not None]
    if len(used) != 1 or used[0][0] != 0 or used[0][1].dtype == "bool":
        raise OperatorError("indexing with tensors is known for the first dim alone, by numbers: table[index]")
    return emit("embedding", [called["self"], used[0][1]], {}, called.shapes, called.dtypes)


@rule("index_select")
def _index_select(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    if _dim(called) != 0:
        raise OperatorError("index_select is known for the first dim alone: transpose before")
    return emit("embedding", [called["self"], called["index"]], {}, called.shapes, called.dtypes)


@rule("gather")
def _gather(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    return emit("gather", [called["self"], called["index"]], {"dim": _dim(called)}, called.shapes, called.dtypes)


@rule("one_hot")
def _one_hot(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    return emit("one_hot", [_one(called)], {}, called.shapes, called.dtypes)


@rule("einsum")
def _einsum(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    attributes = {"equation": called["equation"].replace(" ", "")}
    return emit("einsum", called["tensors"], attributes, called.shapes, called.dtypes)


# --- the loss -----------------------------------------------------------------------------------------------------

_REDUCTIONS = ("none", "mean", "sum")
IGNORED = -100
"""PyTorch's default for targets to be ignored."""


@rule("cross_entropy_loss")
def _cross_entropy(called: Called, emit: Emit) -> tuple[Tensor, ...]:
    """log(sum(exp(x - max))) - (x - max)[target], in pieces that are all splittable on rows and on classes.

    Megatron-LM's vocabulary-parallel loss (Shoeybi et al., 2019, section 3) follows from the pieces' annotations.
    """
    scores, target = called["self"], called["target"]
    if called["weight"] is not None or called["label_smoothing"] or target.dtype in FLOATS:
        raise OperatorError("cross_entropy is known with class numbers alone: no weights, smoothing or probabilities")
    if called["ignore_index"] != IGNORED:
        raise OperatorError(
            "cross_entropy with ignore_index divides by a number that the data decides, and differs between parts of "
            "a batch: compute losses with reduction='none' and weigh them by a mask"
        )
    dim = min(1, len(scores.shape) - 1)
    whole, kept = scores.shape, scores.shape[:dim] + scores.shape[dim + 1 :]
    over = {"dim": [dim], "keepdim": True}
    one = tuple(1 if place == dim else size for place, size in enumerate(whole))
    dtype = [scores.dtype]

    # No gradient: whatever is subtracted from all of a row's scores, the loss is the same.
    largest = emit("amax", [scores], over, [one], dtype, piece="max", no_grad=True)
    shifted = emit("sub", [scores, *largest], {}, [whole], dtype, piece="shift")
    powers = emit("exp", shifted, {}, [whole], dtype, piece="exp")
    total = emit("sum", powers, {"dim": [dim], "keepdim": False}, [kept], dtype, piece="sum")
    logarithm = emit("log", total, {}, [kept], dtype, piece="log")
    picked = emit("pick", [*shifted, target], {"dim": dim}, [kept], dtype, piece="target")
    losses = emit("sub", [*logarithm, *picked], {}, [kept], dtype, piece="loss")
    reduction = _REDUCTIONS[called["reduction"]]
    if reduction == "none" or not kept:
        return losses
    everything = {"dim": list(range(len(kept))), "keepdim": False}
    summed = emit("sum", losses, everything, [()], dtype, piece="total")
    if reduction == "sum":
        return summed
    return emit("mul", summed, {"other": 1 / math.prod(kept)}, [()], dtype, piece="mean")
