"""Time and peak memory of every op over N, T and D, three decades each, on one CPU thread.

Two exponents p of t ~ x^p, fitted by least squares in logarithms: over all points, and over the
last decade, where the cost of the call itself no longer flattens the line. The cache ends where the
time per element leaves its plateau (the least of the sweep) for good, by more than a quarter,
in the first quartiles of the times, which other load on the machine disturbs least; a sweep whose
arithmetic hides the memory never leaves it. Memory is `memory.peak_bytes`.

Points with at most GATED elements pass the gate first; the reference takes too long for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from .cases import ADAM, QUIET, WHITE, Case, Shape
from .gate import GREEN, Gate
from .memory import peak_bytes
from .runner import rounds_for
from .timing import cache_sizes, measure
from .variants import WORKLOADS
from .workload import fresh

DECADES = (1, 3, 10, 32, 100, 316, 1000)
WIDTHS = (8, 24, 80, 240, 800, 2400, 8000)
MODEL_WIDTHS = (1, 3, 10, 32, 100, 316, 1000)
GATED = 20_000
EXIT_FACTOR = 1.25
SECONDS = 1.0  # of turns at one point


@dataclass(frozen=True)
class Sweep:
    """An op along one axis: "N", "T" or "D"."""

    op: str
    axis: str
    values: tuple[int, ...]
    shape: Shape
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [value for value in self.options.values() if isinstance(value, str)]
        return " ".join([self.op, *words, "over", self.axis])

    def case(self, value: int) -> Case:
        sizes = {"N": self.shape.plans, "T": self.shape.steps, "D": self.shape.features}
        sizes[self.axis] = value
        shape = replace(self.shape, plans=sizes["N"], steps=sizes["T"], features=sizes["D"])
        return Case(self.op, shape, self.options)


def _sweeps() -> tuple[Sweep, ...]:
    plain, model = Shape(8, 50, 64), Shape(4, 20, 8, 2, 64, 2)
    found = []
    for op, options, shape, widths in (
        ("lifted_step_", WHITE, plain, WIDTHS),
        ("lifted_step_", QUIET, plain, WIDTHS),
        ("lifted_loss", {}, plain, WIDTHS),
        ("action_step_", ADAM, plain, WIDTHS),
        ("gaussian_noise", WHITE, plain, WIDTHS),
        ("mlp_rollout", {}, model, MODEL_WIDTHS),
        ("mlp_rollout_backward", {}, model, MODEL_WIDTHS),
        ("mlp_lifted_plan_", {"noise": "white", "iterations": 4}, model, MODEL_WIDTHS),
        ("mlp_sync_", {"sync_steps": 2}, model, MODEL_WIDTHS),
    ):
        for axis, values in (("N", DECADES), ("T", DECADES), ("D", widths)):
            found.append(Sweep(op, axis, values, shape, options))
    return tuple(found)


SWEEPS = _sweeps()


@dataclass(frozen=True)
class Point:
    """One size. Times of one part, in milliseconds; `bytes` are those that the op counts."""

    value: int
    elements: int
    bytes: float
    median_ms: float
    q1_ms: float
    q3_ms: float
    ns_per_element: float
    peak_bytes: int
    gate: str


@dataclass
class Curve:
    """A sweep, measured, and what its points say."""

    sweep: Sweep
    points: list[Point] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        values = [p.value for p in self.points]
        times = [p.median_ms for p in self.points]
        top = [i for i, v in enumerate(values) if 10 * v >= values[-1]] if values else []
        leaves = cache_exit([p.q1_ms / p.elements for p in self.points])
        memory = [(p.value, p.peak_bytes) for p in self.points if p.peak_bytes > 0]
        return {
            "name": self.sweep.name,
            "op": self.sweep.op,
            "axis": self.sweep.axis,
            "shape": str(self.sweep.shape),
            "exponent": exponent(values, times),
            "exponent_last_decade": exponent([values[i] for i in top], [times[i] for i in top]),
            "memory_exponent": exponent([v for v, _ in memory], [b for _, b in memory]),
            "cache_exit_bytes": None if leaves is None else self.points[leaves].bytes,
            "cache_exit_beyond": None if leaves is None else beyond(self.points[leaves].bytes),
            "points": [asdict(point) for point in self.points],
        }


def exponent(values: Sequence[float], times: Sequence[float]) -> float | None:
    """p of the least-squares line log t = p log x + c; None of fewer than two different x."""
    x, y = ([math.log(number) for number in numbers] for numbers in (values, times))
    if len(set(x)) < 2:
        return None
    middle, height = sum(x) / len(x), sum(y) / len(y)
    along = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return along / sum((a - middle) ** 2 for a in x)


def cache_exit(per_element: Sequence[float], factor: float = EXIT_FACTOR) -> int | None:
    """The first place after the least from which all stay above `factor` times the least."""
    if not per_element:
        return None
    least = min(per_element)
    last_inside = max(i for i, value in enumerate(per_element) if value <= factor * least)
    return last_inside + 1 if last_inside + 1 < len(per_element) else None


def beyond(size: float, caches: dict[str, int] | None = None) -> str:
    """The largest cache that is smaller than `size` bytes."""
    known = cache_sizes() if caches is None else caches
    smaller = [name for name, capacity in known.items() if capacity < size]
    return f"beyond {smaller[-1]}" if smaller else "within L1" if known else "caches unknown"


def measured(sweep: Sweep, seconds: float = SECONDS, most_rounds: int = 15) -> Curve:
    """Runs a sweep from small to large; stops at a point whose gate is red."""
    curve = Curve(sweep)
    torch.set_num_threads(1)
    for value in sweep.values:
        point = _point(value, sweep.case(value), seconds, most_rounds)
        if point is None:
            break
        curve.points.append(point)
    return curve


def _point(value: int, case: Case, seconds: float, most_rounds: int) -> Point | None:
    """One size, or None where the gate is red."""
    workload = WORKLOADS[case.op]
    operands = workload.operands(case, torch.device("cpu"))
    elements = case.shape.plans * case.shape.steps * case.shape.features
    gate = "not gated: too large for the reference"
    if elements <= GATED:
        gate = Gate(case, workload, operands).judge(partial(workload.fused, case)).text
        if gate != GREEN:
            return None
    given = fresh(operands)
    run = partial(workload.fused, case, given)
    run()
    peak = peak_bytes(run, list(given.values()))
    turn = measure({"": run}, 1, warm_up=1)[""].median
    rounds = rounds_for(turn, seconds, 3, most_rounds)
    timing = measure({"": run}, rounds, warm_up=1)[""].per(case.parts)
    return Point(
        value=value,
        elements=elements,
        bytes=workload.cost(case).bytes,
        median_ms=1e3 * timing.median,
        q1_ms=1e3 * timing.low,
        q3_ms=1e3 * timing.high,
        ns_per_element=1e9 * timing.median / elements,
        peak_bytes=peak,
        gate=gate,
    )
