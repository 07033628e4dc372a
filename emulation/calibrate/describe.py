"""From a measurement to a hardware profile: which fit becomes which figure.

The machine is described as one host and a group of *processes* on it: a rank of a local job is `host0/proc2`. Processes
are joined to the host's processor by `cpu` links, so that a message goes through it. What was not measured is a `prior`
whose source says so.
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any

from emulation.calibrate import fit
from emulation.calibrate.accelerator_figures import describe as describe_accelerator
from emulation.calibrate.figure_text import duration, flop_rate, rate, rounded, size
from emulation.calibrate.measure import PROCESSES, Measurement, digest, dump
from emulation.calibrate.residuals import stretches
from emulation.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.calibrate.sampling import Series
    from emulation.cost import Family

Mapping = dict[str, Any]
ARITHMETIC = ("matmul", "attention")
"""Families that are limited by arithmetic; all others by memory."""
SUFFIX = "-backward"
FRAGMENTATION = "6 %"
PRIOR_RPC = {
    "per_call": "383 us",
    "serialise": "7.42 GB/s",
    "stream": "2.34 GB/s",
    "stream_message": "203 us",
}
"""Of the `laptop` profile, for a machine without gRPC."""
SOURCES = {
    "assumed": "an order of magnitude, not taken from any one document",
    "reserve": "6 % of device memory lost to fragmentation, a common default of memory planners",
    "wire": "IEEE 802.3 with 1500 B MTU carries 1448 B of payload in 1538 B on the wire (TCP with timestamps)",
}


class NotEnough(ValueError):
    """The probes that ran do not make a profile."""


class Calibration:
    """The fits of a measurement, and the profile they make.

    Raises:
        NotEnough: memory copies or sockets were not measured, or neither operators nor matrix products.
    """

    def __init__(self, found: Measurement) -> None:
        needed = {"memcpy": found.of("memcpy"), "tcp": found.of("tcp")}
        needed["operators or gemm"] = found.of("operators") or found.of("gemm", processes=1)
        lacking = [name for name, series in needed.items() if not series]
        if lacking:
            raise NotEnough(f"a profile needs {', '.join(lacking)} as well; run without --only")
        self.found = found
        self.fits: dict[str, fit.Fit] = {}
        self.residuals: dict[Family, list[tuple[float, float]]] = {}
        """Family of cost models -> (work, ln(measured / predicted)) of cases that the fit did not see."""
        self.sources = dict(SOURCES)

    def document(self, name: str) -> Mapping:
        """The profile as plain data, without its `calibration`."""
        machine = self.found.machine
        document: Mapping = {
            "schema": 1,
            "name": name,
            "description": self._description(),
            "sources": self.sources,
            "models": {"cpu": self._processor(1), "process": self._processor(PROCESSES)},
            "hosts": [
                {
                    "name": "host",
                    "cpu": "cpu",
                    "cores": machine["cores"],
                    "devices": [{"name": "proc", "model": "process", "count": PROCESSES}],
                    "links": [self._link()],
                    "software": self._software(),
                }
            ],
            "collectives": self._options(),
            "collective_tables": self._tables(),
            "fragmentation": {"value": FRAGMENTATION, "grade": "prior", "source": "reserve"},
        }
        describe_accelerator(self.found, document, self._source("gpu") if self.found.of("gpu-gemm") else "")
        return document

    def summary(self) -> Mapping:
        """The fits and the quantiles of their residuals, for the raw-sample file."""
        return {
            "fits": {name: found.to_json() for name, found in self.fits.items()},
            "residuals": {name: fit.quantiles([log for _, log in rows]) for name, rows in self.residuals.items()},
            "drifted": sorted(f"{s.probe} {s.labels}" for s in self.found.series if s.drifted),
        }

    def _description(self) -> str:
        machine = self.found.machine
        kind = machine["processor"] or machine["machine"]
        speed = ", quick" if self.found.quick else ""
        return f"{kind}, {machine['cores']} cores, as measured by harness calibrate on {self.found.started[:10]}{speed}"

    def _source(self, probe: str) -> str:
        """The key of a probe in `sources`, which says what, when, where and how well."""
        key = f"probe-{probe}"
        if key not in self.sources:
            machine = self.found.machine
            what = f"{machine['processor'] or machine['machine']}, {machine['cores']} cores"
            load = machine["load_average"][0]
            series = self.found.of(probe) or self.found.of("gpu-gemm")
            drifted = sum(s.drifted for s in series)
            self.sources[key] = (
                f"harness calibrate, probe {probe}, {self.found.started}, {what}, load average {load:.2f}; "
                f"{len(series)} cases of {min((len(s.samples) for s in series), default=0)} samples, {drifted} drifted"
            )
        return key

    def _note(self, probe: str, fits: Sequence[str]) -> None:
        """Say in the source which parameters the samples do not determine."""
        for name in fits:
            for parameter, why in self.fits[name].unidentified.items():
                self.sources[self._source(probe)] += f"; {name}: {parameter} not identified ({why})"

    def _off(self, family: Family, found: fit.Fit) -> None:
        """Keep what a fit was off by on cases it did not see."""
        if found.residuals:
            self.residuals.setdefault(family, []).extend(zip(found.work, found.residuals, strict=True))

    def family_residuals(self, digest: str) -> list[Mapping]:
        """For the bands; those of collectives stand with their tables.

        Args:
            digest: SHA-256 of the raw-sample file.
        """
        sources = {"compute": "operators" if self.found.of("operators") else "gemm"}
        sources["p2p"] = "gloo" if self.found.of("gloo") else "tcp"
        return [
            {
                "family": family,
                "digest": digest,
                "grade": "measured",
                "source": self._source(sources[family]),
                "stretches": _stretches(self.residuals[family]),
            }
            for family in self.residuals
            if family in sources
        ]

    def _processor(self, share: int) -> Mapping:
        """The model of the whole processor (`share` 1), or of a process: one core of it, and a share of its memory."""
        families = self._families()
        arithmetic = [self.fits[n] for n in families if self.fits[n].knots and n.removesuffix(SUFFIX) in ARITHMETIC]
        peak = max((knot[1] for found in arithmetic for knot in found.knots), default=0.0)
        processes = max(s.labels["processes"] for s in self.found.of("memcpy")) if share == 1 else 1
        copies = [
            (2 * s.labels["bytes"], processes * 2 * s.labels["bytes"] / s.median)
            for s in self.found.of("memcpy", processes=processes)
        ]
        probe = "operators" if self.found.of("operators") else "gemm"
        source = self._source(probe)
        figure = {"grade": "measured", "source": source}
        moved = [moving for _, moving in copies]
        moved += [k[1] for n in families if n.removesuffix(SUFFIX) not in ARITHMETIC for k in self.fits[n].knots]
        fastest = max(moved)
        curves = {name: self._family(name, peak, fastest, probe) for name in families}
        compute: Mapping = {"peak": {"value": flop_rate(peak), **figure}, "families": curves}
        overall = self.fits["matmul"]
        compute["efficiency"] = {**figure, "points": _points(overall.knots, peak, "FLOP")}
        return {
            "kind": "cpu",
            "memory": {
                "value": size(self.found.machine["memory_bytes"] // share),
                "grade": "measured",
                "source": self._source("memcpy"),
            },
            "memory_bandwidth": {
                "peak": {"value": rate(fastest), "grade": "measured", "source": self._source("memcpy")},
                "efficiency": {
                    "grade": "measured",
                    "source": self._source("memcpy"),
                    "points": _falling(copies, fastest),
                },
            },
            "compute": {"fp32": compute},
            "launch": {"value": duration(overall.parameters["launch"]), **figure},
        }

    def _families(self) -> list[str]:
        """Names of the families that were measured; their fits are made on the first call."""
        series = self.found.of("operators") or self.found.of("gemm", processes=1)
        names = list(dict.fromkeys(s.labels["family"] for s in series))
        for name in names:
            if name not in self.fits:
                self._fit_family(name, [s for s in series if s.labels["family"] == name])
        return [name for name in names if name in self.fits]

    def _fit_family(self, name: str, series: list[Series]) -> None:
        arithmetic = name.removesuffix(SUFFIX) in ARITHMETIC
        work = [s.labels["flops" if arithmetic else "bytes"] for s in series]
        self.fits[name] = fit.rate_curve(work, [s.median for s in series], rising=arithmetic)
        self._off("compute", self.fits[name])
        self._note(series[0].probe, [name])

    def _family(self, name: str, peak: float, fastest: float, probe: str) -> Mapping:
        found = self.fits[name]
        figure = {"grade": "measured", "source": self._source(probe)}
        curve: Mapping = {"launch": {"value": duration(found.parameters["launch"]), **figure}}
        if found.knots and name.removesuffix(SUFFIX) in ARITHMETIC:
            curve["flops"] = {**figure, "points": _points(found.knots, peak, "FLOP")}
        elif found.knots:
            curve["bytes"] = {**figure, "points": _points(found.knots, fastest, "B")}
        contention = self._contention(name.removesuffix(SUFFIX))
        if contention:
            curve["contention"] = {"value": contention, "grade": "measured", "source": self._source("contention")}
        return curve

    def _contention(self, family: str) -> float:
        """How many times longer an operator takes on a core while all cores are busy; 0 where not measured."""
        cores = min(self.found.machine["cores"], PROCESSES)
        alone = self.found.of("contention", family=family, processes=1)
        busy = self.found.of("contention", family=family, processes=cores)
        if not alone or not busy or cores == 1:
            return 0.0
        return rounded(fit.ratio([s.median for s in busy], [s.median for s in alone]))

    def _link(self) -> Mapping:
        """Between a process and the host's processor: half of the way of a message."""
        sends = self.found.of("gloo", op="send")
        probe = "gloo" if sends else "tcp"
        series = sends or self.found.of("tcp")
        self.fits["message"] = fit.alpha_beta([s.labels["bytes"] for s in series], [s.median for s in series])
        self._off("p2p", self.fits["message"])
        self._note(probe, ["message"])
        found = self.fits["message"].parameters
        figure = {"grade": "measured", "source": self._source(probe)}
        return {
            "name": "memory",
            "kind": "cpu",
            "ends": ["proc", "cpu"],
            "rate": {"value": rate(found["beta"]), **figure},
            "latency": {"value": duration(found["alpha"] / 2), **figure},
        }

    def _software(self) -> Mapping:
        copies = self.found.of("memcpy", processes=1)
        series = self.found.of("tcp")
        self.fits["tcp"] = fit.alpha_beta([s.labels["bytes"] for s in series], [s.median for s in series])
        self._note("tcp", ["tcp"])
        tcp = {"grade": "measured", "source": self._source("tcp")}
        memcpy = {"grade": "measured", "source": self._source("memcpy")}
        fastest = max(s.labels["bytes"] / s.median for s in copies)
        return {
            "memcpy": {
                "peak": {"value": rate(fastest), **memcpy},
                "efficiency": {
                    **memcpy,
                    "points": _falling([(s.labels["bytes"], s.labels["bytes"] / s.median) for s in copies], fastest),
                },
            },
            "page": {"value": size(self.found.machine["page_bytes"]), **memcpy},
            "tcp": {
                "stream": {"value": rate(self.fits["tcp"].parameters["beta"]), **tcp},
                "per_message": {"value": duration(self.fits["tcp"].parameters["alpha"]), **tcp},
                "efficiency": {"value": 0.941, "grade": "prior", "source": "wire"},
            },
            "rpc": self._rpc(),
        }

    def _rpc(self) -> Mapping:
        calls = {(s.labels["what"], s.labels["bytes"]): s.median for s in self.found.of("rpc")}
        message = {"value": "16 MiB", "grade": "prior", "source": "assumed"}
        nothing = {"value": "0 s", "grade": "prior", "source": "assumed"}
        if not calls:
            why = self.found.skipped.get("rpc", "the probe was not asked for")
            self.sources["laptop-rpc"] = f"figures of the profile `laptop`; not measured here: {why}"
            prior = {"grade": "prior", "source": "laptop-rpc"}
            figures = {name: {"value": value, **prior} for name, value in PRIOR_RPC.items()}
            return figures | {"per_message": nothing, "message": message}
        figure = {"grade": "measured", "source": self._source("rpc")}
        small, large = (sorted(nbytes for what, nbytes in calls if what == "call")[n] for n in (0, -1))
        packing = (calls["pack", large] + calls["unpack", large]) / 2
        # An echo carries the payload both ways.
        streaming = max(calls["call", large] - calls["call", small], 1e-9) / 2
        return {
            "per_call": {"value": duration(calls["call", small]), **figure},
            "serialise": {"value": rate(large / packing), **figure},
            "stream": {"value": rate(large / streaming), **figure},
            "per_message": nothing,
            "message": message,
            "stream_message": {"value": duration(calls["stream", small]), **figure},
        }

    def _options(self) -> list[Mapping]:
        """A ring with what the all-reduces of all group sizes have in common, for groups that were not measured."""
        series = self.found.of("gloo", op="all-reduce")
        if not series:
            return []
        ranks, sizes = [s.labels["ranks"] for s in series], [s.labels["bytes"] for s in series]
        self.fits["all-reduce"] = found = fit.ring(ranks, sizes, [s.median for s in series])
        self._note("gloo", ["all-reduce"])
        link = self.fits["message"].parameters["beta"]
        return [
            {
                "name": "gloo-ring",
                "algorithm": "ring",
                "base": duration(found.parameters["base"]),
                "step": {"cpu": duration(found.parameters["step"])},
                "bandwidth": min(1.0, rounded(found.parameters["rate"] / link)),
                "grade": "measured",
                "source": self._source("gloo"),
            }
        ]

    def _tables(self) -> list[Mapping]:
        tables = []
        for probe in ("gloo", "nccl"):
            keys = dict.fromkeys((s.labels["op"], s.labels["ranks"]) for s in self.found.of(probe))
            for op, ranks in keys:
                series = sorted(self.found.of(probe, op=op, ranks=ranks), key=lambda s: int(s.labels["bytes"]))
                sizes = [s.labels["bytes"] for s in series]
                knots, left_out = fit.table(sizes, [s.median for s in series])
                rows = list(zip(sizes[1:-1], left_out, strict=True))
                self.residuals.setdefault("collective", []).extend(rows)
                tables.append(
                    {
                        "op": op,
                        "ranks": ranks,
                        "link": series[0].labels["link"],
                        "grade": "measured",
                        "source": self._source(probe),
                        "points": [{"bytes": size(nbytes), "time": duration(time)} for nbytes, time in knots],
                        "processor": rounded(median([_busy(s) for s in series])),
                        "residuals": _stretches(rows),
                    }
                )
        return tables


