"""Planners where TorchRL's are: in its rollouts, through its environments, beside its own CEM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grasp_planner import (
    CEMPlanner,
    GradientPlanner,
    GraspPlanner,
    ICEMPlanner,
    LatCoPlanner,
    LiftedNewtonPlanner,
    MPPIPlanner,
    Planner,
    WorldModelError,
)
from torch import Tensor, nn

pytest.importorskip("tensordict")
pytest.importorskip("torchrl")

from grasp_planner.adapters.torchrl import MPCPlanner
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, ModelBasedEnvBase, PendulumEnv
from torchrl.envs.utils import step_mdp
from torchrl.modules.planners import CEMPlanner as TheirCEM
from torchrl.modules.planners import MPCPlannerBase

PLANNERS: dict[type[Planner], dict[str, Any]] = {
    CEMPlanner: {"iterations": 5, "samples": 64, "hold": 1},
    ICEMPlanner: {"iterations": 5, "samples": 64, "least_samples": 64},
    MPPIPlanner: {"iterations": 8, "samples": 64, "hold": 1},
    GradientPlanner: {"iterations": 40, "hold": 1},
    LiftedNewtonPlanner: {"rounds": 2},
    LatCoPlanner: {"iterations": 40},
    GraspPlanner: {"iterations": 40, "candidates": 2},
}


class Move(nn.Module):
    """A point whose velocity is its action; the speed of the wind is a state that never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, place: Tensor, wind: Tensor, action: Tensor) -> Any:
        assert not self.training
        place = place + self.gain * action + 0.1 * wind
        reward = 1.0 - (place - 1.0).square().sum(-1, keepdim=True)
        return place, reward, (place[..., :1] > 1.1)


class Model(ModelBasedEnvBase):
    """The place is nested and the wind is not; the first done is past x = 1.1."""

    def __init__(self, action: Any = None) -> None:
        keys = {"in_keys": [("latent", "place"), "wind", "action"]}
        keys["out_keys"] = [("latent", "place"), "reward", "done"]
        super().__init__(TensorDictModule(Move(), **keys))
        self.observation_spec = Composite(latent=Composite(place=Unbounded((2,))))
        self.state_spec = Composite(latent=Composite(place=Unbounded((2,))), wind=Unbounded((2,)))
        self.action_spec = Bounded(-1.0, 1.0, (2,)) if action is None else action
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict: Any, **given: Any) -> Any:
        raise NotImplementedError


def states(*batch: int) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    place, wind = (torch.randn(*batch, 2, generator=generator) for _ in range(2))
    return TensorDict({"latent": {"place": 0.5 * place}, "wind": wind}, batch_size=batch)


def total_reward(env: Any, td: TensorDict, actions: Tensor) -> Tensor:
    """By the environment's own steps, up to the first done."""
    total, alive = torch.zeros(td.batch_size), torch.ones(td.batch_size, dtype=torch.bool)
    for t in range(actions.shape[-2]):
        td = env.step(td.clone().set("action", actions[..., t, :]))
        total += torch.where(alive, td["next", "reward"][..., 0], 0.0)
        alive &= ~td["next", "done"][..., 0]
        td = step_mdp(td)
    return total


# -------------------------------------------------------------------------------- in TorchRL's loop


