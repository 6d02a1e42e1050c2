"""Fused kernels for GRASP, lifted planning through world models (arXiv 2602.00475).

Public names only; see `grasp_kernels.functional` for the calls and `grasp_kernels.ops` for the ops.
"""

from grasp_kernels import reference
from grasp_kernels.autograd import LiftedLossFunction, scale_state_gradient
from grasp_kernels.backends import Backend, backend_for, backends
from grasp_kernels.functional import action_step_, gaussian_noise, lifted_loss, lifted_step_
from grasp_kernels.mlp import MLPDynamics, MLPLayer, UnsupportedModel
from grasp_kernels.mlp_functional import (
    mlp_jacobians,
    mlp_lifted_plan_,
    mlp_rollout,
    mlp_sync_,
)
from grasp_kernels.newton_functional import lifted_newton_step_
from grasp_kernels.ops import SCHEMAS
from grasp_kernels.reference import LiftedLoss, LiftedNewtonStep, MLPJacobians

__version__ = "0.1.0"

__all__ = [
    "SCHEMAS",
    "Backend",
    "LiftedLoss",
    "LiftedLossFunction",
    "LiftedNewtonStep",
    "MLPDynamics",
    "MLPJacobians",
    "MLPLayer",
    "UnsupportedModel",
    "action_step_",
    "backend_for",
    "backends",
    "gaussian_noise",
    "lifted_loss",
    "lifted_newton_step_",
    "lifted_step_",
    "mlp_jacobians",
    "mlp_lifted_plan_",
    "mlp_rollout",
    "mlp_sync_",
    "reference",
    "scale_state_gradient",
]
