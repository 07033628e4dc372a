"""From samples to figures, by relative error.

Every fit here minimises the squared *logarithm* of measured over fitted time with a robust loss, over sizes that are
spread geometrically. Ordinary least squares over all sizes would let the largest decide: on NCCL's A100 tables such an
alpha-beta fit is 2-3 % off on average and 51-74 % off for small messages. For the same reason errors are given for each
decade of sizes and not as one mean.

Parameters are bounded, and one that the samples do not determine is *said* not to be determined: where moving it hardly
moves any fitted time, or where it came to rest at its bound, it stays at the bound and its name is in
`unidentified` with the reason.

How far a fit is off is measured on samples it did not see: a part of the sizes is left out in turn and predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

SOFT = 0.1
"""Log residual above which a sample counts less than its square."""
FLAT = 0.02
"""A parameter is not identified where changing it by a factor of e moves no fitted time by more than this."""
TELLING = 1.5
"""A size tells something of the rate if it takes this many times as long as the smallest."""
LOWEST_LAUNCH = 0.5
"""Least that a fixed time can be, of the shortest time, where a rate that rises could explain that as well."""
HIGHEST_LAUNCH = 1.2
"""Most that a fixed time can be, of the shortest time that was measured (which has its own error)."""
AT_BOUND = 1e-3
"""Distance to a bound, in log space, that counts as resting on it."""
FOLDS = 5
SPACING = 6.0
"""Knots of a rate curve are at least this many times apart."""
STEEPEST = math.log(100.0)
"""Most that a rate changes from one knot to the next, in log space."""


@dataclass(frozen=True)
class Fit:
    """Parameters of a model of time, and how good they are."""

    model: str
    parameters: dict[str, float]
    unidentified: dict[str, str] = field(default_factory=dict)
    """Parameter -> why the samples do not tell it."""
    knots: list[tuple[float, float]] = field(default_factory=list)
    """(work, rate) of a rate curve."""
    decades: dict[str, float] = field(default_factory=dict)
    """Median absolute relative error by decade of work."""
    residuals: list[float] = field(default_factory=list)
    """ln(measured / predicted) of what was left out of the fit, case by case."""
    work: list[float] = field(default_factory=list)
    """Of each of these cases."""

    @property
    def quantiles(self) -> dict[str, float]:
        """q10, q50 and q90 of the residuals."""
        return quantiles(self.residuals)

    def to_json(self) -> dict[str, Any]:
        """Everything but the single residuals."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "unidentified": self.unidentified,
            "knots": [list(knot) for knot in self.knots],
            "median_error_by_decade": self.decades,
            "held_out_log_residuals": self.quantiles,
        }


def quantiles(residuals: Sequence[float]) -> dict[str, float]:
    """q10, q50 and q90; empty for none."""
    if not residuals:
        return {}
    low, middle, high = np.quantile(np.asarray(residuals), [0.1, 0.5, 0.9])
    return {"q10": float(low), "q50": float(middle), "q90": float(high)}


def by_decade(work: ArrayLike, residuals: ArrayLike) -> dict[str, float]:
    """Median absolute relative error of the sizes within each power of ten.

    Args:
        work: bytes or FLOP, shape (n,).
        residuals: ln(measured / fitted), shape (n,).
    """
    sizes, errors = np.asarray(work, float), np.abs(np.expm1(np.asarray(residuals, float)))
    decades = np.floor(np.log10(np.maximum(sizes, 1))).astype(int)
    return {f"1e{decade}": float(np.median(errors[decades == decade])) for decade in sorted(set(decades.tolist()))}


def alpha_beta(nbytes: ArrayLike, seconds: ArrayLike) -> Fit:
    """Latency and bandwidth: seconds = alpha + bytes / beta.

    Args:
        nbytes: sizes, shape (n,).
        seconds: times, shape (n,).

    Returns:
        Parameters `alpha` (seconds) and `beta` (bytes per second).
    """
    sizes, times = np.asarray(nbytes, float), np.asarray(seconds, float)
    names, start, bounds = ["alpha", "beta"], _start_alpha_beta(sizes, times), [(1e-12, 10.0), (1.0, 1e15)]

    def model(parameters: Array, sizes: Array) -> Array:
        return np.asarray(parameters[0] + sizes / parameters[1])

    return _relative("alpha + bytes / beta", model, names, start, bounds, sizes, times)


def ring(ranks: ArrayLike, nbytes: ArrayLike, seconds: ArrayLike) -> Fit:
    """A ring all-reduce over several group sizes: base + 2 (n-1) (step + bytes / (n rate)).

    Args:
        ranks: group sizes, shape (n,).
        nbytes: full buffers, shape (n,).
        seconds: times, shape (n,).

    Returns:
        Parameters `base` and `step` (seconds) and `rate` (bytes per second).
    """
    count, sizes, times = (np.asarray(values, float) for values in (ranks, nbytes, seconds))
    alpha, beta = _start_alpha_beta(sizes, times)
    names, start, bounds = ["base", "step", "rate"], [alpha / 2, alpha / 4, beta], [(1e-12, 10.0)] * 2 + [(1.0, 1e15)]

    def model(parameters: Array, work: Array) -> Array:
        n, size = work
        return np.asarray(parameters[0] + 2 * (n - 1) * (parameters[1] + size / n / parameters[2]))

    return _relative("base + 2 (n-1) (step + bytes / (n rate))", model, names, start, bounds, (count, sizes), times)