def test_beside_torchrls_cem_in_its_own_environment() -> None:
    """PendulumEnv's rollout, planned through itself; 3 iterations of 64 samples each."""

    def collected(planner: MPCPlannerBase, steps: int = 30) -> TensorDict:
        env.set_seed(0)
        torch.manual_seed(0)
        begin = env.reset(env.gen_params(batch_size=[6]), set_state=False)
        rollout = env.rollout(
            steps, policy=planner, auto_reset=False, tensordict=begin, break_when_any_done=False
        )
        assert rollout.batch_size == (6, steps)
        assert env.action_spec.is_in(rollout["action"])
        return rollout

    env = PendulumEnv(seed=0)
    theirs = collected(TheirCEM(env, 20, 3, 64, 8))
    ours = MPCPlanner(env, 20, samples=64, least_samples=64, iterations=3)
    assert isinstance(ours, MPCPlannerBase)
    found = collected(ours)
    assert found["next", "reward"].mean() >= theirs["next", "reward"].mean()
    # What is planned depends on the tensordict alone.
    assert torch.equal(collected(ours, 3)["action"], found["action"][:, :3])


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: planner.__name__)
@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_a_plan_costs_what_the_environment_takes_back(planner: Any, batch: tuple[int, ...]) -> None:
    env, td = Model(), states(*batch)
    env.train()
    module = MPCPlanner(env, 6, planner, **PLANNERS[planner])
    out = module(td.clone())
    assert out["action"].shape == (*batch, 2)
    plan = module.last_plan
    assert plan is not None
    actions = plan.actions.reshape(*batch, 6, 2)
    assert torch.equal(out["action"], actions[..., 0, :])
    expected = total_reward(env.eval(), td, actions)
    torch.testing.assert_close(-plan.cost.reshape(batch), expected)
    still = total_reward(env, td, torch.zeros(*batch, 6, 2))
    assert (expected > still).all()


def test_rewards_after_done_do_not_count() -> None:
    """Beyond x = 1.1 all is over: with a wind from behind it is better to lean against it."""
    env, td = Model().eval(), states()
    td["latent", "place"], td["wind"] = torch.tensor([0.9, 1.0]), torch.tensor([1.0, 0.0])
    module = MPCPlanner(env, 6, **PLANNERS[ICEMPlanner])
    module(td)
    assert module.last_plan is not None
    actions = module.last_plan.actions[0]
    away = actions.clone()
    away[0] = 1.0
    assert total_reward(env, td, away) < 2.0 < total_reward(env, td, actions)
    torch.testing.assert_close(-module.last_plan.cost[0], total_reward(env, td, actions))


# ------------------------------------------------------------------- a real loop, with an encoder


class Room(EnvBase):
    """Three rooms that are seen as pictures: an encoder is needed to plan."""

    def __init__(self) -> None:
        super().__init__(batch_size=[3])
        self.observation_spec = Composite(pixels=Unbounded((3, 1, 2, 4)), shape=[3])
        self.action_spec = Bounded(-1.0, 1.0, (3, 2))
        self.reward_spec = Unbounded((3, 1))

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(seed or 0)

    def _seen(self) -> Tensor:
        return self.at[:, None, :, None].expand(3, 1, 2, 4) * 255.0

    def _reset(self, tensordict: Any, **given: Any) -> TensorDict:
        self.at = torch.randn(3, 2, generator=self.generator)
        return TensorDict({"pixels": self._seen()}, batch_size=[3])

    def _step(self, tensordict: TensorDict) -> TensorDict:
        slip = 0.05 * torch.randn(3, 2, generator=self.generator)
        self.at = self.at + 0.3 * tensordict["action"] + slip
        found = {"pixels": self._seen(), "done": torch.zeros(3, 1, dtype=torch.bool)}
        reward = 1.0 - (self.at - 1.0).square().sum(-1, keepdim=True)
        return TensorDict({**found, "reward": reward}, batch_size=[3])


def test_an_encoder_is_called_once_per_observation() -> None:
    calls = []

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(pixels.shape)
        place = pixels[:, 0, :, 0] / 255.0
        return place, torch.zeros_like(place)

    encoder = TensorDictModule(encode, in_keys=["pixels"], out_keys=[("latent", "place"), "wind"])
    policy = TensorDictSequential(encoder, MPCPlanner(Model().eval(), 5, iterations=3))
    rooms = Room()
    rooms.set_seed(3)
    rollout = rooms.rollout(12, policy=policy, break_when_any_done=False)
    assert calls == [(3, 1, 2, 4)] * 12
    assert (rollout["next", "reward"][:, -3:] > 0.8).all()
    assert (rollout["next", "reward"][:, 0] < 0.8).all()


