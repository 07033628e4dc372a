"""The fields under `engine:` of an `rdma` experiment.

One trial moves several *payloads* (a model's parameters, or one tensor of a given size) through several *transports*
and measures them in turn, so that every transport meets the same state of the machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from emulation.units import render
from engines.rdma.training.settings import METRICS as TRAINING_METRICS
from engines.rdma.training.settings import Training
from harness.api import Better, Bytes, EngineSpec, Metric, MetricKind, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

TransportName = Literal[
    "zero-copy", "copy", "rpc-over-rdma", "request-driven", "grpc", "grpc-stream", "tcp",
    "gloo", "nixl", "nixl-tcp", "mooncake",
]  # fmt: skip
ModelName = Literal[
    "resnet-50", "bert-base", "gpt2-small", "lstm-seq2seq",
    "alexnet", "inception-v3", "vgg-16", "lstm", "gru", "fcn-5",
]  # fmt: skip
DtypeName = Literal["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"]

ITEM_BYTES: dict[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
}  # fmt: skip
LARGEST = 2**30
"""Bytes of one tensor: a protobuf message must stay below 2 GiB, and every transport gets the same payloads."""

_LABELS = ("transport", "payload")


class Spec(EngineSpec):
    """Move tensors from rank 0 to rank 1 and compare transports on the same bytes."""

    transports: list[TransportName] = Field(default=["zero-copy", "grpc", "grpc-stream", "tcp"], min_length=1)
    """Over a device (see `provider`): `zero-copy`, one-sided writes from registered memory, where the tensors were
    produced, into memory that the receiver allocated and published; `copy`, the same after one copy into registered
    memory; `rpc-over-rdma`, messages in fragments through a ring of receive buffers; `request-driven`, TensorFlow's
    `verbs` protocol, in which the receiver asks for every tensor. `grpc`: one protobuf message and one unary call per
    tensor, as distributed TensorFlow did; `grpc-stream`: the same messages over one streaming call; `tcp`: a
    length-prefixed socket. Peers that a user might pick instead: `gloo`, `nixl` (its fastest path on one host),
    `nixl-tcp`, `mooncake` (over TCP)."""
    models: list[ModelName] = Field(default=[])
    """Move the parameters (equally: the gradients) of these models, one tensor each, in fp32."""
    sizes: list[Bytes] = Field(default=[])
    """Move one tensor of each of these sizes (`1 KiB` to `1 GiB`)."""
    dtype: DtypeName = "float32"
    """Element type of the tensors under `sizes`; models have their own."""
    provider: Literal["auto", "shm", "verbs", "sim"] = "auto"
    """What the device is: memory that the processes of one host share (`shm`), an RDMA adapter (`verbs`), a simulated
    adapter (`sim`; emulated only). `auto`: `shm` on one host, else `verbs`. It says how a plan is carried out; it is
    no part of it."""
    placement: Literal["static", "dynamic"] = "static"
    """Of `zero-copy` and `copy`. `static`: the receiver placed every tensor before the first step. `dynamic`: it learns
    shape and address from a metadata block in every step, makes room, and reads the tensor."""
    signal: Literal["auto", "tail", "imm", "debug"] = "auto"
    """How the receiver of a static placement learns that a tensor is whole: `tail`, a sequence word behind it (refused
    where a device may place bytes in any order); `imm`, an immediate with the write; `debug`, `tail` with a CRC-32.
    `auto`: `tail` where it is safe, else `imm`."""
    allocator: Literal["retain", "system"] = "retain"
    """`retain`: the C allocator keeps freed memory, as the allocators of TensorFlow do, so that gRPC does not fault
    in new pages for every large message. `system`: glibc's defaults, which make gRPC several times slower on a
    virtual machine."""

    training: Training | None = None
    """Train a model over these transports instead of moving payloads; takes the place of `models` and `sizes`."""

    VERSION: ClassVar[str] = "2"
    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "step_time", "s", MetricKind.TIME, Better.LOWER,
            "From the first tensor handed over until the sender knows that the receiver has the last one", _LABELS,
        ),
        Metric(
            "bandwidth", "B/s", MetricKind.RATE, Better.HIGHER,
            "Payload bytes per second of step time", _LABELS,
        ),
        Metric(
            "copies", "", MetricKind.COUNT, Better.LOWER,
            "Times each payload byte was copied in user space, both ranks together, beside the transfer itself; "
            "counted where the copy is made, without those inside the gRPC core and the kernel", _LABELS,
        ),
        Metric(
            "memcpy_fraction", "", MetricKind.RATIO, Better.HIGHER,
            "Bandwidth over that of one copy of the same tensors by one thread, taken in the same run", _LABELS,
        ),
        Metric(
            "memcpy_bandwidth", "B/s", MetricKind.RATE, Better.HIGHER,
            "One thread copying the payload's tensors to memory of its own, in the same run", ("payload",),
        ),
        *TRAINING_METRICS,
    )  # fmt: skip

    def ranks(self) -> int:
        """A sender and a receiver, or those of the training job."""
        return self.training.ranks if self.training else 2

    def packages(self) -> tuple[str, ...]:
        """Training needs torch, and some models transformers; moving payloads needs nothing that guests lack."""
        return self.training.packages if self.training else ()

    def check(self) -> Iterable[Problem]:
        """Cross-field mistakes."""
        yield from _repeated("transports", self.transports)
        if self.training:
            for field in ("models", "sizes"):
                if getattr(self, field):
                    yield Problem((field,), f"{field!r} beside `training`: a job moves its model's tensors", "only one")
            if self.placement != "static":
                yield Problem(("placement",), "a model's tensors have static shapes", "'static'")
            yield from self.training.problems(self.transports)
            return
        if not self.models and not self.sizes:
            yield Problem(
                ("models",), "there is nothing to move", "`models`, `sizes` or `training` with something in it"
            )
        yield from _repeated("models", self.models)
        yield from _repeated("sizes", [size_label(size) for size in self.sizes])
        yield from self._sizes()

    def _sizes(self) -> Iterator[Problem]:
        item = ITEM_BYTES[self.dtype]
        for index, size in enumerate(self.sizes):
            if not 0 < size <= LARGEST:
                yield Problem(
                    ("sizes", index),
                    f"a tensor of {size} bytes cannot be moved by every transport",
                    "1 B to 1 GiB (a protobuf message must stay below 2 GiB)",
                )
            elif size % item:
                yield Problem(
                    ("sizes", index),
                    f"{size} bytes are not a whole number of {self.dtype} elements",
                    f"a multiple of {item} B",
                )


def size_label(nbytes: int) -> str:
    """How a size is named in labels and tables: `64 MiB`."""
    return render(nbytes, "B")


def _repeated(field: str, values: Sequence[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            yield Problem((field, index), f"{value!r} stands twice under {field!r}", "each once")
        seen.add(value)
