"""GraspPlanner: plan through a world model by lifting the trajectory (arXiv 2602.00475)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from grasp_planner import whole_plan
from grasp_planner.algorithm import Algorithm
from grasp_planner.base import Planner
from grasp_planner.config import GAUSS_NEWTON, GraspConfig
from grasp_planner.costs import NEVER
from grasp_planner.inputs import Problem
from grasp_planner.lifted_plans import LiftedPlans, Surrogate
from grasp_planner.models import KERNELS, KernelModel
from grasp_planner.search import Search
from grasp_planner.world_model import CheckedModel, WorldModel


class GraspPlanner(Planner):
    """Plans from start to goal through any differentiable world model.

        planner = GraspPlanner(world_model, GraspConfig(horizon=50, action_low=-1.0))
        plan = planner.plan(start, goal)      # start, goal (B, D); plan.actions (B, T, A)

    The plan returned is never worse than a warm start.

    Args:
        world_model: `F(state (rows, D), action (rows, A)) -> next state (rows, D)`; see
            `WorldModel`.
        config: how to plan.
        surrogate: a learned `(state (rows, D), action (rows, A), cotangent (rows, D)) -> (rows, D)`
            in the world model's units, an approximation of `(dF/ds)^T cotangent` that stands for it
            wherever `state_gradient_scale` lets it in, as `Surrogate`; None is the exact one.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    config_type = GraspConfig

    def __init__(
        self,
        world_model: WorldModel,
        config: GraspConfig | None = None,
        *,
        surrogate: Surrogate | None = None,
    ) -> None:
        super().__init__(world_model, config)
        if surrogate is not None and not callable(surrogate):
            raise TypeError(f"surrogate must be callable, got {type(surrogate).__name__}")
        if surrogate is not None and self.config.state_gradient_scale == NEVER:
            raise ValueError("surrogate is of no use while config.state_gradient_scale is 0")
        self.surrogate = surrogate

    def _models(self) -> tuple[Callable[..., Tensor], ...]:
        return (self.world_model, *(() if self.surrogate is None else (self.surrogate,)))

    def _samples(self) -> int:
        return int(self.config.candidates)

    def _open(self, problem: Problem) -> KernelModel | CheckedModel:
        model = super()._open(problem)
        if isinstance(model, KernelModel):
            obstacle = whole_plan.obstacle(self.config, problem)
            one_by_one = f"{KERNELS} call by call: {obstacle}"
            model.path = whole_plan.WHOLE_PLAN if obstacle is None else one_by_one
        if not model.markov and self.config.sync_optimizer == GAUSS_NEWTON:
            raise ValueError(
                "config.sync_optimizer 'gauss-newton' needs a world model of single states without "
                "noise"
            )
        if not model.markov and self.surrogate is not None:
            raise ValueError("surrogate needs a world model of single states without noise")
        return model

    def _algorithm(self, search: Search) -> Algorithm:
        if search.model.path == whole_plan.WHOLE_PLAN:
            return whole_plan.WholePlans(search, self.share)
        return LiftedPlans(search, self.surrogate, self.share)
