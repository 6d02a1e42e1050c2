"""A planner as the policy of TorchRL's own rollout, beside TorchRL's CEM, on its PendulumEnv."""

# needs: torchrl

import torch
from grasp_planner.adapters.torchrl import MPCPlanner
from torchrl.envs import PendulumEnv
from torchrl.modules.planners import CEMPlanner

env = PendulumEnv(seed=0)  # it is its own model; a ModelBasedEnvBase does as well
policies = {
    "TorchRL's CEMPlanner": CEMPlanner(
        env, planning_horizon=20, optim_steps=3, num_candidates=64, top_k=8
    ),
    "ICEMPlanner": MPCPlanner(env, planning_horizon=20, iterations=3, samples=64, least_samples=64),
}
for name, policy in policies.items():
    env.set_seed(0)
    torch.manual_seed(0)
    begin = env.reset(env.gen_params(batch_size=[4]), set_state=False)
    rollout = env.rollout(
        40, policy=policy, auto_reset=False, tensordict=begin, break_when_any_done=False
    )
    total = rollout["next", "reward"].sum((1, 2))
    print(f"{name}: rewards {[round(value) for value in total.tolist()]}")
