"""A planner for jepa-wms' GC_Agent, through an untrained model of its signatures."""

import torch
from grasp_planner.adapters.jepa_wms import JepaPlanner
from torch import nn


class VideoWM(nn.Module):
    def __init__(self):
        super().__init__()
        self.action_encoder, self.predictor = nn.Linear(3, 6), nn.Linear(12, 6)

    def encode_act(self, actions):
        return self.action_encoder(actions)[:, :, None]

    def forward_pred(self, video, actions, proprio, ctxt_window=None, debug=False):
        given = actions[:, :, :, None, None].expand(*video.shape)
        return video + 0.3 * self.predictor(torch.cat([video, given], -1)).tanh(), actions, proprio


class EncPredWM(nn.Module):
    """What a planner sees of jepa-wms': frames are (b, t, V, H, W, D), here (b, 1, 1, 2, 2, 6)."""

    action_dim, ctxt_window, proprio_mode = 3, 2, "predict_proprio"

    def __init__(self):
        super().__init__()
        self.model = VideoWM()

    def unroll(self, z_ctxt, act_suffix):
        video = z_ctxt.expand(act_suffix.shape[1], *z_ctxt.shape[1:])
        actions = self.model.encode_act(act_suffix.transpose(0, 1))
        for t in range(len(act_suffix)):
            first = max(0, t + 1 - self.ctxt_window)
            new = self.model.forward_pred(video[:, first:], actions[:, first : t + 1], None)[0]
            video = torch.cat([video, new[:, -1:]], 1)
        return video.transpose(0, 1)


class Distance:
    """`repr_dist` of jepa-wms: the mean squared difference of the last frame."""

    def __init__(self, target_enc):
        self.target_enc = target_enc

    def __call__(self, encodings, actions):
        return (self.target_enc - encodings).square().mean((2, 3, 4, 5))[-1]


torch.manual_seed(0)
model = EncPredWM()
planner = JepaPlanner(
    model.unroll,
    action_dim=model.action_dim,
    horizon=6,
    num_act_stepped=3,
    max_norms=[1.0],
    max_norm_dims=[[0, 1, 2]],
    planner="grasp",
    settings={"iterations": 40, "candidates": 4, "sync_every": 10, "final_sync_steps": 20},
)
z_init, goal = torch.randn(1, 1, 1, 2, 2, 6), torch.randn(1, 1, 1, 2, 2, 6)
planner.set_objective(Distance(goal))  # GC_Agent.set_goal does this
result = planner.plan(z_init, steps_left=10)
print("actions", tuple(result.actions.shape), "| loss after every 10 iterations:")
print([round(loss, 4) for loss in result.losses[9::10, 0].tolist()])
