"""Ways to move a payload's tensors from rank 0 to rank 1, behind one pair of interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.rdma.session import Session
    from engines.rdma.transports.base import Receiver, Sender


def open_sender(name: str, session: Session, largest: int) -> Sender:
    """The sending end of a transport; `largest` is the most bytes one payload needs in registered memory."""
    if name == "shm":
        from engines.rdma.transports.one_sided import OneSidedSender

        return OneSidedSender(session, largest)
    if name == "tcp":
        from engines.rdma.transports.tcp import TcpSender

        return TcpSender(session)
    if name == "grpc":
        from engines.rdma.transports.grpc_unary import UnarySender

        return UnarySender(session)
    from engines.rdma.transports.grpc_stream import StreamSender

    return StreamSender(session)


def open_receiver(name: str, session: Session, largest: int) -> Receiver:
    """The receiving end of a transport."""
    if name == "shm":
        from engines.rdma.transports.one_sided import OneSidedReceiver

        return OneSidedReceiver(session, largest)
    if name == "tcp":
        from engines.rdma.transports.tcp import TcpReceiver

        return TcpReceiver(session)
    from engines.rdma.transports.grpc_service import GrpcReceiver

    return GrpcReceiver(session, name)