def rate_curve(work: ArrayLike, seconds: ArrayLike, *, rising: bool) -> Fit:
    """A fixed time and a rate that depends on the work: seconds = launch + work / rate(work).

    The rate is linear in log(work) between knots, as `emulation.figures` reads it, and only rises (kernels that fill a
    processor better) or only falls (data that leaves the caches).

    Args:
        work: FLOP or bytes, shape (n,); all zero for operators that only have a fixed time.
        seconds: times, shape (n,).
        rising: whether the rate rises with the work.

    Returns:
        Parameter `launch` (seconds), and the knots.
    """
    amount, times = np.asarray(work, float), np.asarray(seconds, float)
    some = amount > 0
    if not some.any():
        launch = float(np.exp(np.median(np.log(times))))
        left_out = [math.log(t / np.median(np.delete(times, n))) for n, t in enumerate(times)] if len(times) > 1 else []
        return Fit("launch", {"launch": launch}, residuals=left_out, work=[0.0] * len(left_out))
    amount, times = amount[some], times[some]
    least = float(np.min(times))
    # Where the fixed time is nearly all there is, a rate that falls cannot be told; it is that of the first knot.
    places = knot_places(amount if rising else amount[times > TELLING * least])
    sign = 1.0 if rising else -1.0
    fastest = float(np.max(amount / times))
    names = ["launch", "rate", *(f"step{n}" for n in range(1, len(places)))]
    first = fastest / (2.0 if rising else 1.0)
    start = [0.8 * least, first, *[math.exp(0.1)] * (len(places) - 1)]
    lowest = LOWEST_LAUNCH * least if rising else 1e-9
    bounds = [(lowest, HIGHEST_LAUNCH * least), (fastest / 1e6, fastest * 1e3)]
    bounds += [(1.0, math.exp(STEEPEST))] * (len(places) - 1)

    def rates(parameters: Array) -> Array:
        return np.asarray(parameters[1] * np.exp(sign * np.cumsum(np.log([1.0, *parameters[2:]]))))

    def model(parameters: Array, amount: Array) -> Array:
        # Rates are interpolated, not times: that is how a profile's curve is read.
        rate = np.interp(np.log(amount), np.log(places), rates(parameters))
        return np.asarray(parameters[0] + amount / rate)

    fitted = _relative("launch + work / rate(work)", model, names, start, bounds, amount, times)
    values = np.array([fitted.parameters[name] for name in names])
    knots = list(zip(places, map(float, rates(values)), strict=True))
    if knots[0][0] > np.min(amount):
        knots.insert(0, (float(np.min(amount)), knots[0][1]))
    kept = {"launch": fitted.parameters["launch"]}
    return replace(fitted, parameters=kept, knots=knots)


def knot_places(work: Array) -> list[float]:
    """Where a curve over these amounts of work has its knots: at measured ones, `SPACING` apart or more."""
    amounts = sorted(set(np.asarray(work, float).tolist()))
    if not amounts:
        raise ValueError("a rate curve needs sizes that take longer than its fixed time")
    places = [amounts[0]]
    for amount in amounts[1:]:
        if amount >= SPACING * places[-1]:
            places.append(amount)
    if len(places) > 1 and amounts[-1] > places[-1]:
        places[-1] = amounts[-1]
    return places


def table(nbytes: Sequence[int], seconds: Sequence[float]) -> tuple[list[tuple[int, float]], list[float]]:
    """Knots of a measured table: times that never fall with the size, and what is between them.

    Args:
        nbytes: sizes, rising.
        seconds: median times.

    Returns:
        (bytes, seconds) by size, the nearest non-decreasing times in log space; and ln(measured / read) at every inner
        size, read off the table without it, linear in bytes.
    """
    from scipy.optimize import isotonic_regression

    times = np.exp(isotonic_regression(np.log(np.asarray(seconds, float))).x)
    # Rounding of the logarithm must not make a time fall.
    knots = list(zip(nbytes, map(float, np.maximum.accumulate(times)), strict=True))
    left_out = []
    for n in range(1, len(knots) - 1):
        (low, fast), (high, slow) = knots[n - 1], knots[n + 1]
        read = fast + (slow - fast) * (nbytes[n] - low) / (high - low)
        left_out.append(math.log(seconds[n] / read))
    return knots, left_out


