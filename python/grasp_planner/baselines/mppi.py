"""MPPI: model predictive path integral control, a softmax over sampled plans.

Williams et al., *Information Theoretic MPC for Model-Based Reinforcement Learning*, ICRA 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grasp_planner.algorithm import Algorithm
from grasp_planner.base import Planner
from grasp_planner.blocks import first_of_blocks, hold_actions
from grasp_planner.options import PlannerConfig, integer, positive
from grasp_planner.schedules import geometric


@dataclass(frozen=True)
class MPPIConfig(PlannerConfig):
    """How to plan; what every planner has is in `PlannerConfig`, but `hold` is 5 here.

    Attributes:
        samples: plans rolled out in each iteration. >= 1; 300.
        iterations: >= 0; 30.
        temperature: of the softmax, in standard deviations of the samples' costs. > 0; 0.1.
        std: of the noise on every action in the first iteration, in units of half the box (1 where
            it is open). > 0; 0.7.
        last_std: in the last one, falling geometrically. > 0; 0.1.
    """

    hold: int = integer(5, 1)
    samples: int = integer(300, 1)
    iterations: int = integer(30, 0)
    temperature: float = positive(0.1)
    std: float = positive(0.7)
    last_std: float = positive(0.1)

    def std_of(self, iteration: int) -> float:
        """In iteration 1, 2, ..."""
        return geometric(self.std, self.last_std, iteration, self.iterations)


class _MPPI(Algorithm):
    """The mean of the actions of every block, `(B', K, A)`."""

    variables: ClassVar = ("mean",)

    def begin(self) -> None:
        self.mean = first_of_blocks(self.search.warm, self.config.hold)

    def step(self, k: int) -> int:
        config, search, mean = self.config, self.search, self.mean
        noise = search.normals(config.samples, config.blocks, mean.shape[2], k)
        noise[:, 0] = 0
        blocks = search.box.clip(mean[:, None] + config.std_of(k) * search.box.half_width * noise)
        _, cost = search.rollout(hold_actions(blocks, config.hold, config.horizon))
        weight = softmin(cost, config.temperature)
        some = weight.sum(1) > 0
        new = (weight[..., None, None] * blocks).sum(1)
        self.mean = torch.where(some[:, None, None], new, mean)
        return search.done(k)

    def finish(self) -> None:
        config = self.config
        self.search.finish(hold_actions(self.mean[:, None], config.hold, config.horizon))


class MPPIPlanner(Planner):
    """MPPI; see the module. The first sample is the mean, first of all the warm start.

    plan = MPPIPlanner(world_model, MPPIConfig(horizon=50, action_low=-1.0)).plan(start, goal)
    """

    config_type: ClassVar = MPPIConfig
    algorithm_type: ClassVar = _MPPI

    def _samples(self) -> int:
        return int(self.config.samples)


def softmin(cost: Tensor, temperature: float) -> Tensor:
    """Weights `(B, R)` of costs, in units of their deviation; 0 where inf, all 0 if all are."""
    finite = torch.isfinite(cost)
    number = finite.sum(1, keepdim=True).clamp_min(1)
    known = torch.where(finite, cost, 0.0)
    mean = known.sum(1, keepdim=True) / number
    spread = torch.where(finite, (cost - mean).square(), 0.0).sum(1, keepdim=True) / number
    least = torch.where(finite, cost, torch.inf).amin(1, keepdim=True)
    excess = (cost - least) / (temperature * spread.sqrt()).clamp_min(1e-30)
    weight = torch.where(finite, torch.exp(-excess), 0.0)
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-30)
