"""The correctness gate: a variant is timed only after its results equal the float64 reference's.

The error of a result is the largest of |result - expected| / max(|expected|, rms(expected)). Plain
torch draws its own noise: it is compared with its noise off, and the noise that it then adds must
have the mean 0 and the variance of the one asked for, within six standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grasp_kernels.backends import choose
from grasp_kernels.testing import UNIT_ROUNDOFF, errors

from .cases import Case
from .workload import Operands, Results, Workload, fresh, widened

GREEN = "green"
CHANCE = 6.0  # standard errors of a mean or a variance of the noise


@dataclass(frozen=True)
class Verdict:
    """`text` is "green", or what is wrong; `error` the largest found, of `tolerance`."""

    text: str
    error: float
    tolerance: float

    @property
    def green(self) -> bool:
        return self.text == GREEN


def tolerance(case: Case, workload: Workload) -> float:
    """Of the case's dtype: narrow storage is rounded once, or twice where two updates follow."""
    if case.dtype == torch.float32:
        return workload.tolerance
    return workload.tolerance + 2 * UNIT_ROUNDOFF[case.dtype]


class Gate:
    """Judges the variants of one case; what the reference gave is kept."""

    def __init__(self, case: Case, workload: Workload, operands: Operands) -> None:
        self.case, self.workload, self.operands = case, workload, operands
        self.tolerance = tolerance(case, workload)
        self.truths: dict[bool, Results] = {}

    def expected(self, quiet: bool) -> Results:
        """What the reference makes of the same numbers in float64, with noise or without."""
        if quiet not in self.truths:
            given = {**self.operands, "noise_scale": 0.0} if quiet else self.operands
            tensors = (value for value in given.values() if isinstance(value, Tensor))
            device = next((tensor.device for tensor in tensors), torch.device("cpu"))
            assert choose(device, torch.float64) == "reference"
            self.truths[quiet] = self.workload.fused(self.case, widened(given))
        return self.truths[quiet]

    def judge(self, run: Callable[[Operands], Results], *, own_noise: bool = False) -> Verdict:
        """Runs a variant on copies of the operands, and says how it did; it never raises."""
        quiet = own_noise and self.case.options.get("noise") in ("white", "bridge")
        try:
            given = {**self.operands, "noise_scale": 0.0} if quiet else self.operands
            error, wrong = compare(run(fresh(given)), self.expected(quiet), self.tolerance)
            if quiet and not wrong:
                wrong = _noise_is_wrong(self.case, self.workload, run, self.operands)
        except Exception as failure:  # a baseline that cannot run here is a finding, not a crash
            first = str(failure).strip().split("\n", 1)[0]
            text = f"failed: {type(failure).__name__}: {first[:200]}"
            return Verdict(text, math.inf, self.tolerance)
        return Verdict(f"failed: {wrong}" if wrong else GREEN, error, self.tolerance)


def compare(results: Results, truths: Results, limit: float) -> tuple[float, str]:
    """The largest error of all results, and what is wrong ("" if nothing is)."""
    worst, wrong = 0.0, ""
    if results.keys() != truths.keys():
        return math.inf, f"gave {sorted(results)}, expected {sorted(truths)}"
    for name, truth in truths.items():
        result = results[name]
        if result.shape != truth.shape:
            return math.inf, f"{name} has shape {tuple(result.shape)}, not {tuple(truth.shape)}"
        if not bool(torch.equal(torch.isfinite(result), torch.isfinite(truth))):
            return math.inf, f"{name} is not finite where it should be"
        error = errors(result, truth).elementwise
        if not error <= limit and not wrong:
            wrong = f"{name} is off by {error:.2g}, allowed {limit:.2g}"
        worst = max(worst, error)
    return worst, wrong


def _noise_is_wrong(
    case: Case, workload: Workload, run: Callable[[Operands], Results], operands: Operands
) -> str:
    """The noise of one call, or of one iteration, is looked at by itself."""
    assert workload.deviation is not None
    if "schedule" in operands:
        operands = {**operands, "schedule": operands["schedule"][:1]}
        case = replace(case, options={**case.options, "iterations": 1})
    quiet, _ = workload.deviation(case, run(fresh({**operands, "noise_scale": 0.0})))
    quiet = quiet.clone()
    noisy, deviation = workload.deviation(case, run(fresh({**operands, "noise_scale": 1.0})))
    noise = noisy.double() - quiet.double()  # at scale 1, where narrow storage can show it
    if deviation is not None:
        noise = noise / deviation
    # Rows of a bridge move together: its waves count, not its rows.
    rows = noise.shape[1] if case.options["noise"] == "white" else 1
    return standard_normal(noise, noise.shape[0] * rows * noise.shape[2])


def standard_normal(noise: Tensor, independent: int) -> str:
    """What is wrong with numbers of which `independent` are independent ("" if nothing is)."""
    if noise.numel() == 0:
        return ""
    mean, variance = float(noise.mean()), float(noise.square().mean())
    if not abs(mean) <= CHANCE / math.sqrt(independent):
        return f"its noise has mean {mean:.3g}, not 0"
    if not abs(variance - 1) <= CHANCE * math.sqrt(2 / independent):
        return f"its noise has variance {variance:.3g}, not 1"
    return ""
