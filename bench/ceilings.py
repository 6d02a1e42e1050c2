"""What this machine can do at best, measured in this run: never a datasheet.

    copy      `Tensor.copy_`, one array read and one written
    triad     a = b + s c, two read and one written
    product   a large float32 matrix product, two operations per multiply-add
    latency   the shortest call there is: one number, in place, through torch's dispatcher

They are of the first quartile of the turns, not the median: a ceiling is what the machine can do
while nothing else disturbs it. Bandwidths count the bytes an operation asks for; what a processor
fetches of a line before writing it is not counted. They are measured for sizes from a cache to
memory, and read off in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from .timing import Flush, Timing, measure

SQUARE = 1024  # of the product
SIZES = (2**18, 2**21, 2**24, 2**27)  # bytes that one copy moves; the largest is added: memory's
Measure = Callable[[dict[str, Callable[[], object]], int], dict[str, Timing]]


@dataclass(frozen=True)
class Ceilings:
    """Of one device and thread count. Bandwidths in bytes/s by bytes moved, in rising order."""

    device: str
    threads: int | None
    copy: dict[int, float]
    triad: dict[int, float]
    product: float
    """Operations per second."""
    latency: float
    """Seconds per call."""
    spread: dict[str, float] = field(default_factory=dict)
    """Interquartile range over median of each measurement."""

    def bandwidth(self, kind: str, size: float) -> float:
        """Bytes per second of "copy" or "triad" when `size` bytes are moved; `inf` is memory."""
        known = {"copy": self.copy, "triad": self.triad}[kind]
        sizes = list(known)
        if size <= sizes[0] or len(sizes) == 1:
            return known[sizes[0]]
        for low, high in pairwise(sizes):
            if size <= high:
                part = (math.log(size) - math.log(low)) / (math.log(high) - math.log(low))
                return known[low] ** (1 - part) * known[high] ** part
        return known[sizes[-1]]

    def floor(self, size: float, moved: float, operations: float) -> tuple[float, str]:
        """The least seconds of a call that moves and computes this much, and what bounds it.

        `size` is what is compared with the caches: the bytes moved, or infinity for cold ones.
        """
        best = max(self.bandwidth(kind, size) for kind in ("copy", "triad"))
        bounds = {
            "latency": self.latency,
            "memory": moved / best,
            "arithmetic": operations / self.product,
        }
        bound = max(bounds, key=lambda name: bounds[name])
        return bounds[bound], bound

    def as_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "threads": self.threads,
            "copy_gb_per_s": {str(size): rate / 1e9 for size, rate in self.copy.items()},
            "triad_gb_per_s": {str(size): rate / 1e9 for size, rate in self.triad.items()},
            "product_gflop_per_s": self.product / 1e9,
            "latency_us": self.latency * 1e6,
            "relative_spread": self.spread,
        }


def functions(
    device: torch.device, sizes: Sequence[int], square: int = SQUARE
) -> dict[str, Callable[[], object]]:
    """What is timed, by "copy SIZE", "triad SIZE", "product", "latency"."""
    found: dict[str, Callable[[], object]] = {}
    for size in sizes:
        half, third = size // 8, size // 12  # elements of float32
        pair = [torch.ones(half, device=device) for _ in range(2)]
        three = [torch.ones(third, device=device) for _ in range(3)]
        found[f"copy {size}"] = lambda p=pair: p[0].copy_(p[1])  # type: ignore[misc]
        found[f"triad {size}"] = lambda t=three: torch.add(  # type: ignore[misc]
            t[1], t[2], alpha=0.5, out=t[0]
        )
    left, right, out = (torch.ones(square, square, device=device) for _ in range(3))
    found["product"] = lambda: torch.mm(left, right, out=out)
    one = torch.ones(1, device=device)
    found["latency"] = lambda: one.add_(0.0)
    return found


def summarise(
    device: str, threads: int | None, times: dict[str, Timing], square: int = SQUARE
) -> Ceilings:
    """The rates behind the times."""
    rates: dict[str, dict[int, float]] = {"copy": {}, "triad": {}}
    for name, timing in times.items():
        kind, _, size = name.partition(" ")
        if kind in rates:
            rates[kind][int(size)] = int(size) / timing.low
    return Ceilings(
        device,
        threads,
        rates["copy"],
        rates["triad"],
        2 * square**3 / times["product"].low,
        times["latency"].low,
        {name: (t.high - t.low) / t.median for name, t in times.items()},
    )


def on_cpu(threads: int, rounds: int, sizes: Sequence[int] | None = None) -> Ceilings:
    """Measured on this processor with this many threads."""
    if sizes is None:
        sizes = (*SIZES, max(2 * SIZES[-1], 2 * Flush.size()))
    times: dict[str, Timing] = {}
    for size in sizes:  # one size after the other: the arrays of the largest fill the memory
        wanted = functions(torch.device("cpu"), [size])
        if times:
            wanted = {name: run for name, run in wanted.items() if " " in name}
        times |= measure(wanted, rounds, dict.fromkeys(wanted, threads), warm_up=1)
    return summarise("cpu", threads, times)
