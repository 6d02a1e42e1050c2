"""Two rooms of stable-worldmodel, planned for by its own CEM and by a planner of this package."""
# needs: stable_worldmodel

import contextlib
import io
import time
import warnings

import torch
from grasp_planner import LiftedNewtonConfig, LiftedNewtonPlanner
from grasp_planner.adapters.stable_worldmodel import (
    StableWorldModelSolver,
    import_stable_worldmodel,
)
from torch import nn

warnings.simplefilter("ignore")
swm = import_stable_worldmodel()  # also beside a torch that torchvision was not built for


class Walker(nn.Module):
    """A walk through rooms without walls; learned models have the same methods."""

    def __init__(self):
        super().__init__()
        self.action_encoder = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.action_encoder.weight).data.mul_(0.05)  # 5 pixels of 100

    def encode(self, info):
        return {**info, "emb": info["state"] / 100}  # (B, H, 2)

    def predict(self, emb, act_emb):
        return emb + act_emb

    def get_cost(self, info, action_candidates):  # what their own solvers ask for, (B, S, T, A)
        with torch.no_grad():
            start, goal = (info[name][:, :, -1] / 100 for name in ("state", "goal_state"))
        end = start + self.action_encoder(action_candidates).sum(2)
        return (end - goal).square().sum(-1)


solvers = {
    "their CEMSolver": swm.solver.CEMSolver(Walker()),
    "LiftedNewtonPlanner": StableWorldModelSolver(
        Walker(), LiftedNewtonPlanner, LiftedNewtonConfig(hold=5, rounds=2)
    ),
}
world = swm.World("swm/TwoRoom-v1", num_envs=4, max_episode_steps=60, add_pixels=False)
for name, solver in solvers.items():
    config = swm.PlanConfig(horizon=20, receding_horizon=20)
    world.set_policy(swm.policy.WorldModelPolicy(solver=solver, config=config))
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line per plan
        found = world.evaluate(episodes=8, seed=0)
    seconds = time.perf_counter() - begun
    print(f"{name}: {found['success_rate']:.0f} % of 8 episodes, {seconds:.1f} s")
world.close()
