"""One HTML page with everything in it: tables, a roofline per device, the sweeps. No links out."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import plots
from .gate import GREEN
from .report import METHOD, Report, environment, number, percent
from .runner import Row

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2rem auto;
       max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e4e4e4; }
th { text-align: right; border-bottom: 2px solid #888; vertical-align: bottom; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
tr.red td { color: #a40000; } tr.skipped td { color: #777; }
tr.first td { border-top: 2px solid #cfcfcf; }
img { max-width: 100%; height: auto; } .note { color: #555; max-width: 60rem; }
"""

COLUMNS = (
    "no.",
    "case",
    "backend",
    "threads",
    "gate: error (allowed)",
    "warm ms",
    "quartiles ms",
    "cold ms",
    "cold quartiles ms",
    "bytes",
    "operations",
    "of noise",
    "GB/s",
    "Gop/s",
    "% of ceiling",
    "bound",
    "% of copy",
    "% of triad",
    "% of product",
    "cold % of ceiling",
    "temporary bytes",
)


def write_page(report: Report, path: Path) -> None:
    """Writes the page, whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(page(report), encoding="utf-8")
    temporary.replace(path)


def page(report: Report) -> str:
    """The whole document."""
    numbers = {name: i + 1 for i, name in enumerate(dict.fromkeys(r.case for r in report.rows))}
    parts = [
        "<h1>grasp bench</h1>",
        f"<p>{_text(_headline(report))}</p>",
        "<h2>How it was measured</h2>",
        f'<p class="note">{_text(METHOD)}</p>',
        "<h2>Ceilings of this machine, in this run</h2>",
        _ceilings(report),
        "<h2>Rooflines</h2>",
        _rooflines(report, numbers),
        "<h2>Cases</h2>",
        f'<p class="note">{_text(_units())}</p>',
        _cases(report.rows, numbers),
        _absent(report),
        *_scaling(report),
        "<h2>Environment</h2>",
        _table(("what", "value"), ([k, str(v)] for k, v in environment().items())),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>grasp bench</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _headline(report: Report) -> str:
    green = sum(row.gate == GREEN for row in report.rows)
    state = "interrupted: incomplete. " if report.interrupted else ""
    machine = environment()
    where = machine["gpu"] or "no GPU"
    return (
        f"{state}{report.began}, {machine['processor']}, {where}, torch {machine['torch']}: "
        f"{green} rows measured, {len(report.red)} with a red gate."
    )


def _units() -> str:
    return (
        "ms: milliseconds of one call, or of one iteration or sync step where the case says so. "
        "Bytes, operations and noise operations are of the same. GB/s: 10⁹ bytes per second; "
        "Gop/s: 10⁹ operations per second, those of the noise included. % of ceiling: the floor "
        "over the warm median, and what bounds the floor. Temporary bytes: storages that torch "
        "operations made during a call, at their peak; what native code allocates by itself is not "
        "seen."
    )


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] | None = None
) -> str:
    lines = ["".join(f"<th>{_text(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    names = ["", *(classes or [""] * (len(lines) - 1))]
    inner = "\n".join(
        f'<tr class="{name}">{line}</tr>' if name else f"<tr>{line}</tr>"
        for line, name in zip(lines, names, strict=True)
    )
    return f'<div class="wide"><table>\n{inner}\n</table></div>'


def _ceilings(report: Report) -> str:
    rows = []
    for found in report.ceilings:
        threads = "" if found.threads is None else str(found.threads)
        for size in found.copy:
            rows.append(
                [
                    found.device,
                    threads,
                    _bytes(size),
                    f"{found.copy[size] / 1e9:.1f}",
                    f"{found.triad[size] / 1e9:.1f}",
                    f"{found.product / 1e9:.1f}",
                    f"{found.latency * 1e6:.2f}",
                ]
            )
    head = (
        "device",
        "threads",
        "bytes moved",
        "copy GB/s",
        "triad GB/s",
        "product Gop/s",
        "call µs",
    )
    return _table(head, rows)


def _bytes(value: float | None) -> str:
    if value is None:
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _image(data: str, words: str) -> str:
    return f'<p><img alt="{_text(words)}" src="data:image/png;base64,{data}"></p>'


def _rooflines(report: Report, numbers: dict[str, int]) -> str:
    if not plots.available():
        return (
            "<p>matplotlib is not installed: no pictures (pip install 'grasp-kernels[bench]').</p>"
        )
    words = (
        '<p class="note">Numbers at the points of the fused ops are those of the cases below. '
        "Points above the memory line have their operands in a cache.</p>"
    )
    return words + "".join(
        _image(plots.roofline(found, report.rows, numbers), f"roofline of {found.device}")
        for found in report.ceilings
    )


def _cases(rows: Sequence[Row], numbers: dict[str, int]) -> str:
    lines, classes, last = [], [], ""
    for row in rows:
        first = row.case != last
        last = row.case
        name = row.case if row.part == "call" else f"{row.case}, per {row.part}"
        start = [str(numbers[row.case]) if first else "", name if first else "", row.backend]
        start.append("" if row.threads is None else str(row.threads))
        if row.gate != GREEN:
            lines.append([*start, row.gate, *[""] * (len(COLUMNS) - 5)])
            classes.append("red" if row.gate.startswith("failed") else "skipped")
            continue
        quartiles = (
            f"{number(a)} – {number(b)}" if a is not None else ""
            for a, b in ((row.q1_ms, row.q3_ms), (row.cold_q1_ms, row.cold_q3_ms))
        )
        warm, cold = quartiles
        lines.append(
            [
                *start,
                f"green: {number(row.gate_error, 2)} ({number(row.gate_tolerance, 2)})",
                number(row.median_ms),
                warm,
                number(row.cold_median_ms),
                cold,
                _bytes(row.bytes),
                f"{row.operations:,.0f}",
                f"{row.noise_operations:,.0f}",
                number(row.bandwidth_gb_per_s),
                number(row.rate_gop_per_s),
                percent(row.fraction_of_ceiling),
                row.note or row.bound or "",
                percent(row.of_copy),
                percent(row.of_triad),
                percent(row.of_product),
                percent(row.cold_fraction_of_ceiling),
                _bytes(row.temporary_bytes),
            ]
        )
        classes.append("first" if first else "")
    return _table(COLUMNS, lines, classes)


def _absent(report: Report) -> str:
    if not report.absent:
        return ""
    items = "".join(f"<li>{_text(name)}: {_text(why)}</li>" for name, why in report.absent.items())
    return f"<h2>Not measured here</h2><ul>{items}</ul>"


def _scaling(report: Report) -> list[str]:
    if not report.scaling:
        return []
    parts = [
        "<h2>Growth over N, T and D</h2>",
        '<p class="note">One CPU thread, warm caches, the fused ops. Exponents are least-squares '
        "slopes in logarithms. The cache ends at the first size from which the time per element "
        "stays more than a quarter above the least of the sweep, by first quartiles; blank where "
        "it never does. Other load on the machine, and large arrays that are allocated anew at "
        "every call, can look the same. In the plots of single ops, the slope of time is that of "
        "the last decade.</p>",
    ]
    if plots.available():
        for axis in ("N", "T", "D"):
            for quantity in ("median_ms", "peak_bytes"):
                picture = plots.scaling(report.scaling, axis, quantity)
                if picture:
                    parts.append(_image(picture, f"{quantity} over {axis}"))
    head = (
        "sweep",
        "around",
        "points",
        "exponent",
        "exponent, last decade",
        "exponent of memory",
        "leaves the cache at",
        "which is",
        "largest ms",
        "largest peak",
    )
    rows = []
    for curve in report.scaling:
        points = curve["points"]
        rows.append(
            [
                curve["name"],
                curve["shape"],
                f"{points[0]['value']} … {points[-1]['value']}" if points else "gate red",
                *(
                    "" if curve[key] is None else f"{curve[key]:.2f}"
                    for key in ("exponent", "exponent_last_decade", "memory_exponent")
                ),
                _bytes(curve["cache_exit_bytes"]),
                curve["cache_exit_beyond"] or "",
                number(points[-1]["median_ms"]) if points else "",
                _bytes(points[-1]["peak_bytes"]) if points else "",
            ]
        )
    parts.append(_table(head, rows))
    for name, curves in _by_op(report.scaling).items():
        parts.append(f"<h3>{_text(name)}</h3>")
        picture = plots.growth(curves) if plots.available() else ""
        if picture:
            parts.append(_image(picture, f"{name}: time and peak memory over N, T and D"))
        for curve in curves:
            columns = list(curve["points"][0]) if curve["points"] else []
            points = _table(columns, ([_plain(p[c]) for c in columns] for p in curve["points"]))
            title = f"<summary>over {_text(curve['axis'])}: every point</summary>"
            parts.append(f"<details>{title}{points}</details>")
    return parts


def _by_op(curves: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for curve in curves:
        found.setdefault(curve["name"].removesuffix(f" over {curve['axis']}"), []).append(curve)
    return found


def _plain(value: object) -> str:
    return number(value, 4) if isinstance(value, float) else str(value)
