"""The cross-entropy method: sample plans, keep the elites, fit a normal distribution to them.

Rubinstein, *The Cross-Entropy Method for Combinatorial and Continuous Optimization*, 1999; as used
for planning by PETS, PlaNet and DINO-WM. Here with held actions, without which it is much weaker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grasp_planner.algorithm import Algorithm
from grasp_planner.base import Planner
from grasp_planner.blocks import first_of_blocks, hold_actions
from grasp_planner.options import PlannerConfig, integer, number, positive
from grasp_planner.population import smallest, take


@dataclass(frozen=True)
class CEMConfig(PlannerConfig):
    """How to plan; what every planner has is in `PlannerConfig`, but `hold` is 5 here.

    Attributes:
        samples: plans rolled out in each iteration. >= 1; 300.
        iterations: >= 0; 30.
        elites: the best of them, which the distribution is fitted to. 1 to `samples`; 10.
        initial_std: of every action, in units of half the box (1 where it is open). > 0; 0.7.
        min_std: it never falls below this, in the same units. >= 0; 0.05.
        momentum: share of the old mean and deviation that is kept. 0 to 1; 0.3.
    """

    hold: int = integer(5, 1)
    samples: int = integer(300, 1)
    iterations: int = integer(30, 0)
    elites: int = integer(10, 1)
    initial_std: float = positive(0.7)
    min_std: float = number(0.05)
    momentum: float = number(0.3, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elites > self.samples:
            raise ValueError(f"elites must be at most samples, got {self.elites} of {self.samples}")


class _CEM(Algorithm):
    """Mean and deviation of the actions of every block, `(B', K, A)`."""

    variables: ClassVar = ("mean", "std")

    def begin(self) -> None:
        config: CEMConfig = self.config
        self.mean = first_of_blocks(self.search.warm, config.hold)
        self.std = (config.initial_std * self.search.box.half_width).expand_as(self.mean)

    def step(self, k: int) -> int:
        config, search, mean = self.config, self.search, self.mean
        noise = search.normals(config.samples, config.blocks, mean.shape[2], k)
        noise[:, 0] = 0
        blocks = search.box.clip(mean[:, None] + self.std[:, None] * noise)
        _, cost = search.rollout(hold_actions(blocks, config.hold, config.horizon))
        new_mean, new_std = fit(blocks, cost, config.elites, mean, self.std)
        self.mean = torch.lerp(new_mean, mean, config.momentum)
        least = config.min_std * search.box.half_width
        self.std = torch.lerp(new_std, self.std, config.momentum).maximum(least)
        return search.done(k)

    def finish(self) -> None:
        config = self.config
        self.search.finish(hold_actions(self.mean[:, None], config.hold, config.horizon))


class CEMPlanner(Planner):
    """CEM; see the module. The first sample is the mean, first of all the warm start.

    plan = CEMPlanner(world_model, CEMConfig(horizon=50, action_low=-1.0)).plan(start, goal)
    """

    config_type: ClassVar = CEMConfig
    algorithm_type: ClassVar = _CEM

    def _samples(self) -> int:
        return int(self.config.samples)


def fit(
    blocks: Tensor, cost: Tensor, count: int, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the `count` best of `(B, R, K, A)`; what is not finite is no elite.

    A problem without elites keeps its own.
    """
    best = smallest(cost, count)
    elites = take(blocks, best)
    finite = torch.isfinite(take(cost, best))[..., None, None]
    number = finite.sum(1).clamp_min(1)
    new_mean = torch.where(finite, elites, 0.0).sum(1) / number
    spread = torch.where(finite, (elites - new_mean[:, None]).square(), 0.0).sum(1) / number
    some = finite.any(1)
    return torch.where(some, new_mean, mean), torch.where(some, spread.sqrt(), std)
