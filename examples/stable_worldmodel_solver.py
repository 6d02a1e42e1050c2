"""The solver of stable-worldmodel's protocol by itself: configure, solve, go on from what is left.

The package is not needed here; `stable_worldmodel_policy.py` has it, with its worlds.
"""
# needs: gymnasium

from types import SimpleNamespace

import numpy as np
import torch
from grasp_planner import LiftedNewtonConfig, LiftedNewtonPlanner
from grasp_planner.adapters.stable_worldmodel import StableWorldModelSolver
from gymnasium.spaces import Box
from torch import nn


class Walker(nn.Module):
    """A walk in the plane; learned models (LeWM, PLDM) have the same methods."""

    def __init__(self):
        super().__init__()
        self.action_encoder = nn.Linear(4, 2, bias=False)  # of an action block of 2
        self.action_encoder.weight.data = torch.eye(2).repeat(1, 2) * 0.05
        self.encoded = 0

    def encode(self, info):
        self.encoded += 1
        return {**info, "emb": info["state"] / 100}  # (B, H, 2)

    def predict(self, emb, act_emb):
        return emb + act_emb

    def get_cost(self, info, action_candidates):  # (B, S, T, A) -> (B, S)
        with torch.no_grad():
            start, goal = (info[name][:, :, -1] / 100 for name in ("state", "goal_state"))
        end = start + self.action_encoder(action_candidates).sum(2)
        return (end - goal).square().sum(-1)


model = Walker()
settings = LiftedNewtonConfig(hold=1, action_weight=1e-3)
solver = StableWorldModelSolver(model, LiftedNewtonPlanner, settings)
space = Box(-np.ones((3, 2), np.float32), np.ones((3, 2), np.float32))
solver.configure(action_space=space, n_envs=3, config=SimpleNamespace(horizon=10, action_block=2))
state = torch.tensor([[[10.0, 10.0]], [[50.0, 50.0]], [[torch.nan, 20.0]]])  # the last one is dead
goal = torch.tensor([[[60.0, 40.0]], [[20.0, 80.0]], [[30.0, 30.0]]])
found = solver.solve({"state": state, "goal_state": goal})
print("actions", tuple(found["actions"].shape), "planned", found["planned"].tolist())

executed, left = found["actions"][:2, :4], found["actions"][:2, 4:]
state = state[:2] + 100 * model.action_encoder(executed).sum(1, keepdim=True).detach()
encoded = model.encoded
again = solver.solve({"state": state, "goal_state": goal[:2]}, init_action=left)
end = state[:, 0] + 100 * model.action_encoder(again["actions"]).sum(1).detach()
print("off by", (end - goal[:2, 0]).norm(dim=1).tolist(), "of 100")
print("encoded in that plan:", model.encoded - encoded, "batches: the frames, and the goals")
