"""The protobuf message of the gRPC transports, and what making and reading one copies.

The shape of TensorFlow's `TensorProto` with `tensor_content`: name, dtype, shape, bytes. Its descriptor is built here,
so that no protocol compiler is needed to install the engine; the runtime is protobuf's C core all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.api import EnvironmentLacks

if TYPE_CHECKING:
    from engines.rdma.copies import CopyLedger
    from engines.rdma.tensors import Tensor
    from engines.rdma.transports.base import Bytes1D

FIELDS = (("step", "TYPE_UINT64"), ("index", "TYPE_UINT32"), ("name", "TYPE_STRING"), ("dtype", "TYPE_STRING"),
          ("shape", "TYPE_INT64"), ("content", "TYPE_BYTES"))  # fmt: skip

COPIES = 5
"""Copies of a tensor's content that `pack` (3) and `unpack` (2) make between them; for predictions."""


@cache
def message_class() -> Any:
    """The class of `rdma.Tensor` messages.

    Raises:
        EnvironmentLacks: protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise EnvironmentLacks(
            f"the gRPC transports need grpcio and protobuf: pip install 'harness[rdma]' ({error})"
        ) from None
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="rdma_tensor.proto", package="rdma", syntax="proto3")
    message = file.message_type.add(name="Tensor")
    for number, (name, scalar) in enumerate(FIELDS, start=1):
        label = kind.LABEL_REPEATED if name == "shape" else kind.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=getattr(kind, scalar), label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("rdma.Tensor"))


@dataclass(frozen=True)
class Packed:
    """A tensor taken out of a message."""

    step: int
    index: int
    content: Bytes1D


def pack(tensor: Tensor, source: Bytes1D, *, step: int, index: int, ledger: CopyLedger) -> bytes:
    """The wire bytes of a tensor: three copies of its content."""
    content = source.tobytes()
    ledger.count("tensor to bytes", source.nbytes)
    message = message_class()(
        step=step, index=index, name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, content=content
    )
    ledger.count("bytes to message", source.nbytes)
    wire: bytes = message.SerializeToString()
    ledger.count("serialise", source.nbytes)
    return wire


def unpack(wire: bytes, *, ledger: CopyLedger) -> Packed:
    """A tensor from its wire bytes: two copies of its content."""
    import numpy as np

    message = message_class().FromString(wire)
    content = message.content
    ledger.count("parse", len(content))
    ledger.count("message to bytes", len(content))
    return Packed(message.step, message.index, np.frombuffer(content, np.uint8))
