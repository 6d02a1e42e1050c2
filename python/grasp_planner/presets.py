"""Planners by name, with the settings that suit a task: what `grasp eval` compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grasp_planner.base import Planner
from grasp_planner.baselines import (
    CEMConfig,
    CEMPlanner,
    GradientConfig,
    GradientPlanner,
    ICEMConfig,
    ICEMPlanner,
    LatCoConfig,
    LatCoPlanner,
    MPPIConfig,
    MPPIPlanner,
)
from grasp_planner.config import GraspConfig
from grasp_planner.lifted_newton import LiftedNewtonConfig, LiftedNewtonPlanner
from grasp_planner.options import PlannerConfig
from grasp_planner.planner import GraspPlanner
from grasp_planner.tasks import Task

PLANNERS: dict[str, tuple[type[Planner], Callable[..., PlannerConfig]]] = {
    "lifted-newton": (LiftedNewtonPlanner, LiftedNewtonConfig),
    "cem": (CEMPlanner, CEMConfig),
    "icem": (ICEMPlanner, ICEMConfig),
    "mppi": (MPPIPlanner, MPPIConfig),
    "gradient": (GradientPlanner, GradientConfig),
    "latco": (LatCoPlanner, LatCoConfig),
    "grasp": (GraspPlanner, GraspConfig),
    "grasp-paper": (GraspPlanner, GraspConfig.paper),
}


def planner_config(name: str, task: Task, *, horizon: int, seed: int = 0, **changes: Any) -> Any:
    """The default settings of planner `name`, in the units of a task, with `changes`."""
    if name not in PLANNERS:
        raise ValueError(f"unknown planner {name!r}; there are: {', '.join(PLANNERS)}")
    settings: dict[str, Any] = {
        "horizon": horizon,
        "seed": seed,
        "action_low": tuple(task.action_low.tolist()),
        "action_high": tuple(task.action_high.tolist()),
        "state_scale": tuple(task.state_scale.tolist()),
        "goal_feature_weight": tuple(task.goal_weight_features.tolist()),
        **changes,
    }
    return PLANNERS[name][1](**settings)


def make_planner(name: str, task: Task, *, horizon: int, seed: int = 0, **changes: Any) -> Planner:
    """Planner `name` on the world model of a task."""
    config = planner_config(name, task, horizon=horizon, seed=seed, **changes)
    return PLANNERS[name][0](task.world_model, config)
