"""A decoder-only transformer, operator by operator: what each tensor-parallel rank computes and moves.

With b sequences of s tokens (T = b s), hidden size h, a heads, vocabulary V and t tensor-parallel ranks, a layer's
forward pass on each rank is (Shoeybi et al., Megatron-LM, 2019, section 3: the first product of each pair is split by
columns, the second by rows, so that one all-reduce ends each pair)

====================  ==================  =========================  =================================
operator              family              FLOP                       elements read and written
====================  ==================  =========================  =================================
normalization (2x)    normalization       -                          2 T h
query, key, value     matmul              6 T h^2 / t
bias and transpose    elementwise         -                          6 T h / t
scores                attention           2 T s h / t                T s a / t + 2 T h / t
softmax, dropout      elementwise         -                          4.5 T s a / t (a mask is a byte)
context               attention           2 T s h / t                T s a / t + 2 T h / t
merge heads           elementwise         -                          2 T h / t
projection            matmul              2 T h^2 / t
bias, dropout, sum    elementwise (2x)    -                          3.5 T h
expansion             matmul              8 T h^2 / t
bias and GeLU         elementwise         -                          8 T h / t
contraction           matmul              8 T h^2 / t
====================  ==================  =========================  =================================

A backward pass differentiates each product with respect to both of its factors (two products of the same FLOP); other
operators read and write `BACKWARD` times what they do forward. Summed over layers, with activations recomputed and the
output head, this is Megatron's model FLOP (Narayanan et al., Efficient Large-Scale Language Model Training on GPU
Clusters, SC'21, equation 3): 96 B s l h^2 (1 + s / 6h + V / 16 l h).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Recompute = Literal["none", "selective", "full"]
"""Which forward operators run once more before the backward pass: none, the core of attention (Korthikanti et al.,
Reducing Activation Recomputation in Large Transformer Models, MLSys 2023, section 5), or all of the layer."""
BACKWARD = 1.6
"""Bytes that an operator without products moves backward, per byte forward: it reads the gradient as well as what was
kept, and writes one result (3 instead of 2), except where a mask or nothing had to be kept."""
ELEMENT = 2
"""Bytes of an element of fp16 and bf16."""


@dataclass(frozen=True)
class Decoder:
    """A GPT model."""

    hidden: int
    layers: int
    heads: int
    sequence: int
    vocabulary: int = 51_200

    def __post_init__(self) -> None:
        sizes = (self.hidden, self.layers, self.heads, self.sequence, self.vocabulary)
        if min(sizes) < 1:
            raise ValueError(f"a decoder needs sizes of at least 1; not {self}")
        if self.hidden % self.heads:
            raise ValueError(f"a hidden size of {self.hidden} cannot be split into {self.heads} heads")

    @property
    def parameters(self) -> int:
        """All weights: 12 l h^2 + 13 l h (biases, normalization), V h (tied embeddings), s h (positions), 2 h."""
        return self.layers * layer_parameters(self) + embedding_parameters(self) + 2 * self.hidden


@dataclass(frozen=True)
class Operator:
    """What one rank does at one place of a layer."""

    name: str
    family: str
    flops: float = 0.0
    nbytes: int = 0
    shape: tuple[int, ...] = ()
    """(m, n, k) of a product, m being the tokens. Both backward products have the sizes of the forward one in another
    order; they keep its order here, because what efficiency depends on is how many tokens there are and how small the
    rank's part of the weights is."""
    calls: int = 1
    """Kernels that the framework launches for it."""
    reduces: int = 0
    """Bytes of the all-reduce over the tensor-parallel ranks that follows."""


def layer_parameters(model: Decoder) -> int:
    """Weights of one layer: 12 h^2 + 13 h."""
    return 12 * model.hidden**2 + 13 * model.hidden


def embedding_parameters(model: Decoder) -> int:
    """Weights of the embeddings of words and positions."""
    return (model.vocabulary + model.sequence) * model.hidden


def activation_bytes(model: Decoder, batch: int) -> int:
    """What goes from layer to layer: T h elements."""
    return batch * model.sequence * model.hidden * ELEMENT


