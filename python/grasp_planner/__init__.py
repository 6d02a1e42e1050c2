"""Drop-in planners for learned world models, on fused kernels.

plan = GraspPlanner(world_model, GraspConfig(horizon=50)).plan(start, goal)
"""

from grasp_planner.config import GraspConfig
from grasp_planner.plan import NonFiniteWarning, Plan
from grasp_planner.planner import GraspPlanner
from grasp_planner.schedules import Schedule
from grasp_planner.whole_plan import GeneralPathWarning
from grasp_planner.world_model import WorldModel

__all__ = [
    "GeneralPathWarning",
    "GraspConfig",
    "GraspPlanner",
    "NonFiniteWarning",
    "Plan",
    "Schedule",
    "WorldModel",
]
