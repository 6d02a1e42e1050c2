"""Second-order refinement of plans: lifted, all time steps at once, or through the true rollout.

Both take damped Gauss-Newton steps on the goal error at the end of the plan, for held actions in a
box. They differ in where the model is linearised: around virtual states, which the step then moves
(and whose defects it closes), or around the true rollout of the actions, with a rollout after every
step to see whether it was a good one (Levenberg-Marquardt).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_kernels import lifted_newton_step_
from grasp_planner.initial import plan_blocks
from grasp_planner.matrix_free import matrix_free_calls, matrix_free_newton_step_
from grasp_planner.models import KernelModel, roll_out, terminal_cost
from grasp_planner.world_model import CheckedModel

PRODUCTS = ("auto", "jacobians", "matrix-free")
MOST_JACOBIAN_FEATURES = 128
Linear = tuple[Tensor, Tensor, Tensor]  # F (N, T, D), dF/ds (N, T, D, D), dF/da (N, T, D, A)
SMALLER, LARGER = 0.25, 6.0  # the damping's factor after a step that was good, and one that was not


@dataclass(frozen=True)
class NewtonSteps:
    """How to step; tensors on the plans' device, the rest as in `LiftedNewtonConfig`."""

    goal_weight: Tensor
    hold: int
    low: Tensor
    high: Tensor
    max_action_step: float = 0.5
    max_state_step: float = 0.5
    damping: float = 1e-3
    products: str = "auto"
    jacobians_every: int = 1
    max_rows: int | None = None

    def by_jacobians(self, features: int) -> bool:
        """Whether a step of so many state features makes them."""
        few = features <= MOST_JACOBIAN_FEATURES
        return self.products == "jacobians" or (self.products == "auto" and few)

    def calls(self, trajectory: Tensor, actions: Tensor) -> int:
        """Dependent model calls of one step."""
        if self.by_jacobians(trajectory.shape[2]):
            return 2
        _, horizon, width = actions.shape
        return matrix_free_calls(horizon, width, self.hold)

    def step_(
        self,
        model: KernelModel | CheckedModel,
        trajectory: Tensor,
        actions: Tensor,
        goal: Tensor,
        damping: Tensor,
    ) -> Tensor:
        """One step, in place on `trajectory (N, T + 1, D)` and `actions (N, T, A)`.

        Returns the goal error `(N,)` before it.
        """
        if self.by_jacobians(trajectory.shape[2]):
            linear = model.jacobians(trajectory[:, :-1], actions, self.max_rows)
            return self.move_(trajectory, actions, linear, goal, damping)
        error = torch.empty_like(damping)
        for plans in plan_blocks(len(goal), self.max_rows):
            error[plans] = matrix_free_newton_step_(
                model.plain,
                trajectory[plans],
                actions[plans],
                goal[plans],
                damping=damping[plans],
                goal_weight=self.goal_weight,
                hold=self.hold,
                low=self.low,
                high=self.high,
                max_action_step=self.max_action_step,
                max_state_step=self.max_state_step,
                max_rows=self.max_rows,
            )
        return error

    def move_(
        self, trajectory: Tensor, actions: Tensor, linear: Linear, goal: Tensor, damping: Tensor
    ) -> Tensor:
        """The same step with the model linearised already; the goal error `(N,)` before it."""
        if trajectory.dtype in (torch.bfloat16, torch.float16):  # no numbers to solve systems in
            wide = trajectory.float(), actions.float()
            by_float = (linear[0].float(), linear[1].float(), linear[2].float())
            error = self.move_(*wide, by_float, goal.float(), damping.float())
            trajectory.copy_(wide[0])
            actions.copy_(wide[1].clamp(self.low, self.high))
            return error.to(damping.dtype)
        prediction, state_jacobian, action_jacobian = linear
        return lifted_newton_step_(
            trajectory,
            actions,
            prediction,
            state_jacobian,
            action_jacobian,
            goal,
            damping=damping,
            goal_weight=self.goal_weight,
            hold=self.hold,
            low=self.low.to(actions),
            high=self.high.to(actions),
            max_action_step=self.max_action_step,
            max_state_step=self.max_state_step,
            compare_bounds=False,
        ).goal_error


def refine_lifted(
    model: KernelModel | CheckedModel,
    steps: NewtonSteps,
    count: int,
    states: Tensor,
    actions: Tensor,
    goal: Tensor,
) -> Tensor:
    """Actions `(N, T, A)` after `count` lifted steps from a rollout `states (N, T + 1, D)`.

    A step is judged where the next one begins: if the goal error there, at the end of the newly
    linearised rollout, is no smaller, the plan steps again from where it stood, damped more.
    """
    trajectory, actions = states.clone(), actions.clone()
    damping = goal.new_full((len(goal),), steps.damping)
    error = torch.full_like(damping, torch.inf)
    if not steps.by_jacobians(states.shape[2]):
        stood = [trajectory, actions]
        for _ in range(count):  # nothing is kept to step again with: that is the next step
            here, moved = [trajectory, actions], [trajectory.clone(), actions.clone()]
            found = steps.step_(model, moved[0], moved[1], goal, damping)
            better = found <= error  # equal: the same place again
            error = torch.where(better, found, error)
            damping = damping * torch.where(better, SMALLER, LARGER)
            stood = [along(better, new, old) for new, old in zip(here, stood, strict=True)]
            trajectory, actions = (
                along(better, new, old) for new, old in zip(moved, stood, strict=True)
            )
        return actions
    stood = []  # trajectory, actions, and the model linearised there
    for k in range(count):
        if k % steps.jacobians_every == 0:
            linear = model.jacobians(trajectory[:, :-1], actions, steps.max_rows)
        else:  # a chord step: new defects, old Jacobians, and the price of a forward pass
            prediction = model.predict(
                trajectory[:, 0], trajectory[:, :-1], actions, steps.max_rows
            )
            linear = (prediction, linear[1], linear[2])
        here = [trajectory.clone(), actions.clone(), *linear]
        found = steps.move_(trajectory, actions, linear, goal, damping)
        better = found < error
        error = torch.where(better, found, error)
        damping = damping * torch.where(better, SMALLER, LARGER)
        if k == 0:
            stood = here
            continue
        stood = [along(better, new, old) for new, old in zip(here, stood, strict=True)]
        again = [stood[0].clone(), stood[1].clone()]
        steps.move_(again[0], again[1], (stood[2], stood[3], stood[4]), goal, damping)
        trajectory = along(better, trajectory, again[0])
        actions = along(better, actions, again[1])
    return actions


def along(plans: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` for the plans `(N,)` that are True, else `no`, both `(N, ...)`."""
    return torch.where(plans.view(-1, *[1] * (yes.dim() - 1)), yes, no)


def refine_by_rollout(
    model: KernelModel | CheckedModel,
    steps: NewtonSteps,
    count: int,
    states: Tensor,
    actions: Tensor,
    goal: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Actions, states and cost `(N,)` after `count` steps through the rollout, never worse ones."""
    damping = goal.new_full((len(goal),), steps.damping)
    cost = terminal_cost(states, goal, steps.goal_weight)
    for _ in range(count):
        trial_states, trial = states.clone(), actions.clone()
        steps.step_(model, trial_states, trial, goal, damping)
        trial_states = roll_out(model, states[:, 0], trial, steps.max_rows)
        trial_cost = terminal_cost(trial_states, goal, steps.goal_weight)
        better = trial_cost < cost
        cost = torch.where(better, trial_cost, cost)
        actions, states = along(better, trial, actions), along(better, trial_states, states)
        damping = damping * torch.where(better, SMALLER, LARGER)
    return actions, states, cost
