"""The specification: every op in plain torch, any float dtype, float64 for the oracle.

Nothing here is checked or fast. `grasp_kernels.functional` has the checked calls of the same names.
"""

from grasp_kernels.reference.action_step import action_step_, action_update_, next_moments
from grasp_kernels.reference.gaussian_noise import bridge_modes, gaussian_noise, normals_from_words
from grasp_kernels.reference.lifted_loss import (
    LiftedLoss,
    block_sum,
    compute_dtype,
    lifted_loss,
    lifted_loss_backward,
)
from grasp_kernels.reference.lifted_newton_step import LiftedNewtonStep, lifted_newton_step_
from grasp_kernels.reference.lifted_step import lifted_step_
from grasp_kernels.reference.mlp_jacobians import MLPJacobians, mlp_jacobians
from grasp_kernels.reference.mlp_lifted_plan import mlp_lifted_plan_
from grasp_kernels.reference.mlp_rollout import mlp_rollout, mlp_rollout_backward
from grasp_kernels.reference.mlp_sync import mlp_sync_
from grasp_kernels.reference.philox import philox4x32, philox_words

__all__ = [
    "LiftedLoss",
    "LiftedNewtonStep",
    "MLPJacobians",
    "action_step_",
    "action_update_",
    "block_sum",
    "bridge_modes",
    "compute_dtype",
    "gaussian_noise",
    "lifted_loss",
    "lifted_loss_backward",
    "lifted_newton_step_",
    "lifted_step_",
    "mlp_jacobians",
    "mlp_lifted_plan_",
    "mlp_rollout",
    "mlp_rollout_backward",
    "mlp_sync_",
    "next_moments",
    "normals_from_words",
    "philox4x32",
    "philox_words",
]
