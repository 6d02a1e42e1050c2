"""A TD-MPC2 world model, untrained and small: to a goal by whole-plan kernels, then for reward."""

from types import SimpleNamespace

import torch
from grasp_planner.adapters.tdmpc2 import TDMPC2Planner
from torch import nn


class SimNorm(nn.Module):
    dim = 8

    def forward(self, x):
        return x.unflatten(-1, (-1, self.dim)).softmax(-1).flatten(-2)


class NormedLinear(nn.Linear):
    def __init__(self, inputs, outputs, act):
        super().__init__(inputs, outputs)
        self.ln, self.act = nn.LayerNorm(outputs), act

    def forward(self, x):
        return self.act(self.ln(super().forward(x)))


class WorldModel(nn.Module):
    """The names and signatures of TD-MPC2's; an agent has a trained one as `agent.model`."""

    def __init__(self):
        super().__init__()
        self.cfg = SimpleNamespace(
            multitask=False, action_dim=2, horizon=3, num_bins=11, vmin=-2.0, vmax=2.0
        )
        self._encoder = NormedLinear(4, 32, SimNorm())
        self._dynamics = nn.Sequential(
            NormedLinear(34, 64, nn.Mish()), NormedLinear(64, 32, SimNorm())
        )
        self._reward, self._q, self._pi = nn.Linear(34, 11), nn.Linear(34, 11), nn.Linear(32, 2)

    def encode(self, obs, task):
        return self._encoder(obs)

    def next(self, z, a, task):
        return self._dynamics(torch.cat([z, a], -1))

    def reward(self, z, a, task):
        return self._reward(torch.cat([z, a], -1))

    def Q(self, z, a, task, return_type="min"):
        return self._q(torch.cat([z, a], -1))[None]

    def pi(self, z, task):
        mean = self._pi(z).tanh()
        return mean, {"mean": mean}


torch.manual_seed(0)
agent = SimpleNamespace(model=WorldModel(), discount=0.97)
settings = {"iterations": 60, "final_sync_steps": 20}
controller = TDMPC2Planner(agent, horizon=10, planner="grasp", settings=settings)
observation, goal = torch.randn(4), torch.randn(4)
controller.set_goal(goal)
print("towards a goal:", controller.act(observation, t0=True, eval_mode=True))
print(controller.last_plan.path, "| squared distance", controller.last_plan.cost.item())

controller = TDMPC2Planner(agent, planner="mppi", settings={"iterations": 6}, policy_samples=8)
for step in range(3):
    action = controller.act(observation, t0=step == 0, eval_mode=True)
    print("for reward:", action, "| return", -controller.last_plan.cost.item())
