"""The `ibverbs` wheel (github.com/d4l3k/rdma4py) as a binding: loads libibverbs itself, needs nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ibverbs

from engines.rdma.providers.verbs.adapter import (
    HOPS,
    RNR_TIMER,
    SIGNALED,
    TO_INIT,
    TO_RTR,
    TO_RTS,
    Attribute,
    Finished,
    Limits,
    MemoryAccess,
    Path,
    Patience,
    Port,
    QueuePairState,
    WorkRequest,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class WheelQueuePair:
    """A `QueuePair` of the wheel."""

    def __init__(self, pd: ibverbs.PD, sends: int, receives: int) -> None:
        self._cq = pd.context.create_cq(sends + receives)
        try:
            self._qp = pd.create_qp(
                ibverbs.QPInitAttr(send_cq=self._cq, recv_cq=self._cq, max_send_wr=sends, max_recv_wr=receives)
            )
        except OSError:
            self._cq.close()
            raise
        self.number = self._qp.qp_num

    def initialize(self, port: int, access: MemoryAccess) -> None:
        """RESET -> INIT."""
        self._qp.modify(
            TO_INIT, qp_state=QueuePairState.INIT, pkey_index=0, port_num=port, qp_access_flags=int(access)
        )  # fmt: skip

    def ready_to_receive(self, path: Path) -> None:
        """INIT -> RTR."""
        route = ibverbs.AHAttr(
            dgid=path.gid, sgid_index=path.gid_index, dlid=path.lid, is_global=int(path.is_global),
            port_num=path.port, hop_limit=HOPS,
        )  # fmt: skip
        self._qp.modify(
            TO_RTR,
            ah_attr=route,
            qp_state=QueuePairState.RTR,
            path_mtu=path.mtu,
            dest_qp_num=path.queue_pair,
            rq_psn=path.sequence,
            max_dest_rd_atomic=path.reads,
            min_rnr_timer=RNR_TIMER,
        )

    def ready_to_send(self, sequence: int, patience: Patience, reads: int) -> None:
        """RTR -> RTS."""
        self._qp.modify(
            TO_RTS,
            qp_state=QueuePairState.RTS,
            timeout=patience.timeout,
            retry_cnt=patience.retries,
            rnr_retry=patience.rnr_retries,
            sq_psn=sequence,
            max_rd_atomic=reads,
        )

    def fail(self) -> None:
        """Any state -> ERR."""
        self._qp.modify(Attribute.STATE, qp_state=QueuePairState.ERR)

    def post(self, request: WorkRequest) -> None:
        """Append to the send queue."""
        number, opcode, address, nbytes, lkey, remote, rkey, imm, signaled = request
        pieces = [ibverbs.SGE(address, nbytes, lkey)] if nbytes else []
        flags = SIGNALED if signaled else 0
        self._qp.post_send(ibverbs.SendWR(number, pieces, int(opcode), flags, remote, rkey, imm))

    def post_receive(self, number: int, address: int, nbytes: int, lkey: int) -> None:
        """Append a buffer to the receive queue."""
        self._qp.post_recv(ibverbs.RecvWR(number, [ibverbs.SGE(address, nbytes, lkey)]))

    def poll(self, most: int) -> Sequence[Finished]:
        """Up to `most` entries of the completion queue."""
        return [Finished(w.wr_id, w.status, w.opcode, w.byte_len, w.imm_data) for w in self._cq.poll(most)]

    def close(self) -> None:
        """Destroy the queue pair and its completion queue."""
        self._qp.close()
        self._cq.close()


class WheelAdapter:
    """An `Adapter` of the wheel."""

    def __init__(self, device: ibverbs.Device) -> None:
        self.name = device.name
        self._context = device.open()
        self._pd = self._context.alloc_pd()
        found = self._context.query_device()
        self.limits = Limits(found.max_qp_wr, found.max_cqe, found.max_qp_rd_atom, found.max_mr, found.max_qp)

    def port(self, number: int) -> Port:
        """Ask a port for its attributes."""
        found = self._context.query_port(number)
        return Port(found.state, found.lid, found.active_mtu, found.max_msg_sz, found.link_layer)

    def gid(self, port: int, index: int) -> bytes:
        """An entry of the port's GID table."""
        return bytes(self._context.query_gid(port, index).raw)

    def register(self, address: int, nbytes: int, access: MemoryAccess) -> ibverbs.MR:
        """Make memory known to the adapter."""
        return self._pd.reg_mr(address, nbytes, int(access))

    def queue_pair(self, sends: int, receives: int) -> WheelQueuePair:
        """A queue pair and its completion queue."""
        return WheelQueuePair(self._pd, sends, receives)

    def close(self) -> None:
        """Give the device back."""
        self._pd.close()
        self._context.close()


class Wheel:
    """The binding."""

    name = "ibverbs"

    def devices(self) -> Sequence[str]:
        """Names of the RDMA devices of this machine."""
        return [device.name for device in ibverbs.get_device_list()]

    def open(self, device: str) -> WheelAdapter:
        """Open one of them."""
        return WheelAdapter(next(found for found in ibverbs.get_device_list() if found.name == device))
