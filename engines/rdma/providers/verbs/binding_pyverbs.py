"""rdma-core's own binding, as distributions package it (`python3-pyverbs`), behind the same line as the wheel.

Its calls raise `PyverbsRDMAError`, which carries the `errno`; here they raise `OSError`. It hands immediates through
as they lie in memory, where the wheel takes and gives numbers; both send the same bytes, most significant first.
"""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import IPv6Address
from socket import htonl, ntohl
from typing import TYPE_CHECKING

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context, get_device_list
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError, PyverbsRDMAError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

from engines.rdma.providers.verbs.adapter import (
    HOPS,
    RELIABLE_CONNECTED,
    RNR_TIMER,
    SIGNALED,
    TO_INIT,
    TO_RTR,
    TO_RTS,
    Attribute,
    Finished,
    Limits,
    MemoryAccess,
    Opcode,
    Path,
    Patience,
    Port,
    QueuePairState,
    WorkRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except PyverbsRDMAError as error:
        raise OSError(error.error_code or 0, str(error)) from error
    except PyverbsError as error:
        raise OSError(0, str(error)) from error


def _free(entry: SendWR | RecvWR, piece: SGE) -> None:
    # Neither gives back its C memory when it is collected: their finalizers are misspelt (`__dealloc`).
    entry.close()
    piece.close()


class PackagedQueuePair:
    """A `QueuePair` of pyverbs."""

    def __init__(self, context: Context, pd: PD, sends: int, receives: int) -> None:
        with _as_os_error():
            self._cq = CQ(context, sends + receives)
            cap = QPCap(max_send_wr=sends, max_recv_wr=receives, max_send_sge=1, max_recv_sge=1)
            self._qp = QP(pd, QPInitAttr(qp_type=RELIABLE_CONNECTED, scq=self._cq, rcq=self._cq, cap=cap))
        self.number = self._qp.qp_num

    def _modify(self, attributes: QPAttr, mask: Attribute) -> None:
        with _as_os_error():
            self._qp.modify(attributes, int(mask))

    def initialize(self, port: int, access: MemoryAccess) -> None:
        """RESET -> INIT."""
        attributes = QPAttr(qp_state=QueuePairState.INIT, port_num=port)
        attributes.qp_access_flags = int(access)
        self._modify(attributes, TO_INIT)

    def ready_to_receive(self, path: Path) -> None:
        """INIT -> RTR."""
        gid = GID(IPv6Address(path.gid).exploded)
        route = GlobalRoute(dgid=gid, sgid_index=path.gid_index, hop_limit=HOPS)
        attributes = QPAttr(qp_state=QueuePairState.RTR)
        attributes.ah_attr = AHAttr(dlid=path.lid, is_global=int(path.is_global), port_num=path.port, gr=route)
        attributes.path_mtu = path.mtu
        attributes.dest_qp_num = path.queue_pair
        attributes.rq_psn = path.sequence
        attributes.max_dest_rd_atomic = path.reads
        attributes.min_rnr_timer = RNR_TIMER
        self._modify(attributes, TO_RTR)

    def ready_to_send(self, sequence: int, patience: Patience, reads: int) -> None:
        """RTR -> RTS."""
        attributes = QPAttr(qp_state=QueuePairState.RTS)
        attributes.timeout = patience.timeout
        attributes.retry_cnt = patience.retries
        attributes.rnr_retry = patience.rnr_retries
        attributes.sq_psn = sequence
        attributes.max_rd_atomic = reads
        self._modify(attributes, TO_RTS)

    def fail(self) -> None:
        """Any state -> ERR."""
        self._modify(QPAttr(qp_state=QueuePairState.ERR), Attribute.STATE)

    def post(self, request: WorkRequest) -> None:
        """Append to the send queue."""
        number, opcode, address, nbytes, lkey, remote, rkey, imm, signaled = request
        piece = SGE(address, nbytes, lkey)
        entry = SendWR(
            wr_id=number, opcode=int(opcode), num_sge=1, imm_data=htonl(imm), sg=[piece],
            send_flags=SIGNALED if signaled else 0,
        )  # fmt: skip
        if not nbytes:
            # Its constructor insists on a piece; verbs do not.
            entry.num_sge = 0
        if opcode is not Opcode.SEND:
            entry.set_wr_rdma(rkey, remote)
        try:
            with _as_os_error():
                self._qp.post_send(entry)
        finally:
            _free(entry, piece)

    def post_receive(self, number: int, address: int, nbytes: int, lkey: int) -> None:
        """Append a buffer to the receive queue."""
        piece = SGE(address, nbytes, lkey)
        entry = RecvWR(wr_id=number, num_sge=1, sg=[piece])
        try:
            with _as_os_error():
                self._qp.post_recv(entry)
        finally:
            _free(entry, piece)

    def poll(self, most: int) -> Sequence[Finished]:
        """Up to `most` entries of the completion queue."""
        with _as_os_error():
            _, found = self._cq.poll(most)
        return [Finished(w.wr_id, w.status, w.opcode, w.byte_len, ntohl(w.imm_data)) for w in found]

    def close(self) -> None:
        """Destroy the queue pair and its completion queue."""
        with _as_os_error():
            self._qp.close()
            self._cq.close()


class PackagedMemory:
    """A `Memory` of pyverbs."""

    def __init__(self, pd: PD, address: int, nbytes: int, access: MemoryAccess) -> None:
        with _as_os_error():
            self._region = MR(pd, nbytes, int(access), address=address)
        self.lkey, self.rkey = self._region.lkey, self._region.rkey

    def close(self) -> None:
        """Deregister it."""
        with _as_os_error():
            self._region.close()


class PackagedAdapter:
    """An `Adapter` of pyverbs."""

    def __init__(self, device: str) -> None:
        self.name = device
        with _as_os_error():
            self._context = Context(name=device)
            self._pd = PD(self._context)
            found = self._context.query_device()
        self.limits = Limits(found.max_qp_wr, found.max_cqe, found.max_qp_rd_atom, found.max_mr, found.max_qp)

    def port(self, number: int) -> Port:
        """Ask a port for its attributes."""
        with _as_os_error():
            found = self._context.query_port(number)
        return Port(found.state, found.lid, found.active_mtu, found.max_msg_sz, found.link_layer)

    def gid(self, port: int, index: int) -> bytes:
        """An entry of the port's GID table."""
        with _as_os_error():
            return IPv6Address(self._context.query_gid(port, index).gid).packed

    def register(self, address: int, nbytes: int, access: MemoryAccess) -> PackagedMemory:
        """Make memory known to the adapter."""
        return PackagedMemory(self._pd, address, nbytes, access)

    def queue_pair(self, sends: int, receives: int) -> PackagedQueuePair:
        """A queue pair and its completion queue."""
        return PackagedQueuePair(self._context, self._pd, sends, receives)

    def close(self) -> None:
        """Give the device back."""
        with _as_os_error():
            self._pd.close()
            self._context.close()


class Packaged:
    """The binding."""

    name = "pyverbs"

    def devices(self) -> Sequence[str]:
        """Names of the RDMA devices of this machine."""
        with _as_os_error():
            return [device.name.decode() for device in get_device_list()]

    def open(self, device: str) -> PackagedAdapter:
        """Open one of them."""
        return PackagedAdapter(device)
