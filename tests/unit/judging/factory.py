"""Records made by hand, in the shape the runner leaves them."""

from __future__ import annotations

from typing import Any

from harness.records import Artifact, EmulationStamp, Failure, Provenance, Record, State, TargetStamp, Value
from harness.spec import Experiment

P100 = {"cpu": "Intel Xeon E5-2690 v4", "cores": 28, "gpus": [{"name": "Tesla P100-PCIE-16GB"}]}
LAPTOP = {"cpu": "AMD EPYC", "cores": 2, "gpus": []}


def experiment(**fields: Any) -> Experiment:
    return Experiment.model_validate({"schema": 1, "name": "demo", "engine": {"name": "rdma"}, **fields})


def value(name: str, samples: list[float], *, emulated: bool = False, **labels: str) -> Value:
    unit, better = {
        "step_time": ("s", "lower"),
        "bandwidth": ("B/s", "higher"),
        "accuracy": ("%", "higher"),
        "speedup": ("x", "higher"),
        "steps": ("", "target"),
    }[name]
    band = (0.8 * samples[0], 1.25 * samples[0]) if emulated else None
    kind = "emulated" if emulated else "measured"
    return Value(name=name, labels=labels, unit=unit, kind=kind, better=better, samples=samples, band=band)


def record(
    values: list[Value] | None = None,
    *,
    backend: str = "local",
    hardware: str = "laptop",
    state: State = State.OK,
    cell: str = "default",
    swept: dict[str, Any] | None = None,
    message: str = "",
    found: dict[str, Any] | None = None,
    plan: str = "plan-1",
    engine: dict[str, Any] | None = None,
    artifacts: list[Artifact] | None = None,
    log_tail: str = "",
) -> Record:
    emulated = backend == "emulated"
    stamp = EmulationStamp(model_version="1", profile=hardware, profile_digest="d" * 64, grade="datasheet", events=10)
    return Record(
        key=f"{backend}-{hardware}-{cell}".encode().hex().ljust(64, "0")[:64],
        spec="demo",
        cell=cell,
        swept=swept or {},
        target=TargetStamp(backend=backend, hardware=hardware),
        resolved={"engine": {"name": "rdma", **(engine or {})}},
        engine="rdma",
        engine_version="1",
        plan_digest=plan,
        seed=0,
        state=state,
        failure=Failure(type="RuntimeError", message=message or str(state), log_tail=log_tail)
        if state is not State.OK
        else None,
        values=values or [],
        emulation=stamp if emulated else None,
        artifacts=artifacts or [],
        started="2026-01-02T03:04:05Z",
        seconds=1.5,
        provenance=Provenance(
            git={"commit": "0123456789abcdef", "dirty": False},
            packages={"numpy": "2.0.0"},
            hardware=LAPTOP if found is None else found,
            python="3.11.2",
            harness="0.1.0",
        ),
    )


MODELS = ("resnet50", "bert-base", "gpt2-small", "lstm-seq2seq")
_SIZES = {"resnet50": 102e6, "bert-base": 438e6, "gpt2-small": 498e6, "lstm-seq2seq": 96e6}
_MEASURED = {"grpc": 0.4e9, "tcp": 1.6e9, "shm": 9.1e9}
_EMULATED = {"grpc": 0.55e9, "tcp": 1.5e9, "shm": 11.6e9}


def transports(*, backend: str = "local", hardware: str = "laptop", **kwargs: Any) -> Record:
    """Three transports over four models, as the quick start has them."""
    emulated = backend == "emulated"
    rates = _EMULATED if emulated else _MEASURED
    values = []
    for index, model in enumerate(MODELS):
        for transport, rate in rates.items():
            seconds = _SIZES[model] / rate * (1 + 0.04 * index)
            samples = [seconds] if emulated else [seconds * f for f in (0.97, 0.99, 1.0, 1.01, 1.02, 1.05, 1.11)]
            labels = {"transport": transport, "payload": model}
            values.append(value("step_time", samples, emulated=emulated, **labels))
            rates_seen = [_SIZES[model] / s for s in samples]
            values.append(value("bandwidth", rates_seen, emulated=emulated, **labels))
    return record(values, backend=backend, hardware=hardware, **kwargs)


def quickstart(**fields: Any) -> Experiment:
    return experiment(
        description="Moves the parameters of four models between two processes by three transports.",
        paper="rdma",
        tables=[
            {
                "title": "Time of a step and bandwidth by transport and model",
                "rows": "transport",
                "columns": "payload",
                "value": ["step_time", "bandwidth"],
                "baseline": {"transport": "grpc"},
                "reference": "rdma/abstract/device/speedup_over_grpc",
            }
        ],
        expect=[
            {
                "metric": "step_time",
                "where": {"transport": "shm"},
                "baseline": {"transport": "grpc"},
                "reference": "rdma/abstract/device/speedup_over_grpc",
            },
            {
                "metric": "step_time",
                "where": {"transport": "shm", "payload": "bert-base"},
                "on": "local",
                "baseline": {"transport": "grpc"},
                "at_least": "30 x",
                "required": False,
            },
            {"metric": "step_time", "where": {"transport": "shm"}, "at_most": "1 s"},
        ],
        **fields,
    )
