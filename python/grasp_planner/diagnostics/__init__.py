"""Diagnostics of planning through any world model: why it is hard, and why a plan failed.

    setting = Setting(world_model, start, goal, action_low=-1, action_high=1, success_radius=0.1)
    for row in conditioning(setting, plan.actions[0], horizons=(5, 10, 20)):
        print(row.horizon, row.objective, row.condition)

`grasp diagnose TASK` runs all of them on a shipped task; docs/diagnostics.md explains each.
"""

from grasp_planner.diagnostics.adversarial import Adversarial, adversarial_steps
from grasp_planner.diagnostics.curvature import Conditioning, conditioning
from grasp_planner.diagnostics.failure import Attempts, Executed, explain_plans
from grasp_planner.diagnostics.gradients import GradientNorms, gradient_norms
from grasp_planner.diagnostics.setting import Setting
from grasp_planner.diagnostics.slices import Slices, landscape
from grasp_planner.diagnostics.trajectory import (
    DistanceProfile,
    Residuals,
    distance_profile,
    residuals,
)
from grasp_planner.diagnostics.verdict import VERDICTS, Evidence, Verdict

__all__ = [
    "VERDICTS",
    "Adversarial",
    "Attempts",
    "Conditioning",
    "DistanceProfile",
    "Evidence",
    "Executed",
    "GradientNorms",
    "Residuals",
    "Setting",
    "Slices",
    "Verdict",
    "adversarial_steps",
    "conditioning",
    "distance_profile",
    "explain_plans",
    "gradient_norms",
    "landscape",
    "residuals",
]
