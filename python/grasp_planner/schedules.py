"""How a coefficient changes over the iterations of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

KINDS = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A value for every iteration k = 1 ... K, from `start` to `end`.

        constant    start
        linear      start + (end - start) p                          p = (k - 1) / (K - 1)
        cosine      end + (start - end) (1 + cos(pi p)) / 2

    A schedule is a function of k alone, so a planner can tabulate it on the device before the loop.

    Attributes:
        start: in iteration 1. Finite and >= 0, and within the range of the option that it is for.
        end: in iteration K, in the same range; of a constant schedule, and of no other, None. None.
        kind: "constant", "linear" or "cosine". "constant".
    """

    start: float
    end: float | None = None
    kind: str = "constant"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(map(repr, KINDS))}, got {self.kind!r}"
            )
        if (self.end is None) != (self.kind == "constant"):
            raise ValueError(
                f"end must be given for a {self.kind!r} schedule"
                if self.end is None
                else f"end must be None for a constant schedule, got {self.end}"
            )
        numbers: dict[str, Any] = {"start": self.start}
        if self.end is not None:
            numbers["end"] = self.end
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {type(value).__name__}")
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value}")

    def __str__(self) -> str:
        if self.end is None:
            return f"{self.start:g}"
        return f"{self.start:g} to {self.end:g}, {self.kind}"

    def __call__(self, iteration: int, iterations: int) -> float:
        """The value at `iteration` (from 1) of `iterations`."""
        if self.end is None:
            return self.start
        progress = (iteration - 1) / max(iterations - 1, 1)
        if self.kind == "linear":
            return self.start + (self.end - self.start) * progress
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


def geometric(start: float, end: float, iteration: int, iterations: int) -> float:
    """From `start` in iteration 1 to `end` in the last one, by the same factor each time."""
    return float(start * (end / start) ** ((iteration - 1) / max(iterations - 1, 1)))