def _busy(series: Series) -> float:
    """Part of a core that each rank kept busy; 0 where nobody looked."""
    return min(1.0, series.extra.get("processor_s", 0.0) / int(series.labels["ranks"]) / series.median)


def document(found: Measurement, name: str, *, file: str) -> tuple[Mapping, bytes]:
    """A profile as plain data, and the raw-sample file that it refers to.

    Args:
        found: what was measured.
        name: of the profile.
        file: name of the raw-sample file beside it.

    Raises:
        NotEnough: the probes that ran do not make a profile.
        pydantic.ValidationError: the figures do not make a profile; a mistake of this module.
    """
    calibration = Calibration(found)
    made = calibration.document(name)
    raw = dump(found.to_json() | calibration.summary())
    machine = found.machine
    made["calibration"] = {
        "digest": digest(raw),
        "date": found.started,
        "machine": f"{machine['processor'] or machine['machine']}, {machine['cores']} cores, Linux {machine['system']}",
        "file": file,
    }
    made["residuals"] = calibration.family_residuals(made["calibration"]["digest"])
    Profile.model_validate(made)
    return made, raw


def to_yaml(made: Mapping) -> str:
    """A profile as YAML, figures on one line and sources on one each."""
    import yaml

    class Dumper(yaml.SafeDumper):
        # Two models with equal figures are written out, not as references to one another.
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's interface
            return True

    return "".join(
        yaml.dump(
            {key: value},
            Dumper=Dumper,
            sort_keys=False,
            allow_unicode=True,
            width=10_000,
            default_flow_style=None if isinstance(value, dict | list) and key != "sources" else False,
        )
        for key, value in made.items()
    )


