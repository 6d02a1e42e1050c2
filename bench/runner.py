"""A case becomes rows of numbers: gate, then turns with warm caches, then with cold ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from grasp_kernels.costs import Cost

from .cases import Case
from .ceilings import Ceilings
from .gate import Gate, Verdict
from .memory import peak_bytes
from .timing import Flush, Timing, measure, measure_cold
from .variants import WORKLOADS, Variant, variants
from .workload import Operands, fresh


@dataclass(frozen=True)
class Settings:
    """How long to look.

    Attributes:
        rounds, least_rounds: turns of a case with warm caches; fewer, down to the least, where a
            turn takes so long that `seconds` would not do for all.
        cold_rounds: calls with cold caches; 0 leaves them out.
        threads: of the op itself, each a row. Baselines run on the first alone if `quick`.
    """

    rounds: int = 25
    least_rounds: int = 5
    cold_rounds: int = 9
    seconds: float = 10.0
    threads: tuple[int, ...] = (1,)
    compile: bool = True
    quick: bool = False

    @classmethod
    def hurried(cls, **changes: Any) -> Settings:
        given: dict[str, Any] = {"rounds": 15, "cold_rounds": 5, "seconds": 1.0, "quick": True}
        return cls(**{**given, **changes})


@dataclass
class Row:
    """One line of the report: a case on a backend. Times are of one `part`, in milliseconds."""

    case: str
    op: str
    shape: str
    dtype: str
    backend: str
    device: str
    threads: int | None
    gate: str
    gate_error: float | None = None
    gate_tolerance: float | None = None
    part: str = "call"
    parts_per_launch: int = 1
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    rounds: int = 0
    cold_median_ms: float | None = None
    cold_q1_ms: float | None = None
    cold_q3_ms: float | None = None
    cold_rounds: int = 0
    bytes: float = 0
    bytes_read: float = 0
    bytes_written: float = 0
    operations: float = 0
    noise_operations: float = 0
    bandwidth_gb_per_s: float | None = None
    rate_gop_per_s: float | None = None
    fraction_of_ceiling: float | None = None
    bound: str | None = None
    of_copy: float | None = None
    of_triad: float | None = None
    of_product: float | None = None
    of_latency: float | None = None
    cold_fraction_of_ceiling: float | None = None
    temporary_bytes: int | None = None
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def counted(row: Row, cost: Cost, parts: int) -> None:
    """Writes what the op counts into the row, per part."""
    row.parts_per_launch = parts
    row.bytes, row.bytes_read, row.bytes_written, row.operations, row.noise_operations = (
        value / parts
        for value in (
            cost.bytes,
            cost.bytes_read,
            cost.bytes_written,
            cost.operations,
            cost.noise,
        )
    )


def timed(
    row: Row, cost: Cost, parts: int, ceilings: Ceilings, warm: Timing, cold: Timing | None
) -> None:
    """Writes the times of a launch into the row, and what they are of the ceilings."""
    part = warm.per(parts)
    row.median_ms, row.q1_ms, row.q3_ms = (1e3 * t for t in (part.median, part.low, part.high))
    operations = cost.operations + cost.noise
    row.bandwidth_gb_per_s = cost.bytes / warm.median / 1e9
    row.rate_gop_per_s = operations / warm.median / 1e9
    floor, row.bound = ceilings.floor(cost.bytes, cost.bytes, operations)
    row.fraction_of_ceiling = floor / warm.median
    row.of_copy, row.of_triad = (
        cost.bytes / warm.median / ceilings.bandwidth(kind, cost.bytes)
        for kind in ("copy", "triad")
    )
    row.of_product = operations / warm.median / ceilings.product
    row.of_latency = ceilings.latency / warm.median
    if cold is not None:
        part = cold.per(parts)
        row.cold_median_ms, row.cold_q1_ms, row.cold_q3_ms = (
            1e3 * t for t in (part.median, part.low, part.high)
        )
        floor, _ = ceilings.floor(float("inf"), cost.bytes, operations)
        row.cold_fraction_of_ceiling = floor / cold.median


class CPURunner:
    """Runs cases on this processor. `ceilings` by thread count."""

    device = torch.device("cpu")

    def __init__(
        self, settings: Settings, ceilings: Mapping[int, Ceilings], flush: Flush | None = None
    ) -> None:
        self.settings, self.ceilings = settings, ceilings
        self.flush = flush if flush or not settings.cold_rounds else Flush()

    def rows(self, case: Case) -> list[Row]:
        """All rows of a case; a variant whose gate is red has no numbers."""
        settings, workload = self.settings, WORKLOADS[case.op]
        torch.set_num_threads(1)
        operands = workload.operands(case, self.device)
        cost = workload.cost(case)
        compile = settings.compile and (case.quick_compiled or not settings.quick)
        found = variants(case, self.device, compile=compile)
        gate = Gate(case, workload, operands)
        rows, runs = [], {}
        for index, variant in enumerate(found):
            verdict = gate.judge(variant.run, own_noise=variant.own_noise)
            peak = self._peak(variant, operands) if verdict.green else None
            several = index == 0 or not settings.quick
            for threads in settings.threads if several else settings.threads[:1]:
                row = self._row(case, variant.backend, threads, verdict)
                counted(row, cost, case.parts)
                row.temporary_bytes = peak
                rows.append(row)
                if verdict.green:
                    runs[len(rows) - 1] = partial(variant.run, fresh(operands))
        self._time(case, cost, rows, runs)
        if "compiled" in case.baselines and not compile:
            reason = "--quick compiles one case" if settings.compile else "--no-compile"
            verdict = Verdict(f"not run: {reason}", 0.0, gate.tolerance)
            rows.append(self._row(case, "compiled", settings.threads[0], verdict))
        return rows

    def _row(self, case: Case, backend: str, threads: int, verdict: Verdict) -> Row:
        ran = not verdict.text.startswith("not run")
        return Row(
            case=case.name,
            op=case.op,
            shape=str(case.shape),
            dtype=str(case.dtype).removeprefix("torch."),
            backend=backend,
            device=str(self.device),
            threads=threads,
            gate=verdict.text,
            gate_error=verdict.error if math.isfinite(verdict.error) and ran else None,
            gate_tolerance=verdict.tolerance if ran else None,
            part=case.part,
        )

    def _peak(self, variant: Variant, operands: Operands) -> int | None:
        if variant.backend == "compiled":  # a dispatch mode would make it compile once more
            return None
        given = fresh(operands)
        variant.run(given)  # optimiser memory is made once
        return peak_bytes(lambda: variant.run(given), list(given.values()))

    def _time(
        self,
        case: Case,
        cost: Cost,
        rows: Sequence[Row],
        runs: Mapping[int, Callable[[], object]],
    ) -> None:
        if not runs:
            return
        settings = self.settings
        names = {str(index): run for index, run in runs.items()}
        threads = {name: rows[int(name)].threads or 1 for name in names}
        turn = one_turn(names, threads)
        rounds = rounds_for(turn, settings.seconds, settings.least_rounds, settings.rounds)
        warm = measure(names, rounds, threads, warm_up=2)
        cold: dict[str, Timing] = {}
        if self.flush is not None:
            flush_turn = turn + len(names) * one_turn({"": self.flush}, {"": 1})
            cold_rounds = rounds_for(flush_turn, settings.seconds, 3, settings.cold_rounds)
            cold = measure_cold(names, cold_rounds, self.flush, threads)
        for name in names:
            row = rows[int(name)]
            row.rounds = rounds
            timed(row, cost, case.parts, self.ceilings[threads[name]], warm[name], cold.get(name))
            row.cold_rounds = cold_rounds if name in cold else 0


def one_turn(functions: Mapping[str, Callable[[], object]], threads: Mapping[str, int]) -> float:
    """Seconds of one call of each, the third: a compiler may take two for its last word."""
    total = 0.0
    for name, function in functions.items():
        torch.set_num_threads(threads[name])
        function()
        function()
        start = time.perf_counter()
        function()
        total += time.perf_counter() - start
    return total


def rounds_for(turn: float, seconds: float, least: int, most: int) -> int:
    """As many turns as fit; a turn of `measure` calls everything twice, or for a millisecond."""
    return max(least, min(most, int(seconds / max(2 * turn, 1e-9))))


def unmeasured(case: Case, device: torch.device, reason: str) -> Row:
    """A row that says why there is nothing on it."""
    dtype = str(case.dtype).removeprefix("torch.")
    text = f"not run: {reason}"
    return Row(case.name, case.op, str(case.shape), dtype, "all", str(device), None, text)


def run_all(
    runner: Any, cases: Sequence[Case], deadline: float = float("inf")
) -> Iterator[tuple[Case, list[Row]]]:
    """Case after case; those that would begin after `deadline` (perf_counter) are not run."""
    for case in cases:
        if time.perf_counter() > deadline:
            yield case, [unmeasured(case, runner.device, "the time of --quick was spent")]
        else:
            yield case, runner.rows(case)
