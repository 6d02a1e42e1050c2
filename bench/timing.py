"""What the benchmarks share: interleaved timing, required ratios, tables, the machine's name."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

MISSED, UNAVAILABLE = 1, 2  # exit status


@dataclass
class Timing:
    """Seconds per call: the median, and the first and third quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)


def measure(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    threads: Mapping[str, int] | None = None,
) -> dict[str, Timing]:
    """All functions in turns, the order shifted by one every round; one thread if not told."""
    threads = {name: (threads or {}).get(name, 1) for name in functions}
    repeats: dict[str, int] = {}
    for name, function in functions.items():
        torch.set_num_threads(threads[name])
        for _ in range(3):  # compile, allocate, warm up
            function()
        start = time.perf_counter()
        function()
        repeats[name] = max(1, min(200, int(1e-3 / (time.perf_counter() - start))))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    for _ in range(rounds):
        for name in order:
            torch.set_num_threads(threads[name])
            functions[name]()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                functions[name]()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
        order = order[1:] + order[:1]
    torch.set_num_threads(1)
    return {name: Timing.of(values) for name, values in seconds.items()}


@dataclass
class Bar:
    """One requirement, and what was measured."""

    name: str
    measured: float
    required: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.required is None:
            return None
        return self.measured <= self.required if self.at_most else self.measured >= self.required


def times_table(title: str, timings: Mapping[str, Timing], unit: str, units: float) -> Table:
    """Medians and quartiles in ms, and the median in ns per `unit`, of which a call has `units`."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("", "median ms", "quartiles ms", f"ns / {unit}"):
        table.add_column(column, justify="left" if not column else "right")
    for name, timing in timings.items():
        table.add_row(
            name,
            f"{timing.median * 1e3:.3f}",
            f"{timing.low * 1e3:.3f} - {timing.high * 1e3:.3f}",
            f"{timing.median * 1e9 / units:.2f}",
        )
    return table


def bars_table(bars: list[Bar]) -> Table:
    table = Table(show_edge=False)
    for column in ("ratio", "measured", "required", ""):
        table.add_column(column, justify="left" if column in ("ratio", "") else "right")
    for bar in bars:
        sign = "<=" if bar.at_most else ">="
        required = "" if bar.required is None else f"{sign} {bar.required:g}"
        verdict = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[bar.met]
        table.add_row(bar.name, f"{bar.measured:.2f}", required, verdict)
    return table


def verdict(console: Console, missed: list[str]) -> int:
    """Prints what was missed; the exit status."""
    if missed:
        console.print("[red]missed on this machine:[/]", *missed, sep="\n  ", highlight=False)
    return MISSED if missed else 0


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
