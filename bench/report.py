"""The results as they leave: a terminal table, JSON, CSV. The page is in page.py."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import grasp_kernels
from grasp_kernels import native

from .ceilings import Ceilings
from .gate import GREEN
from .runner import Row, Settings
from .timing import cache_sizes, processor

SCHEMA = 1  # of bench.json
METHOD = (
    "Times are medians with the first and third quartile, wall clock, of turns in which all "
    "variants of a case run one after the other in one process (on a GPU: CUDA events around "
    "captured graphs). Warm: each is called once, untimed, before its turn. Cold: a buffer larger "
    "than the last cache is written before every call (on a GPU: rotating buffers). Bytes and "
    "operations are counted by the op from its shapes (grasp_kernels/costs.py), each array once, "
    "and are the same for every backend. The ceiling is the largest of the latency of a call, the "
    "bytes at the better bandwidth of copy and triad for that many bytes (for cold caches, of "
    "memory), and the operations at the rate of a large matrix product; all measured in this run, "
    "first quartiles. A fraction can exceed 100 %: copy and product have their own spread. No "
    "number stands where the gate is not green."
)


@dataclass
class Report:
    """Everything measured so far."""

    settings: Settings
    rows: list[Row] = field(default_factory=list)
    ceilings: list[Ceilings] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    scaling: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def red(self) -> list[Row]:
        return [row for row in self.rows if row.gate.startswith("failed")]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "began": self.began,
            "interrupted": self.interrupted,
            "environment": environment(),
            "settings": {f.name: getattr(self.settings, f.name) for f in fields(Settings)},
            "method": METHOD,
            "absent": self.absent,
            "ceilings": [found.as_json() for found in self.ceilings],
            "rows": [row.as_json() for row in self.rows],
            "scaling": self.scaling,
        }

    def write(self, out: Path) -> None:
        """`bench.json` and `bench.csv` into `out`; each appears whole or not at all."""
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "bench.json", json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n")
        temporary = out / "bench.csv.part"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)])
            writer.writeheader()
            writer.writerows(row.as_json() for row in self.rows)
        temporary.replace(out / "bench.csv")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def environment() -> dict[str, Any]:
    """What a number depends on."""
    available, reason = native.status()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": processor(),
        "logical_processors": os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "caches_bytes": cache_sizes(),
        "gpu": gpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grasp_kernels": grasp_kernels.__version__,
        "native": reason,
        "simd": native.simd() if available else None,
        "variables": {
            name: os.environ[name]
            for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GRASP_KERNELS_SIMD")
            if name in os.environ
        },
    }


# -------------------------------------------------------------------------------------- the tables


def ceilings_table(ceilings: Sequence[Ceilings]) -> Table:
    table = Table(title="Ceilings, measured in this run", title_justify="left", title_style="bold")
    for name in ("device", "threads", "copy GB/s", "triad GB/s", "product GFLOP/s", "call us"):
        table.add_column(name, justify="left" if name == "device" else "right")
    for found in ceilings:
        ends = (list(rates.values()) for rates in (found.copy, found.triad))
        table.add_row(
            found.device,
            "" if found.threads is None else str(found.threads),
            *(
                f"{rates[0]:.1f} cache, {rates[-1]:.1f} memory"
                for rates in ([rate / 1e9 for rate in end] for end in ends)
            ),
            f"{found.product / 1e9:.1f}",
            f"{found.latency * 1e6:.2f}",
        )
    return table


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits; nothing for nothing."""
    if value is None:
        return ""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text and abs(value) >= 1 else text


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.{1 if value < 0.1 else 0}f}"


COLUMNS = ("case", "on", "ms", "quartiles", "cold ms", "GB/s", "Gop/s", "% of ceiling", "bound")


def cells(row: Row) -> list[str]:
    """A row of the table, by `COLUMNS`."""
    threads = "" if row.threads is None else f" x{row.threads}"
    if row.gate != GREEN:
        return [row.case, row.backend + threads, row.gate, "", "", "", "", "", ""]
    per = "" if row.part == "call" else f" / {row.part}"
    return [
        row.case,
        row.backend + threads,
        number(row.median_ms) + per,
        f"{number(row.q1_ms)} - {number(row.q3_ms)}",
        number(row.cold_median_ms),
        number(row.bandwidth_gb_per_s),
        number(row.rate_gop_per_s),
        percent(row.fraction_of_ceiling),
        row.note or row.bound or "",
    ]


def rows_table(rows: Sequence[Row]) -> Table:
    """Rows that ran, red ones included."""
    table = Table(title="Cases", title_justify="left", title_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("case", "on", "bound") else "right")
    last = ""
    for row in rows:
        if row.gate.startswith("not run"):
            continue
        if row.case != last and last:
            table.add_section()
        text = cells(row)
        style = "red" if row.gate.startswith("failed") else None
        table.add_row("" if row.case == last else text[0], *text[1:], style=style)
        last = row.case
    return table


def print_report(console: Console, report: Report) -> None:
    console.print(ceilings_table(report.ceilings))
    console.print(rows_table(report.rows))
    skipped = Counter(
        f"{r.gate} ({r.backend})" for r in report.rows if r.gate.startswith("not run")
    )
    for reason, count in skipped.items():
        console.print(f"{reason}: {count} rows", highlight=False)
    for name, reason in report.absent.items():
        console.print(f"not here: {name} ({reason})", highlight=False)
    for row in report.red:
        console.print(f"[red]red gate:[/] {row.case} on {row.backend}: {row.gate}", highlight=False)
