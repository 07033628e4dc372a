"""A remote procedure call between two processes: gRPC's echo, and packing its message."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from emulation.calibrate.sampling import Case, Series, sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulation.calibrate.pool import Pool, Worker

SMALL, LARGE = 1024, 2**23
LIMIT = 2**25
"""Bytes that gRPC lets one message have."""
SERVER = "server"
METHOD = "/calibrate.Echo/Call"


def missing() -> str:
    """Why gRPC cannot be timed here; empty where it can."""
    lacking = [module for module in ("grpc", "google") if find_spec(module) is None]
    return "" if not lacking else "gRPC is not installed: pip install 'harness[rdma]'"


def calls(pool: Pool, *, rounds: int) -> list[Series]:
    """Unary calls and messages on an open stream, small and large, and packing the large one.

    Raises:
        ProbeError: a worker failed or hung.
    """
    port = pool.run(_serve, 2, port=0)[1]
    try:
        found: list[list[Series]] = pool.run(_call, 1, port=port, rounds=rounds)
        return found[0]
    finally:
        pool.run(_serve, 2, port=-1)


def _options() -> list[tuple[str, int]]:
    return [("grpc.max_send_message_length", LIMIT), ("grpc.max_receive_message_length", LIMIT)]


def _serve(worker: Worker, *, port: int) -> int:
    """Start (port 0) or stop (-1) the server on worker 1; its port."""
    if worker.rank != 1:
        return 0
    import grpc

    if port < 0:
        worker.kept.pop(SERVER).stop(None).wait()
        return 0

    class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            if details.method == METHOD:
                return grpc.unary_unary_rpc_method_handler(lambda request, _: request)
            return grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Echo()], options=_options())
    found: int = server.add_insecure_port("127.0.0.1:0")
    server.start()
    worker.kept[SERVER] = server
    return found


def _call(_: Worker, *, port: int, rounds: int) -> list[Series]:
    import queue

    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue

    small, large = bytes(SMALL), bytes(LARGE)
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=_options()) as channel:
        call = channel.unary_unary(METHOD)
        answers = channel.stream_stream(f"{METHOD}Stream")(iter(outbox.get, None))

        def on_stream() -> None:
            outbox.put(small)
            next(answers)

        message = BytesValue(value=large)
        wire = message.SerializeToString()
        cases = [
            Case({"what": "call", "bytes": SMALL}, lambda: call(small, timeout=30)),
            Case({"what": "call", "bytes": LARGE}, lambda: call(large, timeout=30)),
            Case({"what": "stream", "bytes": SMALL}, on_stream),
            Case({"what": "pack", "bytes": LARGE}, _packer(message.SerializeToString)),
            Case({"what": "unpack", "bytes": LARGE}, lambda: BytesValue.FromString(wire)),
        ]
        found = sweep("rpc", cases, rounds=rounds)
        outbox.put(None)
    return found


def _packer(pack: Callable[[], bytes]) -> Callable[[], object]:
    return lambda: pack()
