"""A disc to keep out of: the quadratic penalty against the augmented Lagrangian, measured.

    python bench/keep_out.py [--problems 8] [--seed 0] [--page docs/planning.md]
                             [--figure docs/keep-out.png]                        (make keep-out)

Two scenes: an open room whose model is exact, and Wall-Single, whose model is learned and whose
plans are executed open loop in the real environment. Each problem has a disc of its own in the way,
and is planned alone on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from grasp_bench.options_table import replaced
from grasp_planner import Constraint, Plan, tasks
from grasp_planner.cli.arguments import positive, seed
from grasp_planner.evaluation.figures import new_figure
from grasp_planner.evaluation.results import table
from grasp_planner.presets import PLANNERS, make_planner
from torch import Tensor

BEGIN, END = "<!-- keep-out: begin -->", "<!-- keep-out: end -->"
HORIZON, STEP = 50, 0.04
TOLERANCE = 0.005  # of the constraint, in map units
#: A plan is to be gentle: without anything else to want, whoever arrives may as well keep out.
COST = {"action_weight": 0.1}
#: A straight line is a better start than a rollout of random actions where no wall is in the way.
NAMES: dict[str, dict[str, Any]] = {
    "gradient": {},
    "latco": {"initialization": "linear"},
    "grasp": {},
    "lifted-newton": {},
    "cem": {},
}
LIGHT, STIFF, RAISED = "penalty, p = 0.1", "penalty, p = 1000", "augmented Lagrangian, p = 0.1"
METHODS: dict[str, dict[str, Any]] = {
    LIGHT: {"constraint_method": "penalty", "penalty_weight": 0.1},
    STIFF: {"constraint_method": "penalty", "penalty_weight": 1000.0},
    RAISED: {"constraint_method": "augmented-lagrangian", "penalty_weight": 0.1},
}
HEADER = ("planner", "method", "arrived", "off by", "cost", "deepest", "ms")
COLOURS = ("#2b6cb0", "#6b46c1", "#2f855a", "#9b2c2c", "#b7791f")


@dataclass(frozen=True)
class Scene:
    """B problems, each with a disc of the same `radius` around its own `centre (B, 2)`.

    `planner(name, **changes)` makes a planner; `execute(actions (1, T, A), b)` is where they lead
    in truth, `(1, T + 1, 2)`; `near`: how close to the goal a plan must end.
    """

    title: str
    start: Tensor
    goal: Tensor
    centre: Tensor
    radius: float
    near: float
    planner: Callable[..., Any]
    execute: Callable[[Tensor, int], Tensor]

    def depth(self, states: Tensor, actions: Tensor, centre: Tensor) -> Tensor:
        """How deep in its disc a plan is at every step, `(N, T)`; negative outside."""
        away = (states[:, 1:, :2] - centre[:, None]).square().sum(-1)
        return self.radius - (away + 1e-12).sqrt()


def room(state: Tensor, action: Tensor) -> Tensor:
    """A point in an open square: an action moves it by up to `STEP` along each axis."""
    return (state + STEP * action).clamp(-1.0, 1.0)


def open_room(count: int, number: int) -> Scene:
    """Straight across a room, a disc in the middle or not far from it."""
    generator = torch.Generator().manual_seed(number)
    turn = 2 * torch.pi * torch.rand(count, generator=generator)
    start = 0.75 * torch.stack((turn.cos(), turn.sin()), 1)

    def planner(name: str, **changes: Any) -> Any:
        make, config = PLANNERS[name]
        box = {"action_features": 2, "action_low": -1.0, "action_high": 1.0}
        return make(room, config(horizon=HORIZON, state_scale=(0.5, 0.5), **box, **changes))

    def execute(actions: Tensor, b: int) -> Tensor:
        states = [start[[b]]]
        for t in range(HORIZON):
            states.append(room(states[-1], actions[:, t]))
        return torch.stack(states, 1)

    centre = 0.1 * torch.randn(count, 2, generator=generator)
    return Scene("open room", start, -start, centre, 0.3, 0.05, planner, execute)


def wall_single(count: int, number: int) -> Scene:
    """Through the door of a wall, a disc in the way that a plan without it takes."""
    task, radius = tasks.load("wall-single"), 0.15
    # Of a shorter horizon: the way round a disc takes longer.
    drawn = task.sample_problems(8 * count, horizon=HORIZON - 10, seed=number)

    def planner(name: str, **changes: Any) -> Any:
        return make_planner(name, task, horizon=HORIZON, seed=number, **changes)

    paths = planner("lifted-newton", **COST).plan(drawn.start, drawn.goal).states
    ends = torch.stack((drawn.start, drawn.goal), 1)
    apart = (paths[:, :, None] - ends[:, None]).norm(dim=-1).amin(-1)
    free = torch.minimum(paths[..., 0].abs(), 1 - paths.abs().amax(-1))  # from wall and border
    space, step = torch.minimum(apart, free).max(1)
    chosen = (space > 2 * radius).nonzero()[:count, 0]
    problems = drawn[chosen]
    centre = paths[chosen, step[chosen]]

    def execute(actions: Tensor, b: int) -> Tensor:
        return task.rollout(actions, problems[[b]])

    return Scene(
        "Wall-Single",
        problems.start,
        problems.goal,
        centre,
        radius,
        task.success_radius,
        planner,
        execute,
    )


def measure(scene: Scene, name: str, method: str) -> list[dict[str, Any]]:
    """A line for each problem."""
    constraint = {"constraints": Constraint(scene.depth), "constraint_tolerance": TOLERANCE}
    planner = scene.planner(name, **NAMES[name], **COST, **constraint, **METHODS[method])
    found = []
    for b in range(len(scene.start)):
        given = {"context": scene.centre[[b]], "plan_ids": torch.tensor([b])}
        begin = time.perf_counter()
        plan: Plan = planner.plan(scene.start[[b]], scene.goal[[b]], **given)
        spent = 1e3 * (time.perf_counter() - begin)
        states = scene.execute(plan.actions, b)
        off = float((states[0, -1] - scene.goal[b]).norm())
        found.append(
            {
                "violation": float(plan.violation),
                "cost": float(plan.cost),
                "off": off,
                "arrived": off <= scene.near and float(plan.violation) <= TOLERANCE,
                "milliseconds": spent,
                "states": plan.states[0],
            }
        )
    return found


def row(name: str, method: str, found: list[dict[str, Any]]) -> tuple[str, ...]:
    return (
        name,
        method,
        f"{sum(line['arrived'] for line in found)} of {len(found)}",
        f"{statistics.fmean(line['off'] for line in found):.3f}",
        f"{statistics.fmean(line['cost'] for line in found):.3f}",
        f"{max(line['violation'] for line in found):.3f}",
        f"{statistics.median(line['milliseconds'] for line in found):.0f}",
    )


def draw(path: Path, scene: Scene, lines: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """One problem in two panels: planned by a light penalty, and by raised multipliers.

    The one where the penalty's plans end furthest from their goal; a cross is such an end.
    """
    from matplotlib.patches import Circle

    far = [sum(lines[name, LIGHT][b]["off"] for name in NAMES) for b in range(len(scene.start))]
    b = far.index(max(far))
    start, goal, centre = scene.start[b], scene.goal[b], scene.centre[b]
    shown = torch.stack((start, goal, centre - 1.3 * scene.radius, centre + 1.3 * scene.radius))
    low, high = shown.amin(0) - 0.12, shown.amax(0) + 0.12
    shape = ((high - low) / (high - low).max()).tolist()
    size = (9.0, 4.5 * shape[1] / shape[0] + 1.0)
    figure, panels = new_figure(1, 2, *size)
    for panel, method in zip(panels, (LIGHT, RAISED), strict=True):
        (left, bottom), (right, top) = low.tolist(), high.tolist()
        panel.set(xlim=(left, right), ylim=(bottom, top), xticks=(), yticks=())
        panel.set(aspect="equal", title=method)
        panel.add_patch(
            Circle(
                (float(centre[0]), float(centre[1])),
                scene.radius,
                color="#c53030",
                alpha=0.2,
                linewidth=0,
            )
        )
        for name, colour in zip(NAMES, COLOURS, strict=False):
            line = lines[name, method][b]
            x, y = line["states"].T.tolist()
            panel.plot(x, y, ".-", color=colour, markersize=3.5, linewidth=1.1, label=name)
            if line["off"] > scene.near:
                panel.plot(x[-1], y[-1], "X", color=colour, markersize=9, zorder=6)
        panel.plot(*start.tolist(), "o", color="#2d3748", markersize=8, zorder=5)
        panel.plot(*goal.tolist(), "*", color="#2d3748", markersize=13, zorder=5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(NAMES), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--problems", type=positive, default=8, metavar="B", help="of each scene (8)")
    add("--seed", type=seed, default=0, help="of problems and noise (0)")
    add("--page", type=Path, metavar="FILE", help="a page to write the tables into (none)")
    add("--figure", type=Path, default=Path("out/keep-out.png"), metavar="FILE",
        help="a picture of a problem (out/keep-out.png)")  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = []
    for make in (open_room, wall_single):
        scene = make(options.problems, options.seed)
        lines = {}
        for name in NAMES:
            for method in METHODS:
                lines[name, method] = measure(scene, name, method)
                print(scene.title, *row(name, method, lines[name, method]), flush=True)
        rows = [row(*key, found) for key, found in lines.items()]
        parts.append(f"{scene.title[0].upper()}{scene.title[1:]}:\n\n{table(HEADER, rows)}")
        if make is open_room:
            draw(options.figure, scene, lines)
    if options.page is not None:
        page = replaced(options.page.read_text(), BEGIN, END, "\n".join(parts).rstrip())
        options.page.write_text(page)


if __name__ == "__main__":
    main()
