"""The TD-MPC2 adapter, on a stand-in with the published signatures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tdmpc2_stand_in as td
import torch
from grasp_planner import GraspPlanner
from grasp_planner.adapters.tdmpc2 import LatentDynamics, TDMPC2Planner, two_hot_inverse
from grasp_planner.base import Planner
from grasp_planner.models import GeneralPathWarning
from torch import Tensor, nn

from grasp_kernels import UnsupportedModel

QUICK: dict[str, dict[str, Any]] = {
    "grasp": {
        "iterations": 6,
        "candidates": 2,
        "sync_every": 3,
        "sync_steps": 2,
        "final_sync_steps": 8,
    },
    "cem": {"samples": 32, "iterations": 5, "hold": 1},
    "lifted-newton": {"rounds": 1, "samples": 32, "resamples": 16, "cost_steps": 4, "hold": 1},
    "gradient": {"restarts": 2, "iterations": 8, "hold": 1},
}
MULTITASK = {"multitask": True, "task_dim": 4}


def controller(agent: td.TDMPC2, kind: str = "cem", **changes: Any) -> TDMPC2Planner:
    return TDMPC2Planner(agent, **{"planner": kind, "settings": QUICK[kind], **changes})


def rows(count: int, features: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=generator)


# ----------------------------------------------------------------------------------- the dynamics


@pytest.mark.parametrize("task", [None, 0, 1, 2])
def test_the_description_is_the_models_own_next(task: int | None) -> None:
    """LayerNorm, Mish, SimNorm; and a task's embedding in the first bias."""
    agent = td.agent(**({} if task is None else MULTITASK))
    which = None if task is None else torch.tensor([task])
    dynamics = LatentDynamics(agent.model, which)
    described = dynamics.mlp_dynamics()
    assert [layer.activation for layer in described.layers] == ["mish", "mish", "simnorm"]
    assert (described.state_features, described.action_features) == (td.LATENT, td.ACTION)
    z, a = rows(64, td.LATENT, 1), rows(64, td.ACTION, 2)
    with torch.no_grad():
        expected = agent.model.next(z, a, which)
    torch.testing.assert_close(described(z, a), expected, rtol=1e-5, atol=1e-6)


def test_a_description_has_the_weights_of_the_moment() -> None:
    """Training goes on between two plans."""
    agent = td.agent(**MULTITASK)
    dynamics = LatentDynamics(agent.model, torch.tensor([1]))
    z, a = rows(4, td.LATENT, 1), rows(4, td.ACTION, 2)
    before = dynamics.mlp_dynamics()(z, a)
    with torch.no_grad():
        agent.model._task_emb.weight.mul_(-1)
        agent.model._dynamics[0].weight.add_(0.1)
    after = dynamics.mlp_dynamics()(z, a)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, dynamics(z, a).detach(), rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------- to a goal


@pytest.mark.native
@pytest.mark.parametrize("task", [None, 2])
def test_plans_to_a_goal_are_made_by_whole_plan_kernels(task: int | None) -> None:
    agent = td.agent(**({} if task is None else MULTITASK))
    ours = controller(agent, "grasp", horizon=8)
    ours.set_goal(td.observation(2), task)
    action = ours.act(td.observation(1), t0=True, eval_mode=True, task=task)
    plan = ours.last_plan
    assert plan is not None
    assert plan.path == "whole-plan MLP kernels"
    assert action.shape == (td.ACTION,)
    assert action.dtype == torch.float32
    assert torch.equal(action, plan.actions[0, 0])
    which = None if task is None else torch.tensor([task])
    with torch.no_grad():
        z = agent.model.encode(td.observation(1)[None], which)
        goal = agent.model.encode(td.observation(2)[None], which)
        rest = z
        for t in range(8):
            z = agent.model.next(z, plan.actions[:, t], which)
            rest = agent.model.next(rest, torch.zeros(1, td.ACTION), which)
    torch.testing.assert_close(plan.cost, (z - goal).square().sum(1), rtol=1e-4, atol=1e-6)
    assert plan.cost < (rest - goal).square().sum(1)


def test_dynamics_that_kernels_do_not_know_are_planned_through_call_by_call() -> None:
    agent = td.agent()
    agent.model._dynamics[1].act = nn.Softplus()
    with pytest.raises(UnsupportedModel, match="Softplus"):
        LatentDynamics(agent.model).mlp_dynamics()
    ours = controller(agent, "grasp")
    ours.set_goal(td.observation(2))
    with pytest.warns(GeneralPathWarning, match="Softplus"):
        ours.act(td.observation(1))
    assert ours.last_plan is not None
    assert ours.last_plan.path.startswith("general path: Softplus")


