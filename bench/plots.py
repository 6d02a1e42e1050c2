"""The pictures of the page, as PNG in base64: a roofline per device, and the sweeps.

Needs matplotlib (`pip install 'grasp-kernels[bench]'`); `available` says whether it is there.
"""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

from .ceilings import Ceilings
from .runner import Row

# Okabe and Ito's colours, told apart by colour-blind readers, each with its own marker too.
STYLES = {
    "native": ("#0072B2", "o"),
    "triton": ("#0072B2", "o"),
    "reference": ("#0072B2", "o"),
    "eager": ("#D55E00", "^"),
    "compiled": ("#009E73", "s"),
}
OTHER = ("#666666", "D")
LINES = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7A6A00",
    "#8B4513",
)


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes; a sequence of them if there are several `columns`."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    found = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axes in found:
        axes.grid(which="major", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, found if columns > 1 else found[0]


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()


def roofline(ceilings: Ceilings, rows: Sequence[Row], numbers: dict[str, int]) -> str:
    """Operations per second over operations per byte, with the measured roofs.

    Points carry the number of their case in the table of the page.
    """
    figure, axes = _figure(9, 5.6)
    shown = [
        row
        for row in rows
        if row.device == ceilings.device
        and row.threads in (ceilings.threads, None)
        and row.rate_gop_per_s
    ]
    across = [_intensity(row) for row in shown] or [1.0]
    low, high = min(across) / 2, max(max(across) * 2, 100.0)
    peak = ceilings.product / 1e9
    rates = {
        "bandwidth in cache": max(*ceilings.copy.values(), *ceilings.triad.values()) / 1e9,
        "bandwidth of memory": max(list(r.values())[-1] for r in (ceilings.copy, ceilings.triad))
        / 1e9,
    }
    for (name, rate), dashes in zip(rates.items(), ("-", "--"), strict=True):
        corner = peak / rate
        axes.plot(
            [low, corner, max(high, corner)],
            [low * rate, peak, peak],
            dashes,
            color="#555555",
            linewidth=1.3,
            label=f"{name}, {rate:.3g} GB/s",
        )
    axes.annotate(
        f"matrix product {peak:.3g} Gop/s",
        (high, peak),
        xytext=(0, 5),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="#333333",
    )
    for backend in dict.fromkeys(row.backend for row in shown):
        colour, marker = STYLES.get(backend, OTHER)
        own = [row for row in shown if row.backend == backend]
        heights = [row.rate_gop_per_s or 0.0 for row in own]
        x = [_intensity(row) for row in own]
        axes.scatter(
            x, heights, s=26, color=colour, marker=marker, label=backend, zorder=3, alpha=0.9
        )
        if colour == STYLES["native"][0]:
            for row, a, b in zip(own, x, heights, strict=True):
                axes.annotate(
                    str(numbers[row.case]),
                    (a, b),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations per byte",
        ylabel="Gop/s (10⁹ operations per second)",
    )
    threads = {None: "", 1: ", 1 thread"}.get(ceilings.threads, f", {ceilings.threads} threads")
    axes.set_title(f"{ceilings.device}{threads}", loc="left", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return _png(figure)


def _intensity(row: Row) -> float:
    return max(row.operations + row.noise_operations, 1.0) / max(row.bytes, 1.0)


QUANTITIES = {"median_ms": "ms per call or part", "peak_bytes": "peak bytes of one call"}
AXES = {"N": "plans N", "T": "time steps T", "D": "state features D"}


def _line(axes: Any, curve: dict[str, Any], quantity: str, index: int, label: str) -> None:
    points = [p for p in curve["points"] if p[quantity] > 0]
    x, y = ([p[name] for p in points] for name in ("value", quantity))
    colour = LINES[index % len(LINES)]
    marker = "osD^v<>ph"[index % 9]
    axes.plot(x, y, "-", marker=marker, markersize=4, linewidth=1.2, color=colour, label=label)


def _has(curve: dict[str, Any], quantity: str) -> bool:
    return any(point[quantity] > 0 for point in curve["points"])


def scaling(curves: Sequence[dict[str, Any]], axis: str, quantity: str) -> str:
    """All ops along one axis: "median_ms" or "peak_bytes" over N, T or D; "" if there are none."""
    curves = [c for c in curves if c["axis"] == axis and _has(c, quantity)]
    if not curves:
        return ""
    figure, axes = _figure(7.6, 4.6)
    for index, curve in enumerate(curves):
        _line(axes, curve, quantity, index, curve["name"].removesuffix(f" over {axis}"))
    axes.set(xscale="log", yscale="log", xlabel=AXES[axis], ylabel=QUANTITIES[quantity])
    axes.legend(fontsize=7, frameon=False, ncols=2)
    return _png(figure)


def growth(curves: Sequence[dict[str, Any]]) -> str:
    """One op: time, with its quartiles, and peak memory, each along N, T and D; "" if none."""
    if not any(_has(curve, "median_ms") for curve in curves):
        return ""
    figure, panels = _figure(9.6, 3.6, columns=2)
    for axes, quantity in zip(panels, QUANTITIES, strict=True):
        for index, curve in enumerate(c for c in curves if _has(c, quantity)):
            fit = curve["exponent_last_decade" if quantity == "median_ms" else "memory_exponent"]
            slope = "" if fit is None else f", slope {fit:.2f}"
            _line(axes, curve, quantity, index, f"{AXES[curve['axis']]}{slope}")
            if quantity == "median_ms":
                x, low, high = (
                    [p[name] for p in curve["points"]] for name in ("value", "q1_ms", "q3_ms")
                )
                axes.fill_between(x, low, high, color=LINES[index], alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="N, T or D", ylabel=QUANTITIES[quantity])
        axes.legend(fontsize=7, frameon=False)
    return _png(figure)
