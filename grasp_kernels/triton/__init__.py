"""Triton kernels for CUDA and ROCm: one file per op, each a kernel and then its launcher.

The launchers have the names and the argument order of the ops. Importing this package imports
Triton; `grasp_kernels` itself does so only when a tensor lives on a GPU.

Where to start reading: `lifted_step.py`, then `tile.py` (addresses, losses) and `rng.py` (noise).
For whole loops through an MLP world model: `mlp_lifted_plan.py`, then `mlp_tile.py` (the model).
The second-order step: `mlp_jacobians.py` linearises the model, `lifted_newton_step.py` solves.
"""

from grasp_kernels.triton.action_step import action_step_
from grasp_kernels.triton.gaussian_noise import gaussian_noise
from grasp_kernels.triton.lifted_loss import lifted_loss
from grasp_kernels.triton.lifted_loss_backward import lifted_loss_backward
from grasp_kernels.triton.lifted_newton_step import lifted_newton_step_, newton_fits
from grasp_kernels.triton.lifted_step import lifted_step_
from grasp_kernels.triton.mlp_jacobians import mlp_jacobians
from grasp_kernels.triton.mlp_lifted_plan import mlp_lifted_plan_
from grasp_kernels.triton.mlp_rollout import mlp_rollout, mlp_rollout_backward
from grasp_kernels.triton.mlp_structure import mlp_fits
from grasp_kernels.triton.mlp_sync import mlp_sync_
from grasp_kernels.triton.philox_words import philox_words

__all__ = [
    "action_step_",
    "gaussian_noise",
    "lifted_loss",
    "lifted_loss_backward",
    "lifted_newton_step_",
    "lifted_step_",
    "mlp_fits",
    "mlp_jacobians",
    "mlp_lifted_plan_",
    "mlp_rollout",
    "mlp_rollout_backward",
    "mlp_sync_",
    "newton_fits",
    "philox_words",
]
