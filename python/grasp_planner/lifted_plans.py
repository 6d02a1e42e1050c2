"""The variables of lifted plans, and the loop that moves them; reads like the equations.

Symbols: N = B R plans (B problems, R candidates each), T steps, D state features, A action
features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from grasp_kernels import action_step_, lifted_loss, lifted_step_, scale_state_gradient
from grasp_kernels.reference import block_sum
from grasp_planner.costs import NEVER
from grasp_planner.initial import plan_blocks, state_noise
from grasp_planner.search import Search
from grasp_planner.synced_plans import SyncedPlans, all_finite
from grasp_planner.world_model import CheckedModel, needed

#: `(state (rows, D), action (rows, A), cotangent (rows, D)) -> (rows, D)`
Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]


class LiftedPlans(SyncedPlans):
    """Lifted plans, and the iterations that move them."""

    def __init__(
        self, search: Search, surrogate: Surrogate | None = None, share: range | None = None
    ) -> None:
        super().__init__(search, share)
        self.surrogate = surrogate

    # -------------------------------------------------------------------------------- the loop

    def step(self, k: int) -> int:
        config = self.config
        last = self.iterate(k)
        self.search.model_calls += 2 * (last - k + 1)
        if config.sync_every and last % config.sync_every == 0 and last < config.iterations:
            self.search.iterations = last
            self.sync(config.sync_steps)
            self.share()
        self.snapshot(last)
        return last

    def finish(self) -> None:
        self.sync(0 if self.search.budget.spent else self.config.final_sync_steps)
        self.share()

    def iterate(self, k: int) -> int:
        """Lifted iteration k; returns the last one made, which is k."""
        config = self.config
        fused = config.state_optimizer == "sgd" and config.state_gradient_scale == NEVER
        loss = torch.zeros_like(self.actions[..., 0], dtype=self.schedule.dtype)
        extra = self.extra_term() if self.drawn or self.search.objective.adds else None
        one_pass = self.fused_pass if fused else self.autograd_pass
        gradient = one_pass(k, loss, None if extra is None else extra[1])
        total = self.total(k, loss)
        if extra is not None:
            total = total + extra[0].to(total)
            gradient = gradient + extra[2]
        self.sound &= torch.isfinite(total) & all_finite(gradient)
        self.note(k, total[None])
        self.move_actions(gradient, self.action_memory, config.action_lr, config.action_optimizer)
        return k

    def total(self, k: int, step_loss: Tensor) -> Tensor:
        """The loss `(N,)` of iteration k from that of its steps, `(N, T)`."""
        return block_sum(step_loss)

    def note(self, first: int, losses: Tensor) -> None:
        """The losses `(iterations, N)` before the steps of iterations `first ...`."""
        search = self.search
        losses = losses.unflatten(1, (-1, self.candidates)).to(search.history.dtype)
        rows = slice(first - 1, first - 1 + len(losses))
        if self.config.stop_cost is not None:  # else all problems are searched to the end
            known = torch.where(search.active[:, None], losses, torch.nan)
            losses = search.history[rows].index_copy(1, search.live, known)
        search.history[rows] = losses

    def extra_term(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is not the lifted loss, at the virtual states: its values `(N,)`, its gradients for
        states `(N, T + 1, D)` and for actions `(N, T, A)`.
        """
        search, objective = self.search, self.search.objective
        costs, by_state, by_action = [], [], []
        rows = self.config.max_rows and max(1, self.config.max_rows // self.config.horizon)
        for plans in plan_blocks(len(self.goal), rows):
            states = self.trajectory[plans].detach().requires_grad_()
            actions = self.actions[plans].detach().requires_grad_()
            ours = objective.take(self.owner(plans))
            with torch.enable_grad():
                lifted = states[:, None], actions[:, None]
                cost = states.new_zeros(len(states), 1)
                if self.drawn:
                    cost = cost + ours.goal(lifted[0])
                if objective.adds:
                    cost = cost + ours.extra(*lifted, search.now, self.pressed(plans))
                total = cost.sum()
            given = (states, actions)
            if total.requires_grad:
                found = torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True)
            else:  # all weights of this iteration are 0
                found = tuple(torch.zeros_like(values) for values in given)
            costs.append(cost.detach()[:, 0])
            by_state.append(found[0])
            by_action.append(found[1])
        if not costs:
            return self.best_cost, torch.zeros_like(self.trajectory), torch.zeros_like(self.actions)
        return torch.cat(costs), torch.cat(by_state), torch.cat(by_action)

    def fused_pass(self, k: int, step_loss: Tensor, extra: Tensor | None) -> Tensor:
        """States step, actions' gradient returned: nothing but the model and the fused kernel.

        `extra`: the gradient for the states of what the kernel does not know.
        """
        config, problem = self.config, self.problem
        goal_weight, noise_scale = self.schedule[k - 1]
        gradient = torch.zeros_like(self.actions)
        compiled, traced = None, self.model
        if isinstance(traced, CheckedModel) and traced.markov:
            compiled = self.search.planner.accelerated().lifted
        for plans, first, last in self.blocks():
            block = self.trajectory[plans, first : last + 1]
            seen = slice(first - min(self.model.history - 1, first), last)
            # Always a copy: the block moves before the model is differentiated, and the model's
            # graph may hold its input. A reshape of one plan, or of one step, would be a view.
            states = self.trajectory[plans, seen].clone(memory_format=torch.contiguous_format)
            active = self.active[plans]
            added = None if extra is None else extra[plans, first : last + 1]
            settings = {
                "state_lr": config.state_lr * active,
                "goal_weight": goal_weight,
                "noise_scale": noise_scale * active,
                "seed": config.seed,
                "iteration": k,
                "plan_ids": self.plan_ids[plans],
                "noise": config.noise,
                "modes": config.noise_modes,
                "feature_weight": problem.feature_weight,
                "terminal": self.terminal,
                "first_step": self.first + first,
                "horizon": self.horizon,
            }
            if compiled is not None:
                given = (block, states, self.actions[plans, seen], self.goal[plans], added)
                assert isinstance(traced, CheckedModel)
                found = compiled(traced.unchecked, *given, **settings)
                step_loss[plans, first:last], gradient[plans, first:last] = found
                continue
            with torch.enable_grad():
                actions = self.leaf(self.actions[plans, seen])
                prediction = self.model.lifted(self.start[plans], states, actions, first)
            loss, cotangent = lifted_step_(
                block,
                prediction,
                self.goal[plans],
                state_gradient=added,
                state_gradient_scale=0.0 if added is None else 1.0,
                per_step=True,
                **settings,
            )
            step_loss[plans, first:last] = loss.total
            gradient[plans, seen] += self.model.action_gradient(prediction, actions, cotangent)
        return gradient

    def autograd_pass(self, k: int, step_loss: Tensor, extra: Tensor | None) -> Tensor:
        """The same by autograd, for state gradients through the model or Adam on the states."""
        config, problem = self.config, self.problem
        goal_weight, noise_scale = self.schedule[k - 1]
        surrogate, share = self.surrogate, config.state_gradient_scale(k, config.iterations)
        gradient = torch.zeros_like(self.actions)
        state_gradient = torch.zeros_like(self.trajectory)
        for plans, first, last in self.blocks():
            with torch.enable_grad():
                lead = min(self.model.history - 1, first)
                every = self.leaf(self.trajectory[plans, first - lead : last + 1])
                block = every[:, lead:]
                actions = self.leaf(self.actions[plans, first - lead : last])
                scale = share if surrogate is None else 0.0
                states = scale_state_gradient(every[:, :-1], scale)
                prediction = self.model.lifted(self.start[plans], states, actions, first)
                loss = lifted_loss(
                    prediction,
                    block,
                    self.goal[plans],
                    goal_weight=goal_weight,
                    feature_weight=problem.feature_weight,
                    per_step=True,
                )
                action_gradient, block_gradient, cotangent = torch.autograd.grad(
                    loss.total.sum(), (actions, every, prediction), allow_unused=True
                )
                action_gradient = needed(action_gradient)
            step_loss[plans, first:last] = loss.total.detach()
            gradient[plans, first - lead : last] += action_gradient
            state_gradient[plans, first - lead : last + 1] += block_gradient
            if surrogate is not None:
                back = self.pulled_back(surrogate, states, actions, cotangent)
                state_gradient[plans, first:last] += share * back
        if extra is not None:  # last of all, so that blocks of time change no bit of a sum
            state_gradient += extra
        moving = self.trajectory[:, 1 : self.end]
        action_step_(
            moving,
            state_gradient[:, 1 : self.end].contiguous(),
            self.state_memory,
            lr=config.state_lr * self.active,
            optimizer=config.state_optimizer,
        )
        xi = state_noise(self, iteration=k, rows=range(1, self.end))
        moving += (noise_scale * self.active)[:, None, None].to(xi.dtype) * xi
        return gradient

    def pulled_back(
        self, surrogate: Any, states: Tensor, actions: Tensor, cotangent: Tensor
    ) -> Tensor:
        """What a surrogate takes for `(dF/ds)^T cotangent`, `(n, t, D)`, in the planner's units."""
        units = self.problem.units
        rows = (states.detach() * units).flatten(0, 1), actions.detach().flatten(0, 1)
        found: Any = surrogate(*rows, (cotangent / units).flatten(0, 1))
        if not isinstance(found, Tensor) or found.shape != rows[0].shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"surrogate must return (rows, D) {tuple(rows[0].shape)}, got {shape}")
        return found.to(states).view_as(states) * units

    def blocks(self) -> Iterator[tuple[slice, int, int]]:
        """(plans, first, last): blocks of plans and of time steps, at most `max_rows` rows each.

        Time runs backwards. A block moves the states *after* its inputs, so every later block still
        finds its own rows as they were, and the result is that of a single block.
        """
        plans, steps = len(self.goal), self.config.horizon
        rows = self.config.max_rows or max(plans * steps, 1)
        plan_block, time_block = max(1, rows // steps), min(rows, steps)
        for n in range(0, plans, plan_block):
            for last in range(steps, 0, -time_block):
                yield slice(n, n + plan_block), max(last - time_block, 0), last

    @staticmethod
    def leaf(values: Tensor) -> Tensor:
        """A copy that a graph to come begins at; a view would be the variable itself."""
        return values.clone(memory_format=torch.contiguous_format).requires_grad_()
