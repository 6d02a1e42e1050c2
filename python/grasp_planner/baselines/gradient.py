"""Shooting: gradient descent on held actions through the rollout, from several smooth starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from grasp_kernels import action_step_
from grasp_kernels.checks import OPTIMIZERS
from grasp_planner.blocks import first_of_blocks, hold_actions
from grasp_planner.options import PlannerConfig, choice, integer, number, positive
from grasp_planner.population import fresh_actions
from grasp_planner.schedules import geometric
from grasp_planner.search import RolloutPlanner, Search


@dataclass(frozen=True)
class GradientConfig(PlannerConfig):
    """How to plan; what every planner has is in `PlannerConfig`, but `hold` is 3 here.

    Attributes:
        restarts: plans per problem, each from its own random smooth actions; the best is returned.
            >= 1; 16.
        iterations: gradient steps. >= 0; 100.
        lr: their size, in units of half the box (1 where it is open) for "adam". > 0; 0.3.
        last_lr: in the last iteration, falling geometrically. > 0; 0.01.
        optimizer: "adam" or "sgd". "adam".
        spread: of the random starts, in units of half the box. >= 0; 1.5.
    """

    hold: int = integer(3, 1)
    restarts: int = integer(16, 1)
    iterations: int = integer(100, 0)
    lr: float = positive(0.3)
    last_lr: float = positive(0.01)
    optimizer: str = choice("adam", OPTIMIZERS)
    spread: float = number(1.5)

    def lr_of(self, iteration: int) -> float:
        """In iteration 1, 2, ..."""
        return geometric(self.lr, self.last_lr, iteration, self.iterations)


class GradientPlanner(RolloutPlanner):
    """Gradient shooting; see the module. The first start is the warm start, or no action.

    planner = GradientPlanner(world_model, GradientConfig(horizon=50, action_low=-1.0))
    plan = planner.plan(start, goal)
    """

    config_type: ClassVar = GradientConfig

    def _samples(self) -> int:
        return int(self.config.restarts)

    def _run(self, search: Search) -> None:
        config: GradientConfig = self.config
        centre, unit = search.centre, search.half_width
        blocks = config.spread * fresh_actions(search, config.restarts, 0)
        blocks[:, 0] = (first_of_blocks(search.warm, config.hold) - centre) / unit
        # One plan a row, in units of half the box, so that one step size suits all actions.
        moving = blocks.flatten(0, 1).contiguous()
        low, high = (search.low - centre) / unit, (search.high - centre) / unit
        moving.clamp_(low, high)
        memory: dict[str, Any] = {}
        for k in range(1, config.iterations + 1):
            blocks = search.clip(centre + unit * moving.unflatten(0, (-1, config.restarts)))
            actions = hold_actions(blocks, config.hold, config.horizon)
            _, gradient = search.cost_gradient(actions)
            gradient = torch.nan_to_num(unit * gradient, 0.0, 0.0, 0.0)  # a broken plan stays
            action_step_(
                moving,
                gradient.flatten(0, 1).contiguous(),
                memory,
                lr=config.lr_of(k),
                low=low,
                high=high,
                optimizer=config.optimizer,
                compare_bounds=False,
            )
            search.done(k)
        blocks = search.clip(centre + unit * moving.unflatten(0, (-1, config.restarts)))
        search.finish(hold_actions(blocks, config.hold, config.horizon))
