"""The intra-operator problem as an integer program, in HiGHS: the linear relaxation first.

Binaries say which choice each variable has; for a table over two of them, e[i, j] >= 0 says how much of the pair is
chosen: its row sums are one variable's choices and its column sums the other's. The relaxation of this form is nearly
always integral for graphs of models, and then it is the optimum; else the same program is solved with integers, on one
thread. A limit on memory is one more row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from engines.superscaler.search.elimination import Problem

INTEGRAL = 1e-6
SECONDS = 60.0
"""After which the best that was found is taken, with its gap."""


def solve(
    problem: Problem, limit: float | None = None, bytes_of: Mapping[str, NDArray[np.float64]] | None = None
) -> tuple[dict[str, int], float]:
    """Choices for all variables, and a lower bound of the cost.

    Args:
        problem: tables over one or two variables.
        limit: on the sum of `bytes_of`, if any.
        bytes_of: variable -> bytes of each of its choices.

    Raises:
        PlanError: a table has more than two variables, or nothing fits the limit.
    """
    import highspy

    solver = highspy.Highs()
    for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0), ("time_limit", SECONDS)):
        solver.setOptionValue(option, value)
    # The solver's tolerances are absolute, and costs are seconds: make the largest one about a thousand.
    largest = max((float(np.max(table[np.isfinite(table)])) for _, table in problem.tables), default=1.0)
    scale = 1000.0 / largest if largest > 0 else 1.0
    model = _Model(problem, scale, limit, bytes_of or {})
    model.load(solver)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise PlanError("no choice of splits fits the memory limit")
    bound = solver.getInfo().objective_function_value / scale
    values = np.array(solver.getSolution().col_value)
    picked = model.picked(values)
    if picked is None:
        for column in range(model.binaries):
            solver.changeColIntegrality(column, highspy.HighsVarType.kInteger)
        solver.run()
        info = solver.getInfo()
        if info.primal_solution_status != 2:
            raise PlanError("no choice of splits fits the memory limit")
        bound = max(bound, info.mip_dual_bound / scale)
        rounded = np.array(solver.getSolution().col_value)
        picked = {name: int(np.argmax(rounded[span])) for name, span in model.spans.items()}
    return picked, bound


class _Model:
    """Columns and rows, in compressed form."""

    def __init__(
        self, problem: Problem, scale: float, limit: float | None, bytes_of: Mapping[str, NDArray[np.float64]]
    ) -> None:
        costs: list[NDArray[np.float64]] = []
        self.spans: dict[str, slice] = {}
        count = 0
        for name, choices in problem.choices.items():
            self.spans[name] = slice(count, count + choices)
            costs.append(np.zeros(choices))
            count += choices
        self.binaries = count
        entries: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        lower: list[float] = []
        upper: list[float] = []

        def row(columns: NDArray[np.int64], values: NDArray[np.float64], low: float, high: float) -> None:
            entries.append((columns, values))
            lower.append(low)
            upper.append(high)

        single = np.zeros(count)
        for name, span in self.spans.items():
            columns = np.arange(span.start, span.stop)
            row(columns, np.ones(len(columns)), 1.0, 1.0)
            del name
        for names, table in problem.tables:
            if len(names) == 1:
                single[self.spans[names[0]]] += table * scale
                continue
            if len(names) > 2:
                raise PlanError(f"a table over {len(names)} variables is not linear in pairs")
            left, right = (self.spans[name] for name in names)
            block = np.arange(count, count + table.size).reshape(table.shape)
            count += table.size
            costs.append(table.reshape(-1) * scale)
            for place in range(table.shape[0]):
                row(np.append(block[place], left.start + place), np.append(np.ones(table.shape[1]), -1.0), 0.0, 0.0)
            for place in range(table.shape[1]):
                row(np.append(block[:, place], right.start + place), np.append(np.ones(table.shape[0]), -1.0), 0.0, 0.0)
        if limit is not None:
            columns = np.concatenate([np.arange(self.spans[n].start, self.spans[n].stop) for n in bytes_of])
            weights = np.concatenate(list(bytes_of.values()))
            row(columns, weights / limit, -np.inf, 1.0)
        self.costs = np.concatenate(costs) if costs else np.zeros(0)
        self.costs[: self.binaries] = single
        self._entries, self._lower, self._upper = entries, lower, upper

    def load(self, solver: object) -> None:
        """Hand the relaxation to the solver."""
        import highspy

        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.costs), len(self._lower)
        finite = np.isfinite(self.costs)
        lp.col_cost_ = np.where(finite, self.costs, 0.0)
        lp.col_lower_ = np.zeros(len(self.costs))
        lp.col_upper_ = finite.astype(float)
        lp.row_lower_, lp.row_upper_ = np.array(self._lower), np.array(self._upper)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0, *[len(columns) for columns, _ in self._entries]])
        lp.a_matrix_.index_ = np.concatenate([columns for columns, _ in self._entries])
        lp.a_matrix_.value_ = np.concatenate([values for _, values in self._entries])
        solver.passModel(lp)  # type: ignore[attr-defined]

    def picked(self, values: NDArray[np.float64]) -> dict[str, int] | None:
        """The choices if they are integral."""
        found = {}
        for name, span in self.spans.items():
            part = values[span]
            found[name] = int(np.argmax(part))
            if part[found[name]] < 1 - INTEGRAL:
                return None
        return found