def test_going_on_from_the_last_plan() -> None:
    """Replanned after two actions, or where an episode begins; else the plan is followed."""
    env, td = Model().eval(), states(2)
    module = MPCPlanner(env, 6, execute=2, iterations=3)
    planned = []
    plan = module._planner.plan
    module._planner.plan = lambda start, *a, **k: (
        planned.append(k["plan_ids"]),
        plan(start, *a, **k),
    )[1]
    for begins in ([True, True], [False, False], [False, False], [False, True], [False, False]):
        td["is_init"] = torch.tensor(begins)[:, None]
        td = step_mdp(env.step(module(td)), keep_other=True)
    assert [len(ids) for ids in planned] == [2, 2, 1, 1]
    assert module.in_keys == [("latent", "place"), "wind", "is_init"]
    with pytest.raises(KeyError, match="no 'is_init', which execute needs: InitTracker"):
        module(states(2))
    td = states(3).set("is_init", torch.ones(3, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must have 2 states as before, got 3; call reset\(\)"):
        module(td)
    module.reset()
    assert module(td)["action"].shape == (3, 2)


# -------------------------------------------------------------------------- settings, care, errors


def test_the_environment_is_left_as_it_was() -> None:
    env = Model()
    env.train()
    module = MPCPlanner(env, 4, GradientPlanner, iterations=2)
    module(states(2))
    move = env.world_model.module
    assert env.training
    assert move.training
    assert move.gain.requires_grad
    assert move.gain.grad is None


def test_bounds_are_those_of_the_action_spec() -> None:
    uneven = Bounded(torch.tensor([-1.0, -0.5]), torch.tensor([0.25, 2.0]))
    config = MPCPlanner(Model(uneven), 4, CEMPlanner)._planner.config
    assert (config.action_low, config.action_high) == ((-1.0, -0.5), (0.25, 2.0))
    free = MPCPlanner(Model(Unbounded((2,))), 4, CEMPlanner)._planner.config
    assert (free.action_low, free.action_high, free.action_features) == (None, None, 2)
    narrow = MPCPlanner(Model(), 4, CEMPlanner, action_high=0.5)._planner.config
    assert (narrow.action_low, narrow.action_high) == ((-1.0, -1.0), 0.5)


def test_clear_errors() -> None:
    env = Model()
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"planner": 3}, TypeError, "planner must be a class of Planner, got 3"),
        ({"top_k": 3}, TypeError, "top_k: no setting of ICEMConfig to be given here"),
        ({"cost": min}, TypeError, "cost: no setting of ICEMConfig to be given here"),
        ({"horizon": 3}, TypeError, "horizon: no setting of ICEMConfig to be given here"),
        ({"env": nn.Identity()}, TypeError, "env must be an EnvBase, got Identity"),
        ({"action_key": "act"}, KeyError, "action_key must be one of .'action'., got 'act'"),
        ({"execute": 5}, ValueError, "execute must be from 1 to the horizon, 4, got 5"),
        ({"planning_horizon": 0}, ValueError, "horizon must be from 1"),
        ({"state_keys": ["place"]}, KeyError, "state_keys has 'place', which is in no spec of env"),
        ({"env": Room()}, ValueError, "batch_locked"),
        ({"env": Model(Categorical(3))}, TypeError, "env must have actions that are numbers"),
    ]
    for given, error, words in wrong:
        with pytest.raises(error, match=words):
            MPCPlanner(**{"env": env, "planning_horizon": 4, **given})
    module = MPCPlanner(env, 4)
    with pytest.raises(KeyError, match="the tensordict has no 'wind', which the planner needs"):
        module(states(2).exclude("wind"))

    with pytest.raises(WorldModelError, match=r"reward_key is .*'gain'.*, which a step of en"):
        MPCPlanner(env, 4, reward_key=("next", "gain"))(states(2))

    class Counting(Model):
        def __init__(self) -> None:
            super().__init__()
            self.state_spec["count"] = Unbounded((1,), dtype=torch.int64)

    with pytest.raises(TypeError, match=r"'count' is torch\.int64, and states are floating"):
        MPCPlanner(Counting(), 4)
    keys = [("latent", "place"), "wind"]
    assert MPCPlanner(Counting(), 4, state_keys=keys)(states(2))["action"].shape == (2, 2)
