"""Triton kernels for CUDA and ROCm: one file per op, each a kernel and then its launcher.

The launchers have the names and the argument order of the ops. Importing this package imports
Triton; `grasp_kernels` itself does so only when a tensor lives on a GPU.

Where to start reading: `lifted_step.py`, then `tile.py` (addresses, losses) and `rng.py` (noise).
"""

from grasp_kernels.triton.action_step import action_step_
from grasp_kernels.triton.gaussian_noise import gaussian_noise
from grasp_kernels.triton.lifted_loss import lifted_loss
from grasp_kernels.triton.lifted_loss_backward import lifted_loss_backward
from grasp_kernels.triton.lifted_step import lifted_step_
from grasp_kernels.triton.philox_words import philox_words

__all__ = [
    "action_step_",
    "gaussian_noise",
    "lifted_loss",
    "lifted_loss_backward",
    "lifted_step_",
    "philox_words",
]
