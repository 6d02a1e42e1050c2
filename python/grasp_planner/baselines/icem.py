"""iCEM: the cross-entropy method with coloured noise, shrinking populations and kept elites.

Pinneri et al., *Sample-efficient Cross-Entropy Method for Real-time Planning*, CoRL 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grasp_planner.algorithm import Algorithm
from grasp_planner.base import Planner
from grasp_planner.baselines.cem import fit
from grasp_planner.blocks import first_of_blocks, hold_actions
from grasp_planner.options import PlannerConfig, integer, number, positive
from grasp_planner.population import smallest, take
from grasp_planner.search import Search


@dataclass(frozen=True)
class ICEMConfig(PlannerConfig):
    """How to plan; what every planner has is in `PlannerConfig`.

    Attributes:
        samples: plans rolled out in the first iteration. >= 1; 300.
        least_samples: and in the last ones; the number falls by `decay` each time. >= 1; 100.
        decay: >= 1; 1.25.
        iterations: >= 0; 30.
        elites: the best, which the distribution is fitted to. 1 to `least_samples`; 10.
        kept: share of the elites that compete again in the next iteration. 0 to 1; 0.3.
        colour: exponent beta of the noise's power spectrum `f^-beta` over time: 0 is white, 2 a
            random walk. >= 0; 3.5.
        initial_std: of every action, in units of half the box (1 where it is open). > 0; 1.
        min_std: it never falls below this, in the same units. >= 0; 0.05.
        momentum: share of the old mean and deviation that is kept. 0 to 1; 0.1.
    """

    samples: int = integer(300, 1)
    least_samples: int = integer(100, 1)
    decay: float = number(1.25, 1.0)
    iterations: int = integer(30, 0)
    elites: int = integer(10, 1)
    kept: float = number(0.3, 0.0, 1.0)
    colour: float = number(3.5)
    initial_std: float = positive(1.0)
    min_std: float = number(0.05)
    momentum: float = number(0.1, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.elites <= self.least_samples <= self.samples:
            raise ValueError(
                "elites, least_samples and samples must not fall in this order, got "
                f"{self.elites}, {self.least_samples}, {self.samples}"
            )

    def samples_of(self, iteration: int) -> int:
        """How many new plans iteration 1, 2, ... rolls out."""
        return max(self.least_samples, int(self.samples / self.decay ** (iteration - 1)))


class _ICEM(Algorithm):
    """Mean and deviation of the actions of every block `(B', K, A)`, and the elites kept."""

    variables: ClassVar = ("mean", "std", "kept")

    def __init__(self, search: Search) -> None:
        super().__init__(search)
        self.shape = colouring(self.config.blocks, self.config.colour).to(search.warm)

    def begin(self) -> None:
        config: ICEMConfig = self.config
        self.mean = first_of_blocks(self.search.warm, config.hold)
        self.std = (config.initial_std * self.search.box.half_width).expand_as(self.mean)
        self.kept = self.mean[:, None]

    def step(self, k: int) -> int:
        config, search, mean = self.config, self.search, self.mean
        shape = self.shape
        noise = coloured(search.normals(config.samples_of(k), len(shape), mean.shape[2], k), shape)
        sampled = search.box.clip(mean[:, None] + self.std[:, None] * noise)
        blocks = torch.cat((sampled, self.kept), 1)
        if k == config.iterations:
            blocks[:, 0] = search.box.clip(mean)
        _, cost = search.rollout(hold_actions(blocks, config.hold, config.horizon))
        new_mean, new_std = fit(blocks, cost, config.elites, mean, self.std)
        self.mean = torch.lerp(new_mean, mean, config.momentum)
        least = config.min_std * search.box.half_width
        self.std = torch.lerp(new_std, self.std, config.momentum).maximum(least)
        self.kept = take(blocks, smallest(cost, int(config.kept * config.elites)))
        return search.done(k)

    def finish(self) -> None:
        if self.config.iterations == 0:
            self.search.finish(self.search.warm[:, None])


class ICEMPlanner(Planner):
    """iCEM; see the module. In the last iteration the mean is one of the samples.

    plan = ICEMPlanner(world_model, ICEMConfig(horizon=50, action_low=-1.0)).plan(start, goal)
    """

    config_type: ClassVar = ICEMConfig
    algorithm_type: ClassVar = _ICEM

    def _samples(self) -> int:
        return int(self.config.samples)


def coloured(white: Tensor, shape: Tensor) -> Tensor:
    """`shape @ white`, `(B, R, K, A)`, one frequency at a time.

    A matrix product rounds differently with the number of problems beside this one.
    """
    noise = torch.zeros_like(white)
    for f in range(len(shape)):
        noise = noise + shape[:, f, None] * white[:, :, f, None]
    return noise


def colouring(steps: int, beta: float) -> Tensor:
    """`(steps, steps)`: white noise to noise of power `f^-beta` and variance 1 at every step.

    Each frequency `f = 0 ... steps / 2` has a cosine and a sine (of which two may be missing); the
    constant has the power of the lowest frequency, as in Timmer and Koenig, 1995.
    """
    time = torch.arange(steps, dtype=torch.float64)
    columns = []
    for f in range(steps // 2 + 1):
        amplitude = max(f, 1) ** (-beta / 2)
        phase = 2 * torch.pi * f * time / steps
        single = f in (0, steps / 2)  # such a frequency has no sine
        columns.append(amplitude * torch.cos(phase))
        if not single:
            columns.append(amplitude * torch.sin(phase))
    matrix = torch.stack(columns, 1)
    return matrix / matrix.square().sum(1, keepdim=True).sqrt()
