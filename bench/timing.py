"""What the benchmarks share: interleaved timing, required ratios, tables, the machine's name.

Warm: every function is called once, untimed, before its turn. Cold: a buffer larger than the last
cache is written before every single call, which evicts operands and code alike.
"""

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
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0])
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)

    def per(self, count: int) -> Timing:
        """The same for one of the `count` parts of a call."""
        return Timing(self.median / count, self.low / count, self.high / count)


def measure(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    threads: Mapping[str, int] | None = None,
    warm_up: int = 3,
) -> dict[str, Timing]:
    """All functions in turns, the order shifted by one every round; one thread if not told.

    torch's number of threads is afterwards what it was before.
    """
    before = torch.get_num_threads()
    threads = {name: (threads or {}).get(name, 1) for name in functions}
    repeats: dict[str, int] = {}
    for name, function in functions.items():
        torch.set_num_threads(threads[name])
        for _ in range(warm_up):  # compile, allocate, warm up
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
    torch.set_num_threads(before)
    return {name: Timing.of(values) for name, values in seconds.items()}


def measure_cold(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    flush: Callable[[], object],
    threads: Mapping[str, int] | None = None,
) -> dict[str, Timing]:
    """One call at a time, in turns, each after `flush`; the functions have been called before."""
    before = torch.get_num_threads()
    threads = {name: (threads or {}).get(name, 1) for name in functions}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            torch.set_num_threads(threads[name])
            flush()
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return {name: Timing.of(values) for name, values in seconds.items()}


def cache_sizes() -> dict[str, int]:
    """Bytes of the data caches of processor 0 by level, `{"L1": 49152, ...}`; empty if unknown.

    A virtual machine reports the caches of its host, which it may have to share.
    """
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1:], 1)
            sizes[f"L{level}"] = int(size.rstrip("KMG")) * unit
    return sizes


FLUSH_BYTES = 64 * 2**20
"""Least size of the buffer that evicts everything, where the caches are unknown."""


class Flush:
    """Writes a buffer an eighth larger than the last cache, at most 512 MiB."""

    def __init__(self, size: int | None = None) -> None:
        self.bytes = self.size() if size is None else size
        self.buffer = torch.zeros(self.bytes // 4)

    @staticmethod
    def size() -> int:
        last = max(cache_sizes().values(), default=0)
        return min(512 * 2**20, max(FLUSH_BYTES, last + last // 8))

    def __call__(self) -> None:
        self.buffer.add_(1.0)


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
