"""Shooting: gradient descent on held actions through the rollout, from several smooth starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from grasp_kernels.checks import OPTIMIZERS
from grasp_planner.algorithm import Algorithm
from grasp_planner.base import Planner
from grasp_planner.blocks import first_of_blocks, hold_actions
from grasp_planner.options import PlannerConfig, choice, integer, number, positive
from grasp_planner.population import fresh_actions
from grasp_planner.schedules import geometric
from grasp_planner.search import Search


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


class _Gradient(Algorithm):
    """The actions of every block `(B' R, K, A)`, one plan a row, and Adam's memory of them.

    In units of half the box, so that one step size suits all actions.
    """

    variables: ClassVar = ("moving", "memory")

    def __init__(self, search: Search) -> None:
        super().__init__(search)
        self.multiplier_rows = self.config.restarts

    def begin(self) -> None:
        config, search = self.config, self.search
        blocks = config.spread * fresh_actions(search, config.restarts, 0)
        blocks[:, 0] = search.box.to_units(first_of_blocks(search.warm, config.hold))
        self.moving = search.box.clip_units(blocks.flatten(0, 1).contiguous())
        self.memory: dict[str, Any] = {}

    def step(self, k: int) -> int:
        config, search = self.config, self.search
        _, gradient = search.cost_gradient(self.held())
        search.box.descend_(
            self.moving,
            gradient.flatten(0, 1),
            self.memory,
            lr=config.lr_of(k),
            optimizer=config.optimizer,
        )
        return search.done(k)

    def finish(self) -> None:
        self.search.finish(self.held())

    def held(self) -> Tensor:
        """The plans' actions, `(B', R, T, A)`."""
        config, search = self.config, self.search
        blocks = search.box.from_units(self.moving).unflatten(0, (-1, config.restarts))
        return hold_actions(blocks, config.hold, config.horizon)


class GradientPlanner(Planner):
    """Gradient shooting; see the module. The first start is the warm start, or no action.

    planner = GradientPlanner(world_model, GradientConfig(horizon=50, action_low=-1.0))
    plan = planner.plan(start, goal)
    """

    config_type: ClassVar = GradientConfig
    algorithm_type: ClassVar = _Gradient

    def _samples(self) -> int:
        return int(self.config.restarts)
