"""Drop-in planners for learned world models, on fused kernels.

plan = GraspPlanner(world_model, GraspConfig(horizon=50)).plan(start, goal)
"""

from typing import TYPE_CHECKING, Any

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
from grasp_planner.differentiable import DerivativeWarning, DifferentiablePlan, differentiable_plan
from grasp_planner.goals import Alternatives, Anywhere, Ball, Goal, Region, Subset, Waypoints
from grasp_planner.interruptible import CheckpointMismatchError
from grasp_planner.isolation import ModelFailureWarning
from grasp_planner.latents import LatentModel
from grasp_planner.lifted_newton import LiftedNewtonConfig, LiftedNewtonPlanner
from grasp_planner.models import GeneralPathWarning
from grasp_planner.mpc import MPC, Control
from grasp_planner.options import Constraint, PlannerConfig
from grasp_planner.plan import NonFiniteWarning, Plan
from grasp_planner.planner import GraspPlanner
from grasp_planner.running import Moment
from grasp_planner.schedules import Schedule
from grasp_planner.world_model import WorldModel, WorldModelError

if TYPE_CHECKING:
    from grasp_planner.adapters.gymnasium import Evaluation, evaluate

__all__ = [
    "MPC",
    "Alternatives",
    "Anywhere",
    "Ball",
    "CEMConfig",
    "CEMPlanner",
    "CheckpointMismatchError",
    "Constraint",
    "Control",
    "DerivativeWarning",
    "DifferentiablePlan",
    "Evaluation",
    "GeneralPathWarning",
    "Goal",
    "GradientConfig",
    "GradientPlanner",
    "GraspConfig",
    "GraspPlanner",
    "ICEMConfig",
    "ICEMPlanner",
    "LatCoConfig",
    "LatCoPlanner",
    "LatentModel",
    "LiftedNewtonConfig",
    "LiftedNewtonPlanner",
    "MPPIConfig",
    "MPPIPlanner",
    "ModelFailureWarning",
    "Moment",
    "NonFiniteWarning",
    "Plan",
    "Planner",
    "PlannerConfig",
    "Region",
    "Schedule",
    "Subset",
    "Waypoints",
    "WorldModel",
    "WorldModelError",
    "differentiable_plan",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    """Names of adapters, which are imported where they are asked for."""
    if name in ("Evaluation", "evaluate"):
        from grasp_planner.adapters import gymnasium

        return getattr(gymnasium, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
