"""Tasks: an environment, a world model trained on it, and problems to plan.

    task = grasp_planner.tasks.load("pointmaze-umaze")
    problems = task.sample_problems(30, horizon=50, seed=0)
    plan = GraspPlanner(task.world_model, config).plan(problems.start, problems.goal)
    task.reached(plan.states, problems), task.execute(plan.actions, problems)

Loading, sampling and planning need no simulator; `execute`, `rollout` and training do.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from grasp_planner.tasks.geometry import Rectangle
from grasp_planner.tasks.mlp import ResidualMLP
from grasp_planner.tasks.requirements import MissingExtraError
from grasp_planner.tasks.task import Problems, Task

__all__ = [
    "ALIASES",
    "MissingExtraError",
    "Problems",
    "Rectangle",
    "ResidualMLP",
    "Task",
    "canonical",
    "load",
    "names",
    "task_class",
]

_CLASSES = {
    "wall-single": ("grasp_planner.tasks.wall_single", "WallSingleTask"),
    "pointmaze-umaze": ("grasp_planner.tasks.pointmaze_umaze", "PointMazeUMazeTask"),
    "pointmaze-medium": ("grasp_planner.tasks.pointmaze_medium", "PointMazeMediumTask"),
    "push-t": ("grasp_planner.tasks.push_t", "PushTTask"),
    "arm-6": ("grasp_planner.tasks.arm", "Arm6Task"),
    "arm-20": ("grasp_planner.tasks.arm", "Arm20Task"),
    "wall-pixels": ("grasp_planner.tasks.wall_pixels", "WallPixelsTask"),
}
#: Short names that are accepted wherever a task is named.
ALIASES = {
    "wall": "wall-single",
    "umaze": "pointmaze-umaze",
    "medium": "pointmaze-medium",
    "pusht": "push-t",
}


def names() -> tuple[str, ...]:
    """The tasks there are."""
    return tuple(_CLASSES)


def canonical(name: str) -> str:
    """The full name of a task; raises ValueError, listing the names, where there is none."""
    full = ALIASES.get(name, name)
    if full not in _CLASSES:
        raise ValueError(f"unknown task {name!r}; there are: {', '.join(names())}")
    return full


def task_class(name: str) -> type[Task]:
    """The class of a task, without loading its weights."""
    module, attribute = _CLASSES[canonical(name)]
    found: type[Task] = getattr(import_module(module), attribute)
    return found


def load(name: str, *, weights: str | Path | None = None) -> Task:
    """The task of that name with its world model: the shipped one, or one of a training folder."""
    return task_class(name)(weights)
