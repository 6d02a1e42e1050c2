"""What got slower between two reports, with a tolerance from the spread of both.

Two medians differ when they are further apart than

    tolerance = max(sqrt(S_A^2 + S_B^2), 2 % of the smaller median),  S = IQR sqrt(max(1, 15 / n))

with IQR the interquartile range of the n turns behind each: the median of few turns is worth less,
in proportion to the root of their number. For normal noise and 15 turns the root is 1.9
standard deviations of single turns, while the difference of the two medians has 0.46: four times
less, which is left for the drift between two processes that no spread within one shows. The 2 % are
for spreads that happen to be nil. Warm and cold times are compared each by itself.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .cases import BASELINES

DRIFT = 0.02
ENOUGH = 15  # turns
SLOWER = 1  # exit status
KEY = ("case", "backend", "device", "threads")
TIMES = {"warm": "", "cold": "cold_"}
Key = tuple[Any, ...]


class NotAReport(ValueError):
    """A file that `grasp bench` did not write."""


@dataclass(frozen=True)
class Difference:
    """One time in both reports, in milliseconds."""

    key: Key
    caches: str
    before: float
    after: float
    tolerance: float

    @property
    def verdict(self) -> str:
        if abs(self.after - self.before) <= self.tolerance:
            return "unchanged"
        return "slower" if self.after > self.before else "faster"

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def name(self) -> str:
        case, backend, device, threads = self.key
        where = device if threads is None else f"{device} x{threads}"
        return f"{case}, {backend} on {where}, {self.caches}"


@dataclass
class Comparison:
    """All differences, and what only one of the reports has."""

    differences: list[Difference] = field(default_factory=list)
    only_before: list[Key] = field(default_factory=list)
    only_after: list[Key] = field(default_factory=list)
    broken: list[tuple[Key, str]] = field(default_factory=list)
    """Green before, red after."""
    environment: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """What of the environment differs."""

    def of(self, verdict: str) -> list[Difference]:
        return [found for found in self.differences if found.verdict == verdict]

    @property
    def baseline_ratio(self) -> float | None:
        """Median ratio of plain torch, warm: what changed with the machine, not with the code."""
        plain = [d for d in self.differences if d.key[1] in BASELINES and d.caches == "warm"]
        return statistics.median(d.ratio for d in plain) if plain else None

    @property
    def status(self) -> int:
        """The exit status: 1 if something got slower or lost its gate."""
        return SLOWER if self.of("slower") or self.broken else 0


def tolerance(before: Mapping[str, float], after: Mapping[str, float], prefix: str = "") -> float:
    """Largest difference of the medians of two rows that counts as none, in milliseconds."""
    spreads = []
    for row in (before, after):
        few = max(1.0, ENOUGH / (row.get(f"{prefix}rounds") or ENOUGH))
        spreads.append((row[f"{prefix}q3_ms"] - row[f"{prefix}q1_ms"]) * math.sqrt(few))
    least = min(row[f"{prefix}median_ms"] for row in (before, after))
    return max(math.hypot(*spreads), DRIFT * least)


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Two reports, as `load` gives them."""
    found = Comparison()
    old, new = (
        {tuple(row[k] for k in KEY): row for row in report["rows"]} for report in (before, after)
    )
    for key, row in old.items():
        other = new.get(key)
        measured = row["median_ms"] is not None
        if other is not None and measured and other["gate"].startswith("failed"):
            found.broken.append((key, other["gate"]))
            continue
        if measured and (other is None or other["median_ms"] is None):
            found.only_before.append(key)
            continue
        if other is None or not measured:
            continue
        for caches, prefix in TIMES.items():
            medians = [r.get(f"{prefix}median_ms") for r in (row, other)]
            if None not in medians:
                allowed = tolerance(row, other, prefix)
                found.differences.append(Difference(key, caches, medians[0], medians[1], allowed))
    for key, row in new.items():
        if row["median_ms"] is not None and (key not in old or old[key]["median_ms"] is None):
            found.only_after.append(key)
    one, other_one = (report.get("environment", {}) for report in (before, after))
    for name in ("processor", "gpu", "torch", "python", "simd", "variables"):
        if one.get(name) != other_one.get(name):
            found.environment[name] = (one.get(name), other_one.get(name))
    return found


def load(path: Path) -> dict[str, Any]:
    """A `bench.json`, or the one in a folder.

    Raises:
        OSError: it cannot be read.
        NotAReport: it is something else; the message says what is missing.
    """
    path = path / "bench.json" if path.is_dir() else path
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise NotAReport(f"{path} is not JSON: {error}") from error
    wanted = {*KEY, "gate", "median_ms", "q1_ms", "q3_ms"}
    rows = report.get("rows") if isinstance(report, dict) else None
    if not isinstance(rows, list):
        raise NotAReport(f"{path} has no rows: it is not a report of grasp bench")
    for row in rows:
        if not isinstance(row, dict) or (missing := wanted - row.keys()):
            raise NotAReport(f"{path} has a row without {', '.join(sorted(missing))}")
    return {**report, "rows": rows}


def print_comparison(console: Console, found: Comparison) -> None:
    for name, (one, other) in found.environment.items():
        console.print(f"[yellow]not the same {name}:[/] {one} and {other}", highlight=False)
    table = Table(title="Slower and faster", title_justify="left", title_style="bold")
    for name in ("", "case", "before ms", "after ms", "ratio", "tolerance ms"):
        table.add_column(name, justify="left" if name in ("", "case") else "right")
    for verdict, colour in (("slower", "red"), ("faster", "green")):
        for d in sorted(found.of(verdict), key=lambda d: -abs(math.log(d.ratio))):
            numbers = (f"{value:.4g}" for value in (d.before, d.after, d.ratio, d.tolerance))
            table.add_row(f"[{colour}]{verdict}[/]", d.name, *numbers)
    if table.row_count:
        console.print(table)
    for key, gate in found.broken:
        console.print(f"[red]red now:[/] {key[0]}, {key[1]}: {gate}", highlight=False)
    for words, keys in (
        ("only in the first", found.only_before),
        ("only in the second", found.only_after),
    ):
        for key in keys:
            console.print(f"{words}: {key[0]}, {key[1]}", highlight=False)
    counts = ", ".join(f"{len(found.of(v))} {v}" for v in ("slower", "faster", "unchanged"))
    console.print(
        f"{counts}, {len(found.broken)} with a red gate, "
        f"{len(found.only_before) + len(found.only_after)} missing on one side",
        highlight=False,
    )
    if found.baseline_ratio is not None:
        console.print(
            f"plain torch, which is not ours, took {found.baseline_ratio:.2f} times as long "
            "(median): much above or below 1, or neighbours that moved together, is "
            "the machine",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        "tolerance: max(sqrt(S_A^2 + S_B^2), 2 % of the smaller median), "
        "S = IQR sqrt(max(1, 15 / turns))",
        highlight=False,
        soft_wrap=True,
    )
