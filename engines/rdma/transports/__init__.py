"""Ways to move a payload's tensors from rank 0 to rank 1, behind one pair of interfaces.

Each is loaded when it is asked for: what one needs (gRPC, torch, NIXL, Mooncake) is no need of the others. A transport
over a device is a pair of ends made from `(device, setting)`; any other is a sender and a receiver made from
`(session, name)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engines.rdma.transports.base import Setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.rdma.device import Device
    from engines.rdma.session import Session
    from engines.rdma.transports.base import Receiver, ReceivingEnd, Sender, SendingEnd

__all__ = ["ON_DEVICE", "Setting", "capacity", "open_receiver", "open_sender", "receiving_end", "sending_end"]

_ENDS = {
    "zero-copy": ("zero_copy.ZeroCopySender", "zero_copy.ZeroCopyReceiver"),
    "copy": ("copy.CopySender", "copy.CopyReceiver"),
    "rpc-over-rdma": ("rpc_over_rdma.RpcSender", "rpc_over_rdma.RpcReceiver"),
    "request-driven": ("request_driven.RequestDrivenSender", "request_driven.RequestDrivenReceiver"),
}
_OTHERS = {
    "grpc": ("grpc_unary.UnarySender", "grpc_service.GrpcReceiver"),
    "grpc-stream": ("grpc_stream.StreamSender", "grpc_service.GrpcReceiver"),
    "tcp": ("tcp.TcpSender", "tcp.TcpReceiver"),
    "gloo": ("gloo.GlooSender", "gloo.GlooReceiver"),
    "nixl": ("nixl.NixlSender", "nixl.NixlReceiver"),
    "nixl-tcp": ("nixl.NixlSender", "nixl.NixlReceiver"),
    "mooncake": ("mooncake.MooncakeSender", "mooncake.MooncakeReceiver"),
}
ON_DEVICE = tuple(_ENDS)
"""Transports over a `Device`, of any provider."""
_LANDINGS = {"zero-copy": (0, 1), "copy": (1, 1), "rpc-over-rdma": (0, 0), "request-driven": (1, 1)}
"""Registered room for a payload that a transport needs at the sender, beside the tensors themselves, and the
receiver."""


def _load(place: str) -> Any:
    module, kind = place.split(".")
    return getattr(import_module(f"engines.rdma.transports.{module}"), kind)


def sending_end(name: str, device: Device, setting: Setting) -> SendingEnd:
    """Rank 0's end of one of `ON_DEVICE`."""
    end: SendingEnd = _load(_ENDS[name][0])(device, setting)
    return end


def receiving_end(name: str, device: Device, setting: Setting) -> ReceivingEnd:
    """Rank 1's end of one of `ON_DEVICE`."""
    end: ReceivingEnd = _load(_ENDS[name][1])(device, setting)
    return end


def capacity(names: Sequence[str], setting: Setting, *, rank: int) -> int:
    """Bytes of arena that these transports need on a rank, the tensors of rank 0 included; 0 if none has a device."""
    from engines.rdma.transports.one_sided import landing_bytes, small_bytes

    used = [name for name in names if name in ON_DEVICE]
    if not used:
        return 0
    landings = sum(_LANDINGS[name][rank] for name in used) + (rank == 0)
    return landings * landing_bytes(setting) + len(used) * small_bytes(setting)


def open_sender(name: str, session: Session, setting: Setting, device: Device | None) -> Sender:
    """The sending end of a transport; `device` is this rank's, for those `ON_DEVICE`."""
    if name in ON_DEVICE:
        from engines.rdma.transports.joined import JoinedSender

        assert device is not None
        return JoinedSender(session, sending_end(name, device, setting))
    sender: Sender = _load(_OTHERS[name][0])(session, name)
    return sender


def open_receiver(name: str, session: Session, setting: Setting, device: Device | None) -> Receiver:
    """The receiving end of a transport; the arguments are those of `open_sender`."""
    if name in ON_DEVICE:
        from engines.rdma.transports.joined import JoinedReceiver

        assert device is not None
        return JoinedReceiver(session, receiving_end(name, device, setting))
    receiver: Receiver = _load(_OTHERS[name][1])(session, name)
    return receiver
