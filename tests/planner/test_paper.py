"""`GraspConfig.paper()` against METHOD's loop, written out again in plain torch."""

from __future__ import annotations

import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspConfig, GraspPlanner

from grasp_kernels.reference import gaussian_noise


def paper_loop(model, start, goal, ids, c: GraspConfig):
    """The paper's algorithm. Returns loss per iteration, and the best actions, states and cost by
    rollout.
    """
    plans, steps, features = len(start), c.horizon, start.shape[1]
    low, high = c.action_low, c.action_high
    goal_weight, sigma = c.goal_weight.start, c.noise_scale.start
    line = torch.linspace(0, 1, steps + 1, dtype=start.dtype)[:, None]
    x = start[:, None] + (goal - start)[:, None] * line
    a = torch.zeros(plans, steps, c.action_features, dtype=start.dtype)
    best = [torch.full((plans,), torch.inf, dtype=start.dtype), a.clone(), x.clone()]
    losses = []

    def judge(actions):
        """True rollout, the best of them kept; the gradient of |s_T - g|^2 for the actions."""
        actions = actions.clone().requires_grad_()
        states = [start]
        for t in range(steps):
            states.append(model(states[-1], actions[:, t]))
        rollout = torch.stack(states, 1)
        cost = (rollout[:, -1] - goal).square().sum(-1)
        (gradient,) = torch.autograd.grad(cost.sum(), actions)
        for n in range(plans):
            if cost[n] < best[0][n]:
                for kept, new in zip(best, (cost, actions, rollout), strict=True):
                    kept[n] = new[n].detach()
        return rollout.detach(), gradient

    def sync(a, x, count):
        for _ in range(count):
            a = (a - c.sync_lr * judge(a)[1]).clamp(low, high)
        rollout, _ = judge(a)
        return a, torch.cat([x[:, :1], rollout[:, 1:-1], x[:, -1:]], 1)

    judge(a)
    for k in range(1, c.iterations + 1):
        inputs = a.clone().requires_grad_()
        flat = model(x[:, :-1].reshape(-1, features), inputs.reshape(plans * steps, -1))
        prediction = flat.reshape(plans, steps, features)
        residual, goal_error = prediction - x[:, 1:], prediction - goal[:, None]
        loss = residual.square().sum((1, 2)) + goal_weight * goal_error.square().sum((1, 2))
        losses.append(loss.detach())
        (gradient,) = torch.autograd.grad(loss.sum(), inputs)
        xi = gaussian_noise(
            plans, steps + 1, features, seed=c.seed, iteration=k, plan_ids=ids, dtype=start.dtype
        )
        x = x.clone()
        x[:, 1:-1] += c.state_lr * 2 * residual.detach()[:, :-1] + sigma * xi[:, 1:-1]
        a = (a - c.action_lr * gradient).clamp(low, high)
        if k % c.sync_every == 0 and k < c.iterations:
            a, x = sync(a, x, c.sync_steps)
    sync(a, x, c.final_sync_steps)
    return torch.stack(losses), best


@pytest.mark.parametrize("bound", [0.15, 10.0])
@pytest.mark.parametrize("max_rows", [None, 4])
def test_paper_to_the_letter(bound, max_rows) -> None:
    settings = GraspConfig.paper(
        horizon=6,
        iterations=11,
        sync_every=4,
        sync_steps=3,
        final_sync_steps=2,
        action_lr=0.1,
        sync_lr=0.02,
        action_low=-bound,
        action_high=bound,
        action_features=2,
        max_rows=max_rows,
        seed=2**63 + 9,
    )
    start, goal = cases.problems(3, torch.float64)
    ids = torch.tensor([4, 2**60, 9])
    model = cases.MLP(dtype=torch.float64)
    plan = GraspPlanner(model, settings).plan(start, goal, plan_ids=ids)
    losses, (cost, actions, states) = paper_loop(model, start, goal, ids, settings)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(plan.loss_history[:, :, 0], losses, **close)
    torch.testing.assert_close(plan.actions, actions, **close)
    torch.testing.assert_close(plan.states, states, **close)
    torch.testing.assert_close(plan.cost, cost, **close)
    if bound == 0.15:
        assert (plan.actions.abs() == bound).any()  # the box was met
    assert (plan.cost < (start - goal).square().sum(-1)).any()


def test_paper_settings() -> None:
    c = GraspConfig.paper()
    assert (c.noise, c.initialization, c.terminal) == ("white", "linear", "fixed")
    assert (c.state_optimizer, c.action_optimizer, c.sync_optimizer) == ("sgd",) * 3
    assert (c.candidates, c.state_gradient_scale.start, c.sync_blend) == (1, 0.0, 1.0)
    assert (c.initial_noise_scale, c.initial_actions_scale) == (0.0, 0.0)
    assert c.goal_weight.kind == c.noise_scale.kind == "constant"
    assert GraspConfig.paper(horizon=9, noise="none").noise == "none"
    # A last sync that is longer than the others is this project's addition, not the paper's.
    assert c.final_sync_steps == c.sync_steps
