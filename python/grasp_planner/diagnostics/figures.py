"""The pictures of a report, as PNG. Needs matplotlib."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from grasp_planner.diagnostics.numbers import array, condition, downward, middle, quartiles
from grasp_planner.diagnostics.verdict import VERDICTS
from grasp_planner.evaluation.figures import new_figure, png, quiet
from grasp_planner.plots import CHOSEN, EXECUTED, GOAL, MISSED

Report = dict[str, Any]

# Okabe and Ito's colours, told apart by colour-blind readers.
COLOURS = {"shooting": "#0072B2", "lifted": "#D55E00"}
NAMES = {"shooting": "shooting", "lifted": "lifting"}
DOTS = {"solution": "-o", "search start": "--s"}


def pictures(report: Report) -> dict[str, bytes]:
    """Part -> its picture, of the parts that were made."""
    return {part: draw(report) for part, draw in DRAW.items() if part in report}


def _titled(axes: Any, title: str, x: str, y: str) -> None:
    quiet(axes)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)


def _band(axes: Any, x: Any, rows: Any, colour: str, label: str) -> None:
    """Median and quartiles `(3, n)`."""
    low, median, high = array(rows)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, median, color=colour, linewidth=1.7, label=label)


def _logarithmic(axes: Any, values: Any) -> None:
    """By powers of ten, where the values span some; else from 0."""
    numbers = array(values).reshape(-1)
    positive = numbers[np.isfinite(numbers) & (numbers > 0)]
    if positive.size and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _legend(axes: Any, **where: Any) -> None:
    axes.legend(fontsize=7, framealpha=0.85, edgecolor="none", **where)


def _radius(axes: Any, report: Report) -> None:
    words = f"success radius, {report['success_radius']:g} {report['unit']}"
    axes.axhline(report["success_radius"], color=GOAL, linestyle=":", linewidth=1.3, label=words)


def conditioning(report: Report) -> bytes:
    rows = report["conditioning"]
    horizons = sorted({row["horizon"] for row in rows})
    figure, panels = new_figure(1, 3, 11.2, 3.3)
    titles = ("condition number", "each variable in its own unit", "at the search start: downwards")
    sides = ("largest / smallest curvature",) * 2 + ("share of the upward curvature",)
    for axes, title, side in zip(panels, titles, sides, strict=True):
        _titled(axes, title, "horizon T, steps", side)
    for objective, colour in COLOURS.items():
        for point, dots in DOTS.items():
            line = [r for r in rows if (r["objective"], r["point"]) == (objective, point)]
            style = {"color": colour, "markersize": 4.5, "linewidth": 1.5}
            style["label"] = NAMES[objective] + (", plan" if point == "solution" else ", start")
            for axes, name in zip(panels, ("condition", "condition_scaled"), strict=False):
                axes.plot(horizons, [condition(r, name) for r in line], dots, **style)
            if point != "solution":
                panels[2].plot(horizons, [downward(r) for r in line], dots, **style)
    for axes, name in zip(panels, ("condition", "condition_scaled"), strict=False):
        _logarithmic(axes, [condition(row, name) for row in rows])
    panels[2].set_ylim(0, max(0.1, panels[2].get_ylim()[1]))  # small shares stay small
    for axes in panels:
        axes.set_xticks(horizons)
        _legend(axes)
    return png(figure)


def gradients(report: Report) -> bytes:
    found = report["gradients"]
    figure, panels = new_figure(1, 3, 11.2, 3.1)
    for axes, name, title, unit, first in (
        (panels[0], "shooting_actions", "shooting, action at step t", "unit of action", 0),
        (panels[1], "shooting_states", "shooting, state at step t", "scaled unit of state", 1),
        (panels[2], "lifted_actions", "lifting, action at step t", "unit of action", 0),
    ):
        rows = array(found[name])
        _titled(axes, title, "time step t", f"gradient norm, cost per {unit}")
        colour = COLOURS["lifted" if name.startswith("lifted") else "shooting"]
        _band(axes, np.arange(first, first + rows.shape[1]), rows, colour, "median, quartiles")
        _logarithmic(axes, rows)
        _legend(axes)
    return png(figure)


def adversarial(report: Report) -> bytes:
    found = report["adversarial"]
    away = ~np.array(found["honest"], dtype=bool)
    shares = array(found["shares"])
    figure, (curve, points) = new_figure(1, 2, 10.4, 3.4)
    _titled(
        curve,
        "the best change of so large a norm",
        "change of the state, share of the whole way to the goal",
        "distance that is left, share",
    )
    if away.any():
        left = array(found["state_left"])[away]
        _band(curve, shares, quartiles(left), MISSED, "state step: median, quartiles")
        action = middle(array(found["action_left"])[away])
        words = "best action within bounds: median"
        curve.axhline(action, color=CHOSEN, linestyle="--", linewidth=1.5, label=words)
    honest = np.linspace(0, float(shares.max()), 50)
    words = "an honest model: as much as was changed"
    curve.plot(honest, np.clip(1 - honest, 0, None), ":", color="#555555", label=words)
    curve.set_ylim(-0.03, 1.08)
    _legend(curve, loc="lower left")
    _titled(
        points,
        "the smallest state step that fakes success",
        "time step t of the plan",
        "share of the honest way",
    )
    with np.errstate(invalid="ignore"):
        ratio = array(found["state_step"])[away] / array(found["honest_step"])[away]
    points.plot(array(found["steps"])[away], ratio, "o", color=MISSED, markersize=5, alpha=0.7)
    words = "the honest way: nothing is faked"
    points.axhline(1.0, color="#555555", linestyle=":", label=words)
    lowest = ratio[np.isfinite(ratio)].min(initial=1.0)
    if lowest < 0.05:
        points.set_yscale("log")
    else:
        points.set_ylim(0, 1.3)
    _legend(points)
    return png(figure)


def landscape(report: Report) -> bytes:
    figure, grid = new_figure(2, 3, 11.2, 6.2)
    for row, one in enumerate(report["landscape"]):
        lines, along, plane = grid[3 * row : 3 * row + 3]
        name, colour = NAMES[one["objective"]], COLOURS[one["objective"]]
        offsets, values = array(one["offsets"]), array(one["lines"])
        moved = "actions" if one["objective"] == "shooting" else "states and actions"
        unit = f"rms change of {moved}"
        _titled(lines, f"{name}: {len(values)} random directions", unit, "cost")
        lines.plot(offsets, values.T, color=colour, linewidth=1.1, alpha=0.75)
        _logarithmic(lines, values)
        _titled(along, f"{name}: along the gradient", unit, "cost")
        if one["gradient_line"] is not None:
            along.plot(offsets, array(one["gradient_line"]), color=colour, linewidth=1.6)
            _logarithmic(along, one["gradient_line"])
        else:
            words = "the gradient is 0 here"
            along.text(0.5, 0.5, words, ha="center", transform=along.transAxes, fontsize=9)
        for axes in (lines, along):
            axes.axvline(0, color="#555555", linewidth=0.8, linestyle=":")
        side = array(one["plane_offsets"])
        _titled(plane, f"{name}: a plane", unit, "rms change, second direction")
        plane.grid(visible=False)
        with np.errstate(divide="ignore", invalid="ignore"):
            height = np.log10(array(one["plane"]))
        height[~np.isfinite(height)] = np.nan
        shaded = plane.pcolormesh(side, side, height, cmap="viridis", shading="nearest")
        plane.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=1.5)
        plane.set_aspect("equal")
        bar = figure.colorbar(shaded, ax=plane, shrink=0.85)
        bar.set_label("log10 cost", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return png(figure)


def distance(report: Report) -> bytes:
    found = {k: v for k, v in report["distance"].items() if v is not None}
    titles = {"model": "under the model", "environment": "in the real environment"}
    figure, panels = new_figure(1, len(found), 4.9 * len(found) + 0.4, 3.2)
    for axes, (place, profile) in zip(panels, found.items(), strict=True):
        ways = array(profile["distances"])
        _titled(axes, titles[place], "time step t", f"distance to the goal, {report['unit']}")
        for row in ways:
            arrived = row[-1] <= report["success_radius"]
            colour = (CHOSEN if place == "model" else EXECUTED) if arrived else MISSED
            style = {"linewidth": 1.1, "alpha": 0.75} if arrived else {"linewidth": 1.3}
            axes.plot(row, color=colour, linestyle="-" if arrived else "--", **style)
        axes.plot([], [], "--", color=MISSED, label="does not arrive")
        _radius(axes, report)
        axes.set_ylim(bottom=0)
        _legend(axes)
    return png(figure)


def residuals(report: Report) -> bytes:
    found = report["residuals"]
    figure, (one, open_loop) = new_figure(1, 2, 10.2, 3.2)
    for axes, name, title, first in (
        (one, "one_step_in_unit", "one step ahead, from the real state", 1),
        (open_loop, "open_loop_in_unit", "open loop, on its own predictions", 0),
    ):
        rows = array(found[name])
        x = np.arange(first, first + rows.shape[1])
        _titled(axes, title, "time step t", f"error of the model, {report['unit']}")
        _band(axes, x, quartiles(rows), CHOSEN, "median, quartiles over plans")
        axes.plot(x, np.where(np.isfinite(rows), rows, -np.inf).max(0), color="#9db4d0",
                  linewidth=0.9, label="the worst plan")  # fmt: skip
        _radius(axes, report)
        positive = rows[np.isfinite(rows) & (rows > 0)]
        if positive.size:
            axes.set_yscale("log")
            axes.set_ylim(bottom=max(float(np.quantile(positive, 0.02)), 1e-12) / 2)
        _legend(axes)
    return png(figure)


def failures(report: Report) -> bytes:
    counts = Counter(one["verdict"] for one in report["failures"])
    names = [name for name in VERDICTS if name in counts][::-1]
    figure, (axes,) = new_figure(1, 1, 7.2, 0.7 + 0.36 * len(names))
    quiet(axes)
    colours = [CHOSEN if name == "arrived" else MISSED for name in names]
    axes.barh(names, [counts[name] for name in names], color=colours, height=0.6)
    for place, name in enumerate(names):
        axes.annotate(f" {counts[name]}", (counts[name], place), va="center", fontsize=8)
    axes.set_xlabel("plans", fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=False, axis="y")
    return png(figure)


DRAW = {
    "conditioning": conditioning,
    "gradients": gradients,
    "adversarial": adversarial,
    "landscape": landscape,
    "distance": distance,
    "residuals": residuals,
    "failures": failures,
}
