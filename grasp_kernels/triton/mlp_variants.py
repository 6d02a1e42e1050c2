"""The MLP kernels as they are launched for a few models and a horizon: see variants.py.

A model's structure is compiled in, so each model is a kernel of its own. These are the sizes of
small, middle and large latent world models, with SiLU and a residual output, and the dynamics of
TD-MPC2, where every layer has a LayerNorm; plans of 50 steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grasp_kernels.reference.mlp_dynamics import ACTIVATIONS
from grasp_kernels.triton.mlp_jacobians import jacobians_tile, mlp_jacobians_kernel
from grasp_kernels.triton.mlp_lifted_plan import mlp_lifted_plan_kernel
from grasp_kernels.triton.mlp_rollout import mlp_rollout_backward_kernel, mlp_rollout_kernel
from grasp_kernels.triton.mlp_structure import MLPTile, plan_tile, rollout_tile
from grasp_kernels.triton.mlp_sync import mlp_sync_kernel

STEPS = 50


def hidden(
    state_features: int, action_features: int, widths: Sequence[int], activation: str = "silu"
) -> tuple[int, ...]:
    """The structure of a residual model with these hidden layers, without norms."""
    layers = [(width, ACTIVATIONS.index(activation), 0, 0) for width in widths]
    layers.append((state_features, 0, 0, 0))
    sizes = state_features, action_features, 1, len(layers)
    return sizes + tuple(number for layer in layers for number in layer)


def latent(state_features: int, action_features: int, widths: Sequence[int]) -> tuple[int, ...]:
    """The structure of a model as in TD-MPC2 (Hansen et al., arXiv 2310.16828): LayerNorm and Mish,
    in the last layer LayerNorm and simnorm over groups of 8; nothing is added to the state.
    """
    mish, simnorm = ACTIVATIONS.index("mish"), ACTIVATIONS.index("simnorm")
    layers = [(width, mish, 1, 0) for width in widths]
    layers.append((state_features, simnorm, 1, 8))
    sizes = state_features, action_features, 0, len(layers)
    return sizes + tuple(number for layer in layers for number in layer)


MODELS = {
    "128x3": hidden(4, 2, [128] * 3),
    "256x2": hidden(64, 2, [256] * 2),
    "512x3": hidden(64, 2, [512] * 3),
    "tdmpc2": latent(512, 6, [512] * 2),
}
"""By hidden layers: D = 4 for the first, else 64; A = 2. TD-MPC2's: D = 512, A = 6."""

KERNELS = {
    "mlp_rollout": mlp_rollout_kernel,
    "mlp_rollout_backward": mlp_rollout_backward_kernel,
    "mlp_lifted_plan": mlp_lifted_plan_kernel,
    "mlp_sync": mlp_sync_kernel,
    "mlp_jacobians": mlp_jacobians_kernel,
}
FLAGS: dict[str, dict[str, object]] = {
    "mlp_lifted_plan": {"NOISE": "white", "FREE": False},
    "mlp_sync": {"BLEND": True, "FREE": False},
}
ABSENT = {"mlp_lifted_plan": {"feature_weight"}, "mlp_sync": {"cost_weight"}}

INTEGERS = {
    "plans", "steps", "iterations", "descents", "first_iteration", "key_low", "key_high", "modes",
    "rows", "shares",
}  # fmt: skip
TYPES = {
    **dict.fromkeys(INTEGERS, "i32"),
    **dict.fromkeys(("epsilon", "stop_cost", "blend"), "fp32"),
    **dict.fromkeys(("beta1", "beta2", "first_power1", "first_power2"), "fp64"),
    "sound": "*u1",
    "plan_ids": "*i64",
}
"""Of the arguments that are not pointers to float32; `weights` and `factors` have the dtype."""


def tile_of(kernel: str, dtype: str) -> MLPTile:
    storage = getattr(torch, dtype)
    if kernel == "mlp_jacobians":
        return jacobians_tile(storage)
    return plan_tile(STEPS, storage) if kernel == "mlp_lifted_plan" else rollout_tile(storage)


def hidden_units(model: Sequence[int]) -> int:
    """Of one row: the sum of the widths of all layers but the last."""
    return sum(model[4:-4:4])
