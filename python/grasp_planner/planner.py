"""GraspPlanner: plan through a world model by lifting the trajectory (arXiv 2602.00475)."""

from __future__ import annotations

from grasp_planner import whole_plan
from grasp_planner.config import GraspConfig
from grasp_planner.inputs import Problem
from grasp_planner.lifted_plans import LiftedPlans
from grasp_planner.models import KernelModel
from grasp_planner.search import Algorithm, Planner, Search
from grasp_planner.world_model import CheckedModel


class GraspPlanner(Planner):
    """Plans from start to goal through any differentiable world model.

        planner = GraspPlanner(world_model, GraspConfig(horizon=50, action_low=-1.0))
        plan = planner.plan(start, goal)      # start, goal (B, D); plan.actions (B, T, A)

    The plan returned is never worse than a warm start.

    Args:
        world_model: `F(state (rows, D), action (rows, A)) -> next state (rows, D)`; see
            `WorldModel`.
        config: how to plan.
    """

    config_type = GraspConfig

    def _samples(self) -> int:
        return int(self.config.candidates)

    def _iterations(self) -> int:
        return int(self.config.iterations)

    def _open(self, problem: Problem) -> KernelModel | CheckedModel:
        dynamics, path = whole_plan.find_dynamics(
            self.world_model, self.config, problem.start, problem.state_scale
        )
        if dynamics is None:
            return CheckedModel(self.world_model, problem.state_scale, path)
        return KernelModel(dynamics, path)

    def _algorithm(self, search: Search) -> Algorithm:
        if isinstance(search.model, KernelModel):
            return whole_plan.WholePlans(search)
        return LiftedPlans(search)
