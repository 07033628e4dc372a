"""One rank's copy of a model: where its parameters lie, and how it computes gradients."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engines.rdma.analyzer.allocation import AllocationTracer
from engines.rdma.tensors import Payload, Tensor
from engines.rdma.training import models

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from engines.rdma.copies import CopyLedger
    from engines.rdma.training.data import Batch
    from engines.rdma.training.settings import Size
    from engines.rdma.transports.base import Bytes1D


def payload_of(model: str, size: Size, name: str = "parameters") -> Payload:
    """The tensors of a model that nobody has built."""
    with torch.device("meta"):
        module = models.variant(model, size).build()
    return _payload(name, module)


def _payload(name: str, module: torch.nn.Module) -> Payload:
    return Payload(name, tuple(Tensor(n, tuple(p.shape), "float32") for n, p in module.named_parameters()))


class Replica:
    """A model in training mode, its tensors in the order of `named_parameters`."""

    def __init__(self, model: str, size: Size, seed: int, ledger: CopyLedger) -> None:
        """Build the model.

        Args:
            model: a name of `models.MODELS`.
            size: of the model.
            seed: decides the initial parameters.
            ledger: where copies are counted.
        """
        self.module = models.build(model, size, seed)
        self.ledger = ledger
        named = dict(self.module.named_parameters())
        self.names, self.parameters = tuple(named), tuple(named.values())
        self._tracer: AllocationTracer | None = None
        self._places: list[torch.Tensor] = []

    def payload(self, name: str) -> Payload:
        """The parameters, or their gradients, as what is moved."""
        return _payload(name, self.module)

    def move_into(self, places: Sequence[Bytes1D]) -> None:
        """Let the parameters live in these places from now on, with their present values."""
        for index, place in enumerate(places):
            floats = self._floats(index, place)
            floats[...] = self.parameters[index].detach().numpy()
            self.parameters[index].data = torch.from_numpy(floats)

    def take(self, index: int, received: Bytes1D) -> None:
        """Let a parameter be what was received: in the place where it lies, or copied if that place is read-only."""
        parameter, floats = self.parameters[index], self._floats(index, received)
        if floats.ctypes.data == parameter.data_ptr():
            return
        if floats.flags.writeable:
            parameter.data = torch.from_numpy(floats)
            return
        parameter.detach().numpy()[...] = floats
        self.ledger.count("message to parameter", received.nbytes)

    def parameter_bytes(self, index: int) -> Bytes1D:
        """The bytes of a parameter, where it lies."""
        return self.parameters[index].detach().numpy().reshape(-1).view(np.uint8)

    def gradient_bytes(self, index: int) -> Bytes1D:
        """The bytes of a gradient, wherever it lies; gradients with gaps are copied together first."""
        gradient = self.parameters[index].grad
        assert gradient is not None
        if not gradient.is_contiguous():
            gradient = gradient.contiguous()
            self.ledger.count("gradient made contiguous", gradient.nbytes)
        return gradient.detach().numpy().reshape(-1).view(np.uint8)

    def produce_in(self, places: Mapping[str, memoryview]) -> None:
        """Let gradients be produced in these places: from the second step on, where the analyzer finds that it can."""
        self._places = self._views(places)
        self._tracer = AllocationTracer(self.ledger)
        self._tracer.promote(places)

    def copy_to(self, places: Mapping[str, memoryview]) -> None:
        """Let gradients be copied to these places when they have been produced."""
        self._places = self._views(places)

    def use_places(self) -> None:
        """Let `.grad` be what lies in the places now, for the optimizer."""
        for parameter, place in zip(self.parameters, self._places, strict=True):
            if parameter.grad is None or parameter.grad.data_ptr() != place.data_ptr():
                parameter.grad = place

    def compute(self, batch: Batch) -> float:
        """Gradients of the mean loss over a share of a batch, into `.grad` and the places for them, if any."""
        tracer = self._tracer
        # The gradients of the last step give their places back.
        self.module.zero_grad(set_to_none=True)
        loss = models.loss(self.module(*batch.inputs), batch.targets)
        with tracer.step() if tracer else nullcontext():
            loss.backward()
        for index, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
            assert parameter.grad is not None
            if tracer:
                tracer.place(name, parameter.grad)
            elif self._places:
                self._places[index].copy_(parameter.grad)
                self.ledger.count("gradient to its place", parameter.grad.nbytes)
        return loss.item()

    def _views(self, places: Mapping[str, memoryview]) -> list[torch.Tensor]:
        return [
            torch.from_numpy(self._floats(index, np.frombuffer(places[name], np.uint8)))
            for index, name in enumerate(self.names)
        ]

    def report(self) -> Any:
        """What the analyzer found (JSON), or None."""
        return self._tracer.report().to_json() if self._tracer else None

    def _floats(self, index: int, place: Bytes1D) -> NDArray[np.float32]:
        return place.view(np.float32).reshape(tuple(self.parameters[index].shape))
