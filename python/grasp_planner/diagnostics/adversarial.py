"""How small a change of a state makes the model believe in success: the GRASP paper's Figure 3.

A planner that may move virtual states by the gradient through the model's state input can end at
states which are no better in truth, but from which the model's next step lands on the goal. Here
that is searched for on purpose, at states along a plan, one step of the model each: the smallest
change of the state, against the best that the action can do inside its bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_planner.diagnostics.setting import Setting, checked, checked_actions
from grasp_planner.world_model import CheckedModel

STARTS = 4  # of the descent at every radius: no change, and random ones
STEPS = 24  # of each descent
HALVINGS = 6  # of the bracket, in which the smallest radius lies
#: Radii that are tried, as shares of the straight way to the goal.
SHARES = tuple(0.01 * 1.25**k for k in range(22))  # 0.01 ... 1.08


@dataclass(frozen=True, eq=False)
class Adversarial:
    """P states along a plan; float64 on the CPU. Norms are of scaled states, all D features.

    Attributes:
        steps: `(P,)` int64, t of each state.
        gap: `(P,)`, the distance, over the features that count, from the honest prediction
            F(s_t, a_t) to the goal.
        honest_step: `(P,)`, the part of the gap that a state has to go for the prediction to come
            inside the success radius, if the model moves as the state does: `gap (1 - radius /
            distance)`, distance being the success radius's own measure. A `state_step` much
            smaller than this fakes something.
        one_step: `(P,)`, `|F(s_t, a_t) - s_t|`, what the model itself changes in a step.
        state_step: `(P,)`, the smallest found `|d|` with `F(s_t + d, a_t)` within the success
            radius of the goal; inf where none was found. It is an upper bound: a longer search
            may find a smaller one.
        honest: `(P,)` bool: the honest prediction is already there; such states say nothing.
        shares: `(K,)`, changes as shares of the gap.
        state_left: `(P, K)`, what is left of the distance to the goal (the success radius's own
            measure), as a share of the honest one, after the best change of so large a norm.
        action_left: `(P,)`, the same after the best action inside the bounds.
        action_arrives: `(P,)` bool: some action inside the bounds gets there in one step.
    """

    steps: Tensor
    gap: Tensor
    honest_step: Tensor
    one_step: Tensor
    state_step: Tensor
    honest: Tensor
    shares: Tensor
    state_left: Tensor
    action_left: Tensor
    action_arrives: Tensor


def adversarial_steps(
    setting: Setting,
    states: Tensor,
    actions: Tensor,
    steps: Tensor | None = None,
    *,
    problem: int = 0,
    seed: int = 0,
) -> Adversarial:
    """How small a state step fakes success, and what actions alone can do.

    Projected gradient descent on the weighted squared distance of the model's next state to the
    goal, normalised steps, from several starts, at a growing radius; then bisection between the
    last radius that fails and the first that succeeds.

    Args:
        setting: world model and problems, with a `success_radius`.
        states: `(T + 1, D)` or `(T, D)` unscaled: states along a plan, s_0 first.
        actions: `(T, A)`, the plan's.
        steps: `(P,)` int64, at which of them; None is up to 8, spread over the first three
            quarters of the plan.
        problem: whose goal.
        seed: of the random starts.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """
    controls = checked_actions(setting, actions, plans=1)[0]
    path = checked("states", states, "(T + 1, D)", 3)[0]
    horizon, width = controls.shape
    if len(path) not in (horizon, horizon + 1):
        raise ValueError(f"states must be (T + 1, D) with T = {horizon}, got {tuple(path.shape)}")
    if steps is None:
        last = max(0, (3 * horizon) // 4 - 1)
        steps = torch.linspace(0, last, min(8, last + 1)).round().long().unique()
    if steps.numel() == 0 or int(steps.min()) < 0 or int(steps.max()) >= horizon:
        raise ValueError(f"steps must be from 0 to {horizon - 1}, got {steps.tolist()}")
    model, dtype, _ = setting.precise(width)
    search = _Search(setting, setting.problem(problem), model, dtype, width, seed)
    return search.run(steps, setting.scaled(path[steps]).to(dtype), controls[steps].to(dtype))


class _Search:
    """The descents at one goal, of all states and starts at once."""

    def __init__(
        self,
        setting: Setting,
        problem: int,
        model: CheckedModel,
        dtype: torch.dtype,
        width: int,
        seed: int,
    ) -> None:
        self.setting, self.problem, self.model = setting, problem, model
        self.goal = setting.scaled(setting.goal[problem]).to(dtype)
        self.weight = setting.weight.to(dtype)
        self.low, self.high = setting.bounds(width, dtype)
        self.generator = torch.Generator().manual_seed(seed % 2**63)

    def run(self, steps: Tensor, states: Tensor, actions: Tensor) -> Adversarial:
        count = len(states)
        with torch.no_grad():
            honest = self.model(states, actions)
        counted = self.weight > 0
        gap = (honest - self.goal)[:, counted].norm(dim=1)
        before = self._distance(honest)
        there = before <= self.setting.radius()
        # Of what NaN leaves of it, nothing is found, and says so.
        left, found = [], torch.full_like(gap, torch.inf)
        lower = torch.zeros_like(gap)
        for share in SHARES:
            radius = share * gap
            rest = self._best_state_step(states, actions, radius)
            left.append(rest / before)
            new = (rest <= self.setting.radius()) & found.isinf()
            found = torch.where(new, radius, found)
            lower = torch.where(found.isinf(), radius, lower)
        for _ in range(HALVINGS):
            middle = torch.where(found.isinf(), 0.0, (lower + found) / 2)
            rest = self._best_state_step(states, actions, middle)
            works = (rest <= self.setting.radius()) & found.isfinite()
            found = torch.where(works, middle, found)
            lower = torch.where(works, lower, torch.maximum(lower, middle))
        action_rest = self._best_action(states, actions)

        def out(values: Tensor) -> Tensor:
            return values.double().cpu()

        nothing = torch.full((count,), torch.nan, dtype=torch.float64)
        return Adversarial(
            steps=steps.cpu(),
            gap=out(gap),
            honest_step=out(gap * (1 - self.setting.radius() / before)),
            one_step=out((honest - states).norm(dim=1)),
            state_step=torch.where(there.cpu(), nothing, out(found)),
            honest=there.cpu(),
            shares=torch.tensor(SHARES, dtype=torch.float64),
            state_left=out(torch.stack(left, 1)),
            action_left=out(action_rest / before),
            action_arrives=(action_rest <= self.setting.radius()).cpu(),
        )

    def _distance(self, states: Tensor) -> Tensor:
        index = torch.full((len(states),), self.problem, device=states.device)
        with torch.no_grad():
            return self.setting.distances(states, index).to(states)

    def _best_state_step(self, states: Tensor, actions: Tensor, radius: Tensor) -> Tensor:
        """`(P,)`: the least distance to the goal after a change of the state of norm `radius`."""
        rows, controls = states.repeat(STARTS, 1), actions.repeat(STARTS, 1)
        limit = radius.repeat(STARTS)[:, None]

        def project(change: Tensor) -> Tensor:
            norm = change.norm(dim=1, keepdim=True).clamp(min=1e-30)
            return change * (limit / norm).clamp(max=1.0)

        begin = project(limit * self._starts(rows))
        return self._descend(begin, limit, project, lambda d: self.model(rows + d, controls))

    def _best_action(self, states: Tensor, actions: Tensor) -> Tensor:
        """`(P,)`: the least distance to the goal after an action inside the bounds."""
        rows = states.repeat(STARTS, 1)
        width = self.high - self.low
        size = torch.where(width.isfinite(), width / 2, 1.0)
        changes = size * self._starts(actions.repeat(STARTS, 1)) * actions.shape[1] ** 0.5

        def project(control: Tensor) -> Tensor:
            return control.clamp(self.low, self.high)

        begin = project(actions.repeat(STARTS, 1) + changes)
        reach = size.norm().expand(len(rows), 1)
        return self._descend(begin, reach, project, lambda a: self.model(rows, a))

    def _starts(self, rows: Tensor) -> Tensor:
        """Random unit vectors, the first quarter of them 0: the unchanged one is a start too."""
        directions = torch.randn(rows.shape, generator=self.generator, dtype=torch.float64)
        directions = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-30)
        directions[: len(rows) // STARTS] = 0
        return directions.to(rows)

    def _descend(
        self,
        begin: Tensor,
        reach: Tensor,
        project: Callable[[Tensor], Tensor],
        predict: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """`(P,)`: the least distance met on descents from `(STARTS P, n)`, by steps that shrink."""
        at = begin
        best = torch.full_like(reach[:, 0], torch.inf)
        for k in range(STEPS + 1):
            with torch.enable_grad():
                at = at.detach().requires_grad_()
                prediction = predict(at)
                cost = (self.weight * (prediction - self.goal).square()).sum()
                (gradient,) = torch.autograd.grad(cost, at, materialize_grads=True)
            distance = self._distance(prediction.detach())
            best = torch.where(distance < best, distance, best)  # NaN is never less
            norm = gradient.norm(dim=1, keepdim=True).clamp(min=1e-30)
            step = reach * 0.5 * (1 - k / (STEPS + 1))
            at = project(at - step * gradient / norm)
        return best.view(STARTS, -1).amin(0)
