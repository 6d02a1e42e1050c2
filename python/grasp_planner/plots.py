"""Pictures of plans in the plane: the maze, the virtual states as they form, the executed path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from grasp_planner.plan import Plan
from grasp_planner.tasks import Problems, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WALL, OUTSIDE = "#3b4252", "#f4f4f1"
VIRTUAL, CHOSEN, EXECUTED, START, GOAL, MISSED = (
    "#9db4d0",
    "#2b6cb0",
    "#d9480f",
    "#2f855a",
    "#b7791f",
    "#9b2c2c",
)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'grasp-kernels[tasks]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_map(axes: Axes, task: Task) -> None:
    """The walls of a task, nothing else."""
    from matplotlib.patches import Rectangle

    extent = task.extent
    axes.set_xlim(extent.x_min, extent.x_max)
    axes.set_ylim(extent.y_min, extent.y_max)
    axes.set_aspect("equal")
    axes.set_facecolor(OUTSIDE)
    axes.set_xticks([])
    axes.set_yticks([])
    for wall in task.walls:
        size = (wall.x_max - wall.x_min, wall.y_max - wall.y_min)
        axes.add_patch(Rectangle((wall.x_min, wall.y_min), *size, color=WALL, linewidth=0))


def _mark(axes: Axes, task: Task, start: Tensor, goal: Tensor) -> None:
    from matplotlib.patches import Circle

    x, y = task.position
    axes.plot(float(start[x]), float(start[y]), "o", color=START, markersize=6, zorder=5)
    axes.plot(float(goal[x]), float(goal[y]), "*", color=GOAL, markersize=11, zorder=5)
    ring = Circle(
        (float(goal[x]), float(goal[y])), task.success_radius, fill=False, color=GOAL, linestyle=":"
    )
    axes.add_patch(ring)


def draw_plan(
    path: Path, task: Task, problems: Problems, plan: Plan, executed: Tensor, problem: int
) -> None:
    """How one plan came about: virtual states at the kept iterations, then the executed path.

    Needs `plan.snapshots`; `executed` is `(B, T + 1, D)`, `problem` the row to draw.
    """
    plt = _pyplot()
    x, y = task.position
    panels = len(plan.snapshots) + 1
    columns = -(-panels // 2)
    figure, grid = plt.subplots(2, columns, figsize=(3.3 * columns, 7.1), squeeze=False)
    flat = grid.flatten()
    best = int(plan.candidate_cost[problem].argmin())
    for axes, (iteration, states) in zip(flat, sorted(plan.snapshots.items()), strict=False):
        draw_map(axes, task)
        for candidate in range(states.shape[1]):
            chosen = candidate == best
            axes.plot(
                states[problem, candidate, :, x],
                states[problem, candidate, :, y],
                ".-",
                color=CHOSEN if chosen else VIRTUAL,
                linewidth=1.4 if chosen else 0.6,
                markersize=3 if chosen else 1.5,
                zorder=3 if chosen else 2,
            )
        _mark(axes, task, problems.start[problem], problems.goal[problem])
        axes.set_title(f"virtual states, iteration {iteration}", fontsize=9)
    axes = flat[panels - 1]
    draw_map(axes, task)
    model_path, real_path = plan.states[problem], executed[problem]
    axes.plot(model_path[:, x], model_path[:, y], "-", color=CHOSEN, linewidth=1.2, label="model")
    axes.plot(
        real_path[:, x], real_path[:, y], "-", color=EXECUTED, linewidth=2, label="environment"
    )
    _mark(axes, task, problems.start[problem], problems.goal[problem])
    axes.legend(loc="lower left", fontsize=7, framealpha=0.9)
    axes.set_title("the chosen actions, executed", fontsize=9)
    for unused in flat[panels:]:
        unused.axis("off")
    figure.suptitle(
        f"{task.name}, one problem: {plan.candidate_cost.shape[1]} candidates, the chosen one dark",
        fontsize=10,
    )
    figure.tight_layout(h_pad=2.5)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def animate_execution(
    path: Path, task: Task, problems: Problems, plan: Plan, executed: Tensor, shown: int = 6
) -> None:
    """A GIF of the first plans as they run in the environment, beside what the model expected."""
    plt = _pyplot()
    from matplotlib.animation import FuncAnimation, PillowWriter

    x, y = task.position
    count = min(shown, len(problems))
    columns = min(count, 3)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.75 * rows), squeeze=False)
    reached = task.reached(executed, problems).tolist()
    trails, bodies = [], []
    for problem, axes in enumerate(grid.flatten()):
        if problem >= count:
            axes.axis("off")
            continue
        draw_map(axes, task)
        axes.plot(
            plan.states[problem, :, x], plan.states[problem, :, y], color=VIRTUAL, linewidth=1
        )
        _mark(axes, task, problems.start[problem], problems.goal[problem])
        colour = EXECUTED if reached[problem] else MISSED
        trails.append(axes.plot([], [], color=colour, linewidth=2)[0])
        bodies.append(axes.plot([], [], "o", color=colour, markersize=7, zorder=6)[0])
        axes.set_title("reached" if reached[problem] else "missed", fontsize=8, color=colour)
    figure.tight_layout()
    steps, pause = executed.shape[1], 12

    def frame(index: int) -> list[Any]:
        t = min(index, steps - 1)
        for problem, (trail, body) in enumerate(zip(trails, bodies, strict=True)):
            trail.set_data(executed[problem, : t + 1, x], executed[problem, : t + 1, y])
            body.set_data(executed[problem, t : t + 1, x], executed[problem, t : t + 1, y])
        return trails + bodies

    animation = FuncAnimation(figure, frame, frames=steps + pause, blit=False)
    animation.save(path, writer=PillowWriter(fps=20), dpi=80)
    plt.close(figure)