def _stretches(rows: Sequence[tuple[float, float]]) -> list[Mapping]:
    """Quantiles of what a fit was off by, as a profile has them."""
    if not rows:
        return []
    found = stretches([work for work, _ in rows], [log for _, log in rows])
    return [
        {key: rounded(value) if key in {"q10", "q90"} else value for key, value in s.model_dump().items()}
        for s in found
    ]


def _points(knots: Sequence[tuple[float, float]], peak: float, unit: str) -> list[Mapping]:
    """Knots of an efficiency curve; equal neighbours inside add nothing and are left out."""
    kept = [
        k for n, k in enumerate(knots) if n in {0, len(knots) - 1} or not (knots[n - 1][1] == k[1] == knots[n + 1][1])
    ]
    return [{"at": f"{math.ceil(at)} {unit}", "value": min(1.0, rounded(value / peak))} for at, value in kept]


def _falling(rates: Sequence[tuple[float, float]], peak: float) -> list[Mapping]:
    """Efficiency of memory by size: from the fastest size on, the nearest curve that only falls."""
    import numpy as np
    from scipy.optimize import isotonic_regression

    ordered = sorted(rates)
    fastest = max(range(len(ordered)), key=lambda n: ordered[n][1])
    # A small copy is slow for its fixed cost and not for the memory; there the curve is flat.
    values = [max(ordered[fastest][1], value) if n <= fastest else value for n, (_, value) in enumerate(ordered)]
    smooth = isotonic_regression(np.log(values), increasing=False).x
    knots = [(at, float(value)) for (at, _), value in zip(ordered, np.exp(smooth), strict=True)]
    return _points(knots, peak, "B")
