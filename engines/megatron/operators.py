"""What `model` does, operator by operator, for the emulator: FLOP, bytes and family of each, forward and backward.

The families, and what counts as a byte in each, are those that `harness calibrate` measures: a tensor read or written
counts once, and a backward pass is one operator of the family ``<family>-backward``. N is the number of tokens of a
micro-batch, h the width, s the sequence, a the heads, t the tensor-parallel degree, e the bytes of an activation.

===================  =================  =====================================  =========================================
in `model`           family             forward                                backward
===================  =================  =====================================  =========================================
layer norm           normalization      2 N h e bytes                          3 N h e
linear (m, k)        matmul             2 N m k FLOP                           4 N m k FLOP
scores and context   attention          4 N s h/t FLOP                         8 N s h/t FLOP
softmax              softmax            2 N a/t s e                            3 N a/t s e
heads apart          layout             2 N 3h/t e                             twice that: gathered, then put back
heads together       layout             2 N h/t e                              the same
GELU                 activation         2 N 4h/t e                             3 N 4h/t e
residual             elementwise        3 N h e                                3 N h e (`accumulate`: gradients meet)
every parameter                                                                12 bytes (`accumulate`: its gradient)
===================  =================  =====================================  =========================================

With t > 1 the bias of a row-parallel layer is added after the sum over the group, and each layer sums N h activations
twice forward and N h gradients twice backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulation.program import Part
from engines.megatron.plan import BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.megatron.plan import Job

FLOAT = 4
"""Bytes of a parameter, a gradient, and of the numbers in the loss."""
INDEX = 8
"""Bytes of a token."""
ADAM = 28
"""Bytes per parameter: parameter, gradient and two moments read, all but the gradient written."""


@dataclass(frozen=True)
class Operators:
    """The operators of one micro-batch of a job, on one rank."""

    job: Job

    @property
    def tokens(self) -> int:
        """Of one micro-batch."""
        return self.job.micro_batch * self.job.shape.sequence

    @property
    def activation(self) -> int:
        """Bytes of one micro-batch's residual stream, which stages pass on and groups sum."""
        return self.tokens * self.job.shape.hidden * BYTES[self.job.dtype]

    def forward(self, *, first: bool, last: bool) -> list[Part]:
        """One micro-batch forward through a stage."""
        parts = [*self._embedding()] if first else []
        for _ in range(self.job.stage_layers):
            parts += self._layer()
        return [*parts, *self._head()] if last else parts

    def backward(self, *, first: bool, last: bool) -> list[Part]:
        """One micro-batch backward through a stage, with what is recomputed."""
        parts = [*self._head_backward()] if last else []
        for _ in range(self.job.stage_layers):
            if self.job.recompute == "full":
                parts += self._layer()
            parts += self._layer_backward()
        return [*parts, *self._embedding_backward()] if first else parts

    def clear(self, *, first: bool, last: bool) -> Part:
        """Gradients set to zero."""
        return self._moved("elementwise", FLOAT * self.parameters(first=first, last=last), "zero gradients")

    def update(self, *, first: bool, last: bool) -> Part:
        """Adam over a stage's flat parameters."""
        return Part.compute(
            0.0, ADAM * self.parameters(first=first, last=last), dtype="fp32", family="optimizer", name="adam"
        )

    def parameters(self, *, first: bool, last: bool) -> int:
        """Parameters of a stage that one rank holds."""
        shape, t = self.job.shape, self.job.tensor
        h = shape.hidden
        layer = 12 * h * h // t + 7 * h // t + 6 * h
        rows = shape.vocabulary // t * h
        return (
            self.job.stage_layers * layer
            + ((rows + shape.sequence * h) if first else 0)
            + ((rows + 2 * h) if last else 0)
        )

    def _layer(self) -> Iterator[Part]:
        h, t, n = self.job.shape.hidden, self.job.tensor, self.tokens
        yield self._numbers("normalization", 2 * n * h)
        yield from self._linear(3 * h // t, h, "qkv")
        yield self._numbers("layout", 2 * n * 3 * h // t, "heads apart")
        yield self._attention("attention", 1)
        yield self._numbers("softmax", 2 * self._scores)
        yield self._numbers("layout", 2 * n * h // t, "heads together")
        yield from self._row_parallel(h, h // t, "projection")
        yield self._numbers("elementwise", 3 * n * h, "residual")
        yield self._numbers("normalization", 2 * n * h)
        yield from self._linear(4 * h // t, h, "up")
        yield self._numbers("activation", 2 * n * 4 * h // t, "gelu")
        yield from self._row_parallel(h, 4 * h // t, "down")
        yield self._numbers("elementwise", 3 * n * h, "residual")

    def _layer_backward(self) -> Iterator[Part]:
        h, t, n = self.job.shape.hidden, self.job.tensor, self.tokens
        yield from self._linear_backward(h, 4 * h // t, "down", bias=h)
        yield self._numbers("activation-backward", 3 * n * 4 * h // t, "gelu")
        yield from self._linear_backward(4 * h // t, h, "up", bias=4 * h // t)
        yield from self._sum_gradients()
        yield from self._normalization_backward()
        yield self._numbers("accumulate", 3 * n * h, "residual")
        yield from self._linear_backward(h, h // t, "projection", bias=h)
        yield self._numbers("layout-backward", 2 * n * h // t, "heads together")
        yield self._attention("attention-backward", 2)
        yield self._numbers("softmax-backward", 3 * self._scores)
        yield self._numbers("layout", 2 * n * 3 * h // t, "query, key and value")
        yield self._numbers("layout-backward", 2 * n * 3 * h // t, "heads apart")
        yield from self._linear_backward(3 * h // t, h, "qkv", bias=3 * h // t)
        yield from self._sum_gradients()
        yield from self._normalization_backward()
        yield self._numbers("accumulate", 3 * n * h, "residual")

    def _embedding(self) -> Iterator[Part]:
        h, n = self.job.shape.hidden, self.tokens
        if self.job.tensor > 1:
            yield from self._own_tokens()
            yield self._numbers("embedding", 2 * n * h)
            yield self._numbers("elementwise", 2 * n * h, "tokens elsewhere")
            yield self._sum("embedding")
        else:
            yield self._numbers("embedding", 2 * n * h)
        yield self._numbers("elementwise", 3 * n * h, "positions")

    def _embedding_backward(self) -> Iterator[Part]:
        h, n = self.job.shape.hidden, self.tokens
        rows = self.job.shape.vocabulary // self.job.tensor * h
        if self.job.micro_batch > 1:
            yield self._numbers("accumulate", n * h, "positions")
        yield self._moved("accumulate", 3 * FLOAT * self.job.shape.sequence * h, "positions")
        if self.job.tensor > 1:
            yield self._numbers("elementwise", 2 * n * h, "tokens elsewhere")
        yield self._moved("embedding-backward", FLOAT * (rows + 3 * n * h), "embedding")
        yield self._moved("accumulate", 3 * FLOAT * rows, "embedding")

    def _head(self) -> Iterator[Part]:
        h, n, logits = self.job.shape.hidden, self.tokens, self._logits
        yield self._numbers("normalization", 2 * n * h)
        yield from self._linear(self.job.shape.vocabulary // self.job.tensor, h, "output")
        if self.job.tensor == 1:
            yield self._moved("loss", 2 * FLOAT * logits, "cross-entropy")
            return
        yield self._moved("elementwise", FLOAT * logits, "largest logit")
        yield self._sum("largest logit", FLOAT * n)
        yield self._moved("elementwise", 2 * FLOAT * logits, "shift")
        yield from self._own_tokens()
        yield self._moved("elementwise", 2 * FLOAT * n, "target")
        yield self._moved("softmax", 2 * FLOAT * logits, "exponentials")
        yield self._moved("elementwise", FLOAT * logits, "sum")
        yield self._sum("target", FLOAT * n)
        yield self._sum("sum of exponentials", FLOAT * n)
        yield self._moved("elementwise", 2 * FLOAT * logits, "probabilities")
        yield self._moved("elementwise", 3 * FLOAT * n, "loss")

    def _head_backward(self) -> Iterator[Part]:
        logits = self._logits
        if self.job.tensor == 1:
            yield self._moved("loss-backward", 3 * FLOAT * logits, "cross-entropy")
        else:
            yield self._moved("elementwise", 2 * FLOAT * logits, "less one at the target")
            yield self._moved("elementwise", 2 * FLOAT * logits, "scale")
        yield from self._linear_backward(
            self.job.shape.vocabulary // self.job.tensor, self.job.shape.hidden, "output", bias=0
        )
        yield from self._sum_gradients()
        yield from self._normalization_backward()

    @property
    def _scores(self) -> int:
        return self.tokens * self.job.shape.sequence * self.job.shape.heads // self.job.tensor

    @property
    def _logits(self) -> int:
        return self.tokens * self.job.shape.vocabulary // self.job.tensor

    def _attention(self, family: str, passes: int) -> Part:
        width = self.job.shape.hidden // self.job.tensor
        flops = 4.0 * passes * self.tokens * self.job.shape.sequence * width
        nbytes = passes * BYTES[self.job.dtype] * (4 * self.tokens * width + 2 * self._scores)
        return Part.compute(flops, nbytes, dtype=self.job.dtype, family=family, name=family)

    def _linear(self, outputs: int, inputs: int, name: str) -> Iterator[Part]:
        n = self.tokens
        numbers = n * inputs + outputs * inputs + n * outputs
        yield Part.compute(
            2.0 * n * outputs * inputs,
            numbers * BYTES[self.job.dtype],
            dtype=self.job.dtype,
            family="matmul",
            shape=(n, outputs, inputs),
            name=name,
        )

    def _linear_backward(self, outputs: int, inputs: int, name: str, *, bias: int) -> Iterator[Part]:
        """Both products, then the weight's and the bias's gradients added to those of earlier micro-batches."""
        (forward,) = self._linear(outputs, inputs, name)
        yield Part.compute(
            2 * forward.flops,
            2 * forward.nbytes,
            dtype=self.job.dtype,
            family="matmul-backward",
            shape=forward.shape,
            name=name,
        )
        yield self._moved("accumulate", 3 * FLOAT * outputs * inputs, f"gradient of {name}")
        if bias:
            yield self._moved("accumulate", 3 * FLOAT * bias, f"gradient of {name}'s bias")

    def _row_parallel(self, outputs: int, inputs: int, name: str) -> Iterator[Part]:
        yield from self._linear(outputs, inputs, name)
        if self.job.tensor > 1:
            yield self._sum(name)
            yield self._numbers("elementwise", 3 * self.tokens * outputs, f"bias of {name}")

    def _normalization_backward(self) -> Iterator[Part]:
        h = self.job.shape.hidden
        yield self._numbers("normalization-backward", 3 * self.tokens * h, "normalization")
        yield self._moved("accumulate", 3 * FLOAT * h, "gradient of its scale")
        yield self._moved("accumulate", 3 * FLOAT * h, "gradient of its shift")

    def _own_tokens(self) -> Iterator[Part]:
        """The tokens that are in this rank's rows: a shift, two comparisons and their union, a mask."""
        for name in ("shift", "below", "above", "either", "mask"):
            yield self._moved("elementwise", 2 * INDEX * self.tokens, f"own tokens: {name}")

    def _sum_gradients(self) -> Iterator[Part]:
        if self.job.tensor > 1:
            yield self._sum("gradient")

    def _sum(self, name: str, nbytes: int = 0) -> Part:
        return Part.collective("tp", "all-reduce", nbytes or self.activation, name=name)

    def _numbers(self, family: str, numbers: int, name: str = "") -> Part:
        return self._moved(family, numbers * BYTES[self.job.dtype], name)

    def _moved(self, family: str, nbytes: int, name: str = "") -> Part:
        return Part.compute(0.0, nbytes, dtype=self.job.dtype, family=family, name=name or family)
