"""Pictures of plans: the scene, the virtual states as they form, the executed path.

What is drawn is up to the task: its `positions`, `draw_scene` and `draw_pose`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from grasp_planner.plan import Plan
from grasp_planner.tasks import Problems, Task

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

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


def draw_problem(axes: Axes, task: Task, problems: Problems, problem: int) -> None:
    """The scene, the body at its start and at its goal, and how close to the goal is enough."""
    from matplotlib.patches import Circle

    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    task.draw_scene(axes)
    start, goal = problems.environment_start[problem], problems.environment_goal[problem]
    task.draw_pose(axes, start, START)
    task.draw_pose(axes, goal, GOAL)
    x, y = task.environment_positions(goal).tolist()
    axes.plot(x, y, "*", color=GOAL, markersize=8, zorder=7)
    if task.goal_ring:
        ring = Circle((x, y), task.success_radius, fill=False, color=GOAL, linestyle=":", zorder=7)
        axes.add_patch(ring)


def draw_plan(
    path: Path, task: Task, problems: Problems, plan: Plan, executed: Tensor, problem: int
) -> None:
    """How one plan came about: virtual states at the kept iterations, then the executed path.

    Needs `plan.snapshots`; `executed` is `(B, T + 1, E)`, `problem` the row to draw.
    """
    plt = _pyplot()
    panels = len(plan.snapshots) + 1
    columns = -(-panels // 2)
    figure, grid = plt.subplots(2, columns, figsize=(3.3 * columns, 7.1), squeeze=False)
    flat = grid.flatten()
    best = int(plan.candidate_cost[problem].argmin())
    for axes, (iteration, states) in zip(flat, sorted(plan.snapshots.items()), strict=False):
        draw_problem(axes, task, problems, problem)
        for candidate, path_points in enumerate(task.positions(states[problem])):
            chosen = candidate == best
            axes.plot(
                *path_points.unbind(-1),
                ".-",
                color=CHOSEN if chosen else VIRTUAL,
                linewidth=1.4 if chosen else 0.6,
                markersize=3 if chosen else 1.5,
                zorder=3 if chosen else 2,
            )
        axes.set_title(f"virtual states, iteration {iteration}", fontsize=9)
    axes = flat[panels - 1]
    draw_problem(axes, task, problems, problem)
    expected = task.positions(plan.states[problem])
    actual = task.environment_positions(executed[problem])
    axes.plot(*expected.unbind(-1), "-", color=CHOSEN, linewidth=1.2, label="model")
    axes.plot(*actual.unbind(-1), "-", color=EXECUTED, linewidth=2, label="environment")
    task.draw_pose(axes, executed[problem, -1], EXECUTED)
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

    count = min(shown, len(problems))
    columns = min(count, 3)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.75 * rows), squeeze=False)
    reached = task.environment_reached(executed, problems).tolist()
    actual = task.environment_positions(executed)
    panels, trails = grid.flatten()[:count], []
    for problem, axes in enumerate(panels):
        draw_problem(axes, task, problems, problem)
        expected = task.positions(plan.states[problem])
        axes.plot(*expected.unbind(-1), color=VIRTUAL, linewidth=1)
        colour = EXECUTED if reached[problem] else MISSED
        trails.append(axes.plot([], [], color=colour, linewidth=2)[0])
        axes.set_title("reached" if reached[problem] else "missed", fontsize=8, color=colour)
    for unused in grid.flatten()[count:]:
        unused.axis("off")
    figure.tight_layout()
    steps, pause = executed.shape[1], 12
    bodies: list[Artist] = []

    def frame(index: int) -> list[Artist]:
        t = min(index, steps - 1)
        while bodies:
            bodies.pop().remove()
        for problem, (axes, trail) in enumerate(zip(panels, trails, strict=True)):
            trail.set_data(*actual[problem, : t + 1].unbind(-1))
            bodies.extend(task.draw_pose(axes, executed[problem, t], trail.get_color()))
        return trails + bodies

    animation = FuncAnimation(figure, frame, frames=steps + pause, blit=False)
    animation.save(path, writer=PillowWriter(fps=20), dpi=80)
    plt.close(figure)