def _start_alpha_beta(sizes: Array, times: Array) -> list[float]:
    largest = int(np.argmax(sizes))
    return [max(1e-9, float(np.min(times)) / 2), max(10.0, float(sizes[largest] / times[largest]))]


def _relative(
    text: str,
    model: Callable[[Array, Any], Array],
    names: Sequence[str],
    start: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    work: Any,
    times: Array,
) -> Fit:
    """Fit in log space, cross-validate, and find out which parameters the samples determine."""
    low, high = (np.log([pair[side] for pair in bounds]) for side in (0, 1))
    initial = np.clip(np.log(start), low + 1e-6, high - 1e-6)
    everything = np.arange(len(times))
    fitted, slopes = _least_squares(model, initial, low, high, work, times, everything)
    parameters = np.exp(fitted)
    errors = np.log(times) - np.log(model(parameters, work))
    sizes = work[1] if isinstance(work, tuple) else work
    left_out = _held_out(model, fitted, low, high, work, times)
    return Fit(
        text,
        dict(zip(names, map(float, parameters), strict=True)),
        _unidentified(names, fitted, low, high, slopes),
        decades=by_decade(sizes, errors),
        residuals=[log for log in left_out if not math.isnan(log)],
        work=[float(size) for size, log in zip(sizes, left_out, strict=bool(left_out)) if not math.isnan(log)],
    )


def _least_squares(
    model: Callable[[Array, Any], Array],
    initial: Array,
    low: Array,
    high: Array,
    work: Any,
    times: Array,
    chosen: NDArray[np.int64],
) -> tuple[Array, Array]:
    """(logarithms of the parameters, d ln(time) / d ln(parameter) of shape (n, parameters))."""
    from scipy.optimize import least_squares

    part = _taken(work, chosen)
    logs = np.log(times[chosen])

    def residuals(values: Array) -> Array:
        return np.asarray(np.log(model(np.exp(values), part)) - logs)

    found = least_squares(residuals, initial, bounds=(low, high), loss="soft_l1", f_scale=SOFT)
    return np.asarray(found.x), _slopes(residuals, found.x)


def _slopes(residuals: Callable[[Array], Array], at: Array) -> Array:
    """Unscaled derivatives: those of the solver are already weighted by the robust loss."""
    from scipy.optimize import approx_fprime

    return np.asarray(approx_fprime(at, residuals, 1e-6)).reshape(-1, len(at))


def _taken(work: Any, chosen: NDArray[np.int64]) -> Any:
    return tuple(part[chosen] for part in work) if isinstance(work, tuple) else work[chosen]


def _unidentified(names: Sequence[str], fitted: Array, low: Array, high: Array, slopes: Array) -> dict[str, str]:
    found = {}
    for n, name in enumerate(names):
        if name.startswith("step") and fitted[n] - low[n] < AT_BOUND:
            # Not a missing answer: the rate is the same at both knots.
            continue
        if fitted[n] - low[n] < AT_BOUND or high[n] - fitted[n] < AT_BOUND:
            side = "lower" if fitted[n] - low[n] < AT_BOUND else "upper"
            found[name] = f"at its {side} bound {math.exp(fitted[n]):.3g}"
        elif float(np.max(np.abs(slopes[:, n]))) < FLAT:
            found[name] = f"no time depends on it by more than {FLAT:.0%}"
        elif _explained(slopes, n) < FLAT:
            found[name] = "what it does to the times, others do as well"
    return found


def _explained(slopes: Array, n: int) -> float:
    """Largest effect of parameter `n` on a time that changes of the other parameters do not have too."""
    others = np.delete(slopes, n, axis=1)
    share, *_ = np.linalg.lstsq(others, slopes[:, n], rcond=None)
    return float(np.max(np.abs(slopes[:, n] - others @ share)))


def _held_out(
    model: Callable[[Array, Any], Array], fitted: Array, low: Array, high: Array, work: Any, times: Array
) -> list[float]:
    """ln(measured / predicted) of each sample, by fits that did not see it; NaN for those of the end sizes."""
    count = len(times)
    if count <= len(fitted):
        return []
    sizes = work[1] if isinstance(work, tuple) else work
    # The ends are never left out: beyond its knots a curve claims less, and is graded so.
    inner = np.flatnonzero((sizes > np.min(sizes)) & (sizes < np.max(sizes)))
    place = np.random.default_rng(0).permutation(inner)
    folds = min(FOLDS, len(place))
    residuals = np.full(count, np.nan)
    for fold in range(folds):
        out = place[fold::folds]
        kept = np.setdiff1d(np.arange(count), out)
        values, _ = _least_squares(model, np.clip(fitted, low + 1e-6, high - 1e-6), low, high, work, times, kept)
        residuals[out] = np.log(times[out]) - np.log(model(np.exp(values), _taken(work, out)))
    return [float(value) for value in residuals]


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median ratio of pairs, at least one."""
    return max(1.0, median(a / b for a, b in zip(numerators, denominators, strict=True)))