@pytest.mark.parametrize("to_goal", [True, False])
def test_models_of_less_precision_are_planned_through_call_by_call(to_goal: bool) -> None:
    agent = td.agent()
    agent.model.bfloat16()
    ours = controller(agent, "grasp")
    if to_goal:
        ours.set_goal(td.observation(2).bfloat16())
    with pytest.warns(GeneralPathWarning, match=r"the model is computed in torch\.bfloat16"):
        ours.act(td.observation(1).bfloat16())
    assert ours.last_plan is not None
    assert ours.last_plan.cost.isfinite().all()


# ---------------------------------------------------------------------------- for the most reward


@pytest.mark.parametrize("old_pi", [True, False])
@pytest.mark.parametrize("task", [None, 1])
def test_a_plan_costs_what_the_agent_thinks_of_it(old_pi: bool, task: int | None) -> None:
    agent = td.agent(old_pi=old_pi, **({} if task is None else MULTITASK))
    ours = controller(agent)
    ours.act(td.observation(1), t0=True, task=task)
    which = None if task is None else torch.tensor([task])
    dynamics, _ = ours._planner_of(task, which)
    actions = rows(6, 3 * td.ACTION, 4).tanh().view(6, 3, td.ACTION) * dynamics.mask
    with torch.no_grad():
        z = agent.model.encode(td.observation(1)[None], which).repeat(6, 1)
        value = agent._estimate_value(z, actions.transpose(0, 1), which)[:, 0]
        states = [z]
        for t in range(3):
            states.append(agent.model.next(states[-1], actions[:, t], which))
        cost = dynamics.cost(torch.stack(states, 1), actions)
    torch.testing.assert_close(-cost, value, rtol=1e-4, atol=1e-5)
    assert ours.last_plan is not None
    plan = ours.last_plan.actions.transpose(0, 1)
    own = agent._estimate_value(z[:1], plan, which)[:, 0]
    torch.testing.assert_close(-ours.last_plan.cost, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", QUICK)
def test_every_planner_earns_more_than_the_policy(kind: str) -> None:
    agent = td.agent()
    ours = controller(agent, kind, policy_samples=2)
    ours.act(td.observation(1), t0=True)
    plan = ours.last_plan
    assert plan is not None
    with torch.no_grad():
        z = first = agent.model.encode(td.observation(1)[None], None)
        actions = []
        for _ in range(3):
            actions.append(agent.model.pi(z, None)[0])
            z = agent.model.next(z, actions[-1], None)
    policy = agent._estimate_value(first, torch.stack(actions), None)
    assert -plan.cost > policy[:, 0]


@pytest.mark.native
def test_rollouts_are_by_kernels_and_heads_by_torch() -> None:
    ours = controller(td.agent())
    ours.act(td.observation(1))
    assert ours.last_plan is not None
    assert ours.last_plan.path.startswith("MLP kernels")


@pytest.mark.parametrize("bins", [0, 1, 21])
def test_numbers_of_logits(bins: int) -> None:
    cfg = td.agent(num_bins=bins).cfg
    logits = rows(7, max(bins, 1), 3)
    expected = td.two_hot_inv(logits, cfg)[:, 0]
    torch.testing.assert_close(two_hot_inverse(logits, cfg), expected)


# -------------------------------------------------------------------------------------- the loop


def test_a_plan_goes_on_from_the_last_one_unless_an_episode_begins() -> None:
    given: list[Tensor | None] = []
    planned = Planner.plan

    def plan(self: Planner, start: Any, goal: Any, **rest: Any) -> Any:
        given.append(rest["actions"])
        return planned(self, start, goal, **rest)

    ours, made = controller(td.agent()), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planner, "plan", plan)
        for t0 in (True, False, True):
            ours.act(td.observation(1), t0=t0)
            assert ours.last_plan is not None
            made.append(ours.last_plan.actions)
    assert given[0] is None
    assert given[1] is not None
    assert torch.equal(given[1][:, :-1], made[0][:, 1:])
    assert torch.equal(given[1][:, -1], torch.zeros(1, td.ACTION))
    assert given[2] is None
    assert ours.agent.calls == 3


