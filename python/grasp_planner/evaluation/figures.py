"""The pictures of an evaluation, as PNG. Needs matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from grasp_planner.evaluation.summary import Result, Row, cells
from grasp_planner.evaluation.units import Unit
from grasp_planner.plots import CHOSEN, EXECUTED, MISSED, draw_problem
from grasp_planner.tasks import Problems, Task

# Okabe and Ito's colours, told apart by colour-blind readers, each with its own marker too.
STYLES = {
    "lifted-newton": ("#D55E00", "o"),
    "cem": ("#0072B2", "s"),
    "icem": ("#56B4E9", "D"),
    "mppi": ("#009E73", "^"),
    "gradient": ("#CC79A7", "v"),
    "latco": ("#7A6A00", "P"),
    "grasp": ("#E69F00", "X"),
    "grasp-paper": ("#777777", "p"),
}
OTHER = ("#000000", "h")


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure and its axes, row by row."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def quiet(axes: Any) -> None:
    """Axes that leave the eye to the curves."""
    axes.grid(which="major", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)


def _share(axes: Any) -> None:
    """The vertical axis is a share of problems."""
    axes.set_ylim(-0.04, 1.06)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])


def _milliseconds(axes: Any) -> None:
    """The horizontal axis is a time, by powers of ten; short ranges need marks between them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def png(figure: Any, dpi: int = 110) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def overview(rows: Sequence[Row]) -> bytes:
    """A panel per task and horizon: every planner's success over its time; up and left is best."""
    panels = cells(rows)
    columns = min(len(panels), 4)
    lines = math.ceil(len(panels) / columns)
    figure, grid = new_figure(lines, columns, 2.6 * columns + 0.8, 2.3 * lines + 0.7)
    known: dict[str, Any] = {}
    for axes, cell in zip(grid, panels, strict=False):
        quiet(axes)
        for one in cell:
            if one["milliseconds_per_plan"] is None:
                continue
            colour, marker = STYLES.get(one["planner"], OTHER)
            x, y = one["milliseconds_per_plan"], one["success_environment"]
            axes.plot([x, x], one["success_environment_interval"], color=colour, alpha=0.3)
            (point,) = axes.plot(x, y, marker, color=colour, markersize=7, markeredgecolor="white")
            known[one["planner"]] = point
        _milliseconds(axes)
        _share(axes)
        axes.set_title(f"{cell[0]['task_name']}, T = {cell[0]['horizon']}", loc="left", fontsize=9)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    figure.supxlabel("milliseconds per plan", fontsize=9)
    figure.supylabel("success in the environment", fontsize=9)
    where = {"loc": "outside upper left", "ncols": 2 * columns}
    figure.legend(known.values(), known, **where, fontsize=8, frameon=False)
    return png(figure)


def race(cell: Sequence[Row]) -> bytes:
    """One task and horizon: success while planning goes on, and the time of whole plans."""
    figure, (curves, bars) = new_figure(1, 2, 9.6, 3.1)
    for axes in (curves, bars):
        quiet(axes)
    for one in cell:
        colour, marker = STYLES.get(one["planner"], OTHER)
        if one["milliseconds_curve"]:
            x, y = zip(*one["milliseconds_curve"], strict=True)
            style = {"color": colour, "linewidth": 1.6, "drawstyle": "steps-post"}
            curves.plot(x, y, **style)
            curves.plot(
                x[-1], y[-1], marker, color=colour, markersize=6, label=one["planner"], zorder=3
            )
    _milliseconds(curves)
    _share(curves)
    curves.set_xlabel("milliseconds since planning began", fontsize=8)
    curves.set_title("success in the environment, if stopped then", loc="left", fontsize=9)
    curves.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    timed = [one for one in cell if one["milliseconds_per_plan"] is not None][::-1]
    for place, one in enumerate(timed):
        colour, _ = STYLES.get(one["planner"], OTHER)
        bars.barh(place, one["milliseconds_per_plan"], color=colour, height=0.65)
        bars.plot(
            [one["milliseconds_median"], one["milliseconds_p90"]], [place] * 2, "k|-", linewidth=1
        )
        bars.annotate(
            f"{one['milliseconds_per_plan']:.0f}",
            (max(one["milliseconds_per_plan"], one["milliseconds_p90"]), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    bars.set_yticks(range(len(timed)), [one["planner"] for one in timed])
    bars.margins(x=0.12)
    bars.grid(visible=False, axis="y")
    bars.set_title("ms per plan: mean; line: median to 90 %", loc="left", fontsize=9)
    return png(figure)


def plans(
    cell: Sequence[Row], results: Mapping[Unit, Result], task: Task, problems: Problems
) -> bytes:
    """Each planner's best and worst plan, executed, beside what the model expected."""
    figure, grid = new_figure(2, len(cell), 1.75 * len(cell) + 0.2, 4.1)
    for column, one in enumerate(cell):
        name, horizon, planner = one["task"], one["horizon"], one["planner"]
        units = [results[Unit(name, horizon, planner, k)] for k in range(len(problems))]
        ranked = sorted((u for u in units if u["error"] is None), key=_badness)
        for axes, words, result in zip(
            (grid[column], grid[len(cell) + column]),
            ("best", "worst"),
            (ranked[0], ranked[-1]) if ranked else (None, None),
            strict=True,
        ):
            if result is None:
                axes.axis("off")
                axes.set_title(f"{planner}: none", fontsize=8)
                continue
            _draw_plan(axes, task, problems[[result["problem"]]], result)
            axes.set_title(
                f"{planner}, {words}: {'reached' if result['success_environment'] else 'missed'}",
                fontsize=8,
                color="#1c2024" if result["success_environment"] else MISSED,
            )
    return png(figure, dpi=95)


def _badness(result: Result) -> tuple[bool, float]:
    distance = result["goal_distance_environment"]
    return not result["success_environment"], math.inf if distance is None else distance


def _draw_plan(axes: Any, task: Task, problem: Problems, result: Result) -> None:
    draw_problem(axes, task, problem, 0)
    actions = torch.tensor(result["actions"])[None]
    expected = task.positions(task.imagine(actions, problem)[0])
    executed = task.rollout(actions, problem)[0]
    colour = EXECUTED if result["success_environment"] else MISSED
    axes.plot(*expected.unbind(-1), "--", color=CHOSEN, linewidth=1.1, zorder=4)
    axes.plot(*task.environment_positions(executed).unbind(-1), "-", color=colour, linewidth=1.5)
    task.draw_pose(axes, executed[-1], colour)