def layer_forward(model: Decoder, batch: int, tensor: int) -> tuple[Operator, ...]:
    """The operators of a layer's forward pass on each of `tensor` ranks, for `batch` sequences.

    Raises:
        ValueError: the heads cannot be split over the ranks.
    """
    if model.heads % tensor:
        raise ValueError(f"{model.heads} heads cannot be split over {tensor} tensor-parallel ranks")
    hidden, tokens = model.hidden, batch * model.sequence
    whole, part = tokens * hidden, tokens * hidden // tensor
    scores = tokens * model.sequence * model.heads // tensor
    reduced = activation_bytes(model, batch) if tensor > 1 else 0
    return (
        _moving("normalization", 2 * whole, family="normalization"),
        product("query, key, value", tokens, 3 * hidden // tensor, hidden, calls=2),
        _moving("bias and transpose", 6 * part, calls=3),
        _attention("scores", model, batch, tensor, calls=2),
        _moving("softmax and dropout", 4.5 * scores, calls=2),
        _attention("context", model, batch, tensor),
        _moving("merge heads", 2 * part),
        product("projection", tokens, hidden, hidden // tensor, reduces=reduced),
        _moving("bias, dropout, sum", 3.5 * whole),
        _moving("normalization", 2 * whole, family="normalization"),
        product("expansion", tokens, 4 * hidden // tensor, hidden),
        _moving("bias and GeLU", 8 * part),
        product("contraction", tokens, hidden, 4 * hidden // tensor, reduces=reduced),
        _moving("bias, dropout, sum", 3.5 * whole),
    )


def layer_backward(model: Decoder, batch: int, tensor: int) -> tuple[Operator, ...]:
    """The operators of a layer's backward pass, without what is recomputed.

    The all-reduces come where Megatron's `f` is: after the gradients of the inputs of the column-split products.
    """
    found: list[Operator] = []
    for operator in reversed(layer_forward(model, batch, tensor)):
        found.extend(_backward(operator))
    reduced = activation_bytes(model, batch) if tensor > 1 else 0
    ends = {"expansion, inputs", "query, key, value, inputs"}
    return tuple(replace(operator, reduces=reduced) if operator.name in ends else operator for operator in found)


def layer_recompute(model: Decoder, batch: int, tensor: int, recompute: Recompute) -> tuple[Operator, ...]:
    """The forward operators that run again before a layer's backward pass."""
    forward = layer_forward(model, batch, tensor)
    if recompute == "full":
        return forward
    return forward[3:6] if recompute == "selective" else ()


def embedding_forward(model: Decoder, batch: int) -> tuple[Operator, ...]:
    """Looking words and positions up, and dropout: about 4.5 T h elements."""
    return (_moving("embedding", 4.5 * batch * model.sequence * model.hidden, family="embedding", calls=3),)


def embedding_backward(model: Decoder, batch: int) -> tuple[Operator, ...]:
    """Scattering gradients back into the table."""
    return tuple(made for operator in embedding_forward(model, batch) for made in _backward(operator))


def head_forward(model: Decoder, batch: int, tensor: int) -> tuple[Operator, ...]:
    """The output layer (tied to the embedding, split over the vocabulary) and its cross entropy in fp32.

    The loss casts the logits to fp32 and takes a maximum, an exponential and a sum of them: five passes over fp32.
    """
    tokens, words = batch * model.sequence, model.vocabulary // tensor
    passes = 5 * tokens * words * 4
    return (
        product("logits", tokens, words, model.hidden),
        Operator("cross entropy", "elementwise", nbytes=passes, calls=6),
    )


def head_backward(model: Decoder, batch: int, tensor: int) -> tuple[Operator, ...]:
    """Its backward pass: three passes over fp32 and both products."""
    tokens, words = batch * model.sequence, model.vocabulary // tensor
    logits = head_forward(model, batch, tensor)[0]
    loss = Operator("cross entropy, backward", "elementwise", nbytes=3 * tokens * words * 4, calls=3)
    return (loss, *_backward(logits))


def total_flops(operators: Iterable[Operator]) -> float:
    """FLOP of some operators."""
    return sum(operator.flops for operator in operators)


def model_flops(model: Decoder, batch: int, recompute: Recompute = "full") -> float:
    """FLOP of training on `batch` sequences, all ranks together, from the closed form of Narayanan et al. (equation 3).

    With full recomputation 96 B s l h^2 (1 + s/6h + V/16lh); without, 72 B s l h^2 (1 + s/6h + V/12lh).
    """
    tokens, hidden = batch * model.sequence, model.hidden
    layers = 24 * tokens * model.layers * hidden**2 * (1 + model.sequence / (6 * hidden))
    core = 4 * tokens * model.layers * model.sequence * hidden
    again = {"none": 0.0, "selective": core, "full": layers}[recompute]
    return 3 * layers + again + 6 * tokens * hidden * model.vocabulary


def product(name: str, m: int, n: int, k: int, *, calls: int = 1, reduces: int = 0) -> Operator:
    """A product of an (m, k) and a (k, n) matrix."""
    nbytes = (m * n + m * k + n * k) * ELEMENT
    return Operator(name, "matmul", 2.0 * m * n * k, nbytes, (m, n, k), calls, reduces)


def _attention(name: str, model: Decoder, batch: int, tensor: int, calls: int = 1) -> Operator:
    """One of the two batched products of attention: 2 s^2 (h/a) FLOP for each sequence and head."""
    tokens, heads = batch * model.sequence, model.heads // tensor
    flops = 2.0 * tokens * model.sequence * model.hidden / tensor
    elements = tokens * model.sequence * heads + 2 * tokens * model.hidden // tensor
    return Operator(name, "attention", flops, elements * ELEMENT, calls=calls)


def _moving(name: str, elements: float, *, family: str = "elementwise", calls: int = 1) -> Operator:
    return Operator(name, family, nbytes=int(elements * ELEMENT), calls=calls)


def _backward(operator: Operator) -> list[Operator]:
    if not operator.flops:
        moved = int(BACKWARD * operator.nbytes)
        return [Operator(f"{operator.name}, backward", operator.family, nbytes=moved, calls=operator.calls)]
    factors = (f"{operator.name}, inputs", f"{operator.name}, weights")
    return [replace(operator, name=name, reduces=0) for name in factors]
