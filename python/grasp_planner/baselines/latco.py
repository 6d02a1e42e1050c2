"""LatCo: latent collocation with Lagrange multipliers on the dynamics.

Rybkin et al., *Model-Based Reinforcement Learning via Latent-Space Collocation*, ICML 2021. States
and actions are both variables, and the model's gradient goes through both of its inputs:

    minimise  cost(x, a) + sum_t lambda_t |F(x_t, a_t) - x_{t+1}|^2

where the cost is |x_T - g|^2_w and what the config adds to it. Each multiplier grows while its
constraint is violated, `lambda_t *= (violation_t / tolerance)^rate` within limits, so plans begin
free and end dynamically consistent. Adam moves both, in place of the authors' Levenberg-Marquardt
on states alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from grasp_kernels import action_step_
from grasp_planner.algorithm import Algorithm
from grasp_planner.base import Planner
from grasp_planner.blocks import hold_actions, sum_blocks
from grasp_planner.options import PlannerConfig, choice, integer, number, positive
from grasp_planner.population import fresh_actions
from grasp_planner.schedules import geometric
from grasp_planner.search import Search
from grasp_planner.world_model import needed


@dataclass(frozen=True)
class LatCoConfig(PlannerConfig):
    """How to plan; what every planner has is in `PlannerConfig`, but `hold` is 5 here.

    Attributes:
        restarts: plans per problem, which differ in their first actions. >= 1; 8.
        iterations: steps on states and actions. >= 0; 300.
        state_lr: Adam's step on states, in units of `state_scale`. > 0; 0.05.
        action_lr: Adam's step on actions, in units of half the box (1 where it is open). > 0; 0.05.
        last_lr: factor on both in the last iteration, falling geometrically: steps of one size keep
            defects of that size. > 0; 0.02.
        initial_multiplier: lambda at the start. > 0; 1.
        most_multiplier: it never exceeds this. > 0; 1e4.
        multiplier_every: iterations between its updates. >= 1; 5.
        multiplier_rate: exponent of an update, whose factor is from 1/2 to 2. >= 0; 0.5.
        tolerance: squared defect of a step that is good enough. > 0; 1e-6.
        initialization: of the states: "rollout" of the first actions, or "linear" from start to
            goal. "rollout": where a straight line crosses a wall, its middle never leaves it.
        spread: of the random first actions, in units of half the box. >= 0; 1.
    """

    hold: int = integer(5, 1)
    restarts: int = integer(8, 1)
    iterations: int = integer(300, 0)
    state_lr: float = positive(0.05)
    action_lr: float = positive(0.05)
    last_lr: float = positive(0.02)
    initial_multiplier: float = positive(1.0)
    most_multiplier: float = positive(1e4)
    multiplier_every: int = integer(5, 1)
    multiplier_rate: float = number(0.5)
    tolerance: float = positive(1e-6)
    initialization: str = choice("rollout", ("rollout", "linear"))
    spread: float = number(1.0)

    def lr_of(self, iteration: int) -> float:
        """The factor on both steps in iteration 1, 2, ..."""
        return geometric(1.0, self.last_lr, iteration, self.iterations)


class _LatCo(Algorithm):
    """States `(B' R, T + 1, D)`, actions in units of half the box, multipliers `(B' R, T)`."""

    variables: ClassVar = ("trajectory", "actions", "multiplier", "state_memory", "action_memory")

    def __init__(self, search: Search) -> None:
        super().__init__(search)
        self.multiplier_rows = self.config.restarts

    def begin(self) -> None:
        config, search = self.config, self.search
        blocks = config.spread * fresh_actions(search, config.restarts, 0)
        first = hold_actions(blocks, config.hold, config.horizon)
        first[:, 0] = search.box.to_units(search.warm)
        self.actions = search.box.clip_units(first.flatten(0, 1).contiguous())
        search.rollout(search.warm[:, None])
        if config.initialization == "linear":
            self.trajectory = self.straight_line()
        else:
            states, _ = search.rollout(self.plans())
            self.trajectory = torch.nan_to_num(states.flatten(0, 1), 0.0, 0.0, 0.0)
        self.multiplier = torch.full_like(self.actions[..., 0], config.initial_multiplier)
        self.state_memory: dict[str, Any] = {}
        self.action_memory: dict[str, Any] = {}
        search.tell()  # of the rollouts above; there may be no iteration after them

    def step(self, k: int) -> int:
        config, search = self.config, self.search
        defect, state_gradient, action_gradient = self.gradients()
        moving = self.trajectory[:, 1:].contiguous()
        action_step_(
            moving,
            state_gradient,
            self.state_memory,
            lr=config.state_lr * config.lr_of(k),
            optimizer="adam",
        )
        self.trajectory[:, 1:] = moving
        held = hold_actions(sum_blocks(action_gradient, config.hold), config.hold, config.horizon)
        lr = config.action_lr * config.lr_of(k)
        search.box.descend_(self.actions, held, self.action_memory, lr=lr)
        if k % config.multiplier_every == 0:
            share = defect.to(torch.promote_types(defect.dtype, torch.float32)) / config.tolerance
            factor = share.clamp(1e-12, 1e12) ** config.multiplier_rate  # no number of float16
            grown = self.multiplier * factor.clamp(0.5, 2.0)
            self.multiplier = grown.clamp_max(config.most_multiplier).to(self.multiplier)
        search.model_calls += 2
        if k % (10 * config.multiplier_every) == 0 or k == config.iterations:
            search.rollout(self.plans())
        if search.multipliers is not None:
            # Constraints' multipliers rise by the states that this iteration moved: the last
            # rollout is many iterations old, and of problems that may have left.
            states = self.trajectory.unflatten(0, (-1, config.restarts))
            search.seen(states, self.plans(), states.new_zeros(states.shape[:2]))
        return search.done(k)

    def plans(self) -> Tensor:
        """The plans' actions, `(B', R, T, A)`."""
        actions = self.search.box.from_units(self.actions)
        return actions.unflatten(0, (-1, self.config.restarts))

    def straight_line(self) -> Tensor:
        """From start to goal, `(B' R, T + 1, D)`; features without weight stay as they are."""
        search, restarts = self.search, self.config.restarts
        start = search.start_state.repeat_interleave(restarts, 0)
        goal = search.objective.target.first(search.start_state, restarts, search.goal_weight)
        goal = goal.flatten(0, 1)
        goal = torch.where(search.goal_weight > 0, goal, start)
        progress = torch.linspace(0, 1, self.config.horizon + 1).to(start)[:, None]
        return torch.lerp(start[:, None], goal[:, None], progress).contiguous()

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared defects `(B' R, T)`, gradients for states 1 ... T and for actions: one batch of
        one-step rollouts, and its adjoint. What is not finite is 0."""
        search = self.search
        controls = search.box.centre + search.box.half_width * self.actions
        controls.requires_grad_()
        states = self.trajectory.detach().requires_grad_()
        problems = torch.arange(len(search.live), device=states.device)
        owner = problems.repeat_interleave(self.config.restarts)
        multipliers = search.multipliers
        if multipliers is not None:
            multipliers = multipliers.flatten(0, 1)
        with torch.enable_grad():
            start = search.start.repeat_interleave(self.config.restarts, 0)
            prediction = search.model.predict(start, states[:, :-1], controls, self.config.max_rows)
            defect = (prediction - states[:, 1:]).square().sum(-1)
            arrival = search.cost_of_rows(states, controls, owner, multipliers)
            loss = (self.multiplier * defect).sum() + arrival.sum()
        by_state, by_action = torch.autograd.grad(loss, (states, controls), allow_unused=True)
        by_action = needed(by_action)
        return (
            torch.nan_to_num(defect.detach(), 0.0, 0.0, 0.0),
            torch.nan_to_num(by_state[:, 1:], 0.0, 0.0, 0.0).contiguous(),
            torch.nan_to_num(by_action, 0.0, 0.0, 0.0),
        )


class LatCoPlanner(Planner):
    """Latent collocation; see the module. The first restart begins at the warm start.

    plan = LatCoPlanner(world_model, LatCoConfig(horizon=50, action_low=-1.0)).plan(start, goal)
    """

    config_type: ClassVar = LatCoConfig
    algorithm_type: ClassVar = _LatCo

    def _samples(self) -> int:
        return int(self.config.restarts)