@pytest.mark.parametrize("kind", ["grasp", "cem"])
def test_observations_are_encoded_once(kind: str) -> None:
    ours = controller(td.agent(), kind, policy_samples=3)
    for step in range(3):
        ours.act(td.observation(step), t0=step == 0)
    assert ours.agent.calls == 3
    ours.set_goal(td.observation(9))
    assert ours.agent.calls == 4
    ours.act(td.observation(3))
    assert ours.agent.calls == 5


def test_policy_plans_compete_with_the_last_one() -> None:
    """The warm start is the best of them by what the agent thinks."""
    agent = td.agent(log_std_min=-1.0, log_std_max=0.0)
    ours = controller(agent, policy_samples=32)
    which = LatentDynamics(agent.model, None, 0.97)
    z = agent.model.encode(td.observation(1)[None], None).detach()

    def cost(actions: Tensor) -> float:
        states = [z]
        for t in range(3):
            states.append(which(states[-1], actions[:, t]))
        return float(which.cost(torch.stack(states, 1), actions))

    with torch.no_grad():
        ours.policy_samples = 1
        single = sorted((ours._best_warm_start(which, z, None) for _ in range(16)), key=cost)
        ours.policy_samples = 32
        assert cost(ours._best_warm_start(which, z, single[-1])) < cost(single[-1])
        assert cost(ours._best_warm_start(which, z, None)) < cost(single[8])
        ours.act(td.observation(1), t0=True)
        assert ours.last_plan is not None
        planned = ours.last_plan.actions
        assert torch.equal(ours._best_warm_start(which, z, planned), planned)


def test_exploration_is_noise_within_the_bounds() -> None:
    ours = controller(td.agent(**MULTITASK), exploration=5.0)
    torch.manual_seed(3)
    actions = [ours.act(td.observation(1), task=0) for _ in range(3)]
    assert ours.last_plan is not None
    assert not torch.equal(actions[-1], ours.last_plan.actions[0, 0])
    assert all((action.abs() <= 1).all() for action in actions)
    assert all(action[2] == 0 for action in actions)  # task 0 has two actions
    quiet = ours.act(td.observation(1), task=0, eval_mode=True)
    assert torch.equal(quiet, ours.last_plan.actions[0, 0])
    assert (ours.last_plan.actions[..., 2] == 0).all()


def test_the_model_is_left_as_it_was_found() -> None:
    agent = td.agent()
    agent.model.train()
    controller(agent, "gradient").act(td.observation(1))
    assert all(part.training for part in agent.model.modules())
    assert all(p.requires_grad and p.grad is None for p in agent.model.parameters())


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"planner": "mppi2"}, "planner must be one of .*mppi.*, got 'mppi2'"),
        ({"policy_samples": -1}, "policy_samples must be at least 0, got -1"),
        ({"exploration": -1.0}, "exploration must be finite and from 0 to inf, got -1.0"),
        ({"exploration": "much"}, "exploration must be a number, got str"),
        ({"settings": {"action_low": -2.0}}, "action_low: no setting of CEMConfig to be given he"),
    ],
)
def test_arguments_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        controller(td.agent(), **changes)


def test_agents_and_tasks_are_checked() -> None:
    with pytest.raises(TypeError, match="agent must have a TD-MPC2 world model, got NoneType"):
        TDMPC2Planner(nn.Identity())
    with pytest.raises(TypeError, match="agent must have a TD-MPC2 world model, got Identity"):
        TDMPC2Planner(SimpleNamespace(model=nn.Identity()))
    with pytest.raises(ValueError, match="agent must not be episodic"):
        controller(td.agent(episodic=True))
    ours = controller(td.agent())
    with pytest.raises(ValueError, match="task is for a multitask agent, which this is not, got 1"):
        ours.act(td.observation(1), task=1)
    with pytest.raises(TypeError, match="obs must be a tensor, got list"):
        ours.act([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="obs must be one observation, without a batch dimension"):
        ours.act(td.observation(1)[None])
    several = controller(td.agent(**MULTITASK))
    with pytest.raises(ValueError, match="task must be given"):
        several.act(td.observation(1))
    with pytest.raises(ValueError, match="task must be from 0 to the last, 2, got 3"):
        several.act(td.observation(1), task=3)


def test_the_default_is_grasp_over_the_agents_own_horizon() -> None:
    ours = TDMPC2Planner(td.agent())
    dynamics, planner = ours._planner_of(None, None)
    assert isinstance(planner, GraspPlanner)
    assert planner.config.horizon == 3
    assert dynamics.discount == 0.97
