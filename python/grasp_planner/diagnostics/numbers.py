"""Numbers of a report, where null stands for what is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLAT = 1e-12  # curvatures and gradient norms that no optimiser can use


def array(values: Any) -> Array:
    """Of a report's nested lists, NaN for null."""
    return np.array(values, dtype=np.float64)


def quartiles(values: Any) -> Array:
    """`(3, n)`: quartiles of each of n columns of `(rows, n)`, over what is finite in it."""
    rows = array(values)
    found = np.full((3, rows.shape[1]), np.nan)
    for column, numbers in enumerate(rows.T):
        finite = numbers[np.isfinite(numbers)]
        if finite.size:
            found[:, column] = np.quantile(finite, (0.25, 0.5, 0.75))
    return found


def middle(values: Any) -> float:
    """The median of what is finite, NaN of nothing."""
    numbers = array(values).reshape(-1)
    finite = numbers[np.isfinite(numbers)]
    return float(np.median(finite)) if finite.size else float("nan")


def condition(row: Mapping[str, Any], name: str = "condition") -> float:
    """Of one row of conditioning; NaN where it is flat: a ratio of nothing to nothing."""
    largest, ratio = array([row["largest"], row[name]])
    return float(ratio) if largest > FLAT else float("nan")


def downward(row: Mapping[str, Any]) -> float:
    """Of one row of conditioning: the steepest downward curvature, as a share of the steepest
    upward one; 0 where it is noise, NaN where there is nothing to compare."""
    least, largest = array([row["hessian_least"], row["hessian_largest"]])
    if not largest > FLAT:
        return float("nan")
    return float(-least / largest) if least < -1e-4 * largest else 0.0


def shown(value: float | None, digits: int = 2) -> str:
    """For people: few digits, powers of ten only where there is no other way."""
    if value is None or np.isnan(value):
        return "not finite"
    if np.isinf(value):
        return "infinite"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        whole = abs(value) >= 10 ** (digits - 1)
        return f"{value:,.0f}" if whole else f"{value:.{digits}g}"
    digits_shown, power = f"{value:.{digits - 1}e}".split("e")
    return f"{digits_shown}e{int(power)}"


def percent(share: float) -> str:
    return "not finite" if np.isnan(share) else f"{100 * share:.0f} %"
