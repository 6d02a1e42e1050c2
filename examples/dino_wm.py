"""Planning where dino_wm's CEMPlanner does, through an untrained model of its signatures."""

import numpy as np
import torch
from grasp_planner.adapters.dino_wm import DinoWMPlanner
from torch import nn


class VWorldModel(nn.Module):
    """What a planner calls of dino_wm's: 4 patches of 6 channels, all frames seen mixed alike."""

    num_hist, concat_dim = 3, 0  # action and proprioception are tokens

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.proprio_encoder, self.action_encoder = nn.Linear(2, 6), nn.Linear(4, 6)
        self.predictor = nn.Linear(12, 6)
        self.encoded = 0

    def encode_obs(self, obs):
        self.encoded += 1
        images = obs["visual"]
        visual = self.patches(images.flatten(0, 1)).flatten(2).transpose(1, 2)
        proprio = self.proprio_encoder(obs["proprio"])
        return {"visual": visual.unflatten(0, images.shape[:2]), "proprio": proprio}

    def encode_act(self, act):
        return self.action_encoder(act)

    def predict(self, z):  # (b, frames, tokens, channels)
        seen = z.mean((1, 2), keepdim=True).expand_as(z)
        return z + 0.3 * self.predictor(torch.cat([z, seen], -1)).tanh()

    def separate_emb(self, z):
        return {"visual": z[:, :, :-2], "proprio": z[:, :, -2]}, z[:, :, -1]


class Preprocessor:
    def transform_obs(self, obs):
        visual = torch.tensor(obs["visual"]).permute(0, 1, 4, 2, 3) / 255.0
        return {"visual": visual, "proprio": torch.tensor(obs["proprio"])}


def objective(frames, goal):
    """As dino_wm's `create_objective_fn(alpha=0.1, base=2, mode="last")`."""
    apart = {name: (frames[name][:, -1:] - goal[name]).square() for name in goal}
    return apart["visual"].mean((1, 2, 3)) + 0.1 * apart["proprio"].mean((1, 2))


def observation(seed):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (2, 1, 8, 8, 3), dtype=np.uint8)
    return {"visual": images, "proprio": generator.standard_normal((2, 1, 2), dtype=np.float32)}


class Log:
    def log(self, values):
        if values["step"] % 10 == 0:
            print(values)


torch.manual_seed(0)
wm = VWorldModel()
planner = DinoWMPlanner(
    horizon=5,
    wm=wm,
    action_dim=4,
    objective_fn=objective,
    preprocessor=Preprocessor(),
    wandb_run=Log(),
    planner="icem",
    settings={"samples": 64, "least_samples": 32, "iterations": 20},
)
actions, lengths = planner.plan(observation(1), observation(2))
print(tuple(actions.shape), lengths, "| encoder calls:", wm.encoded)
