"""An MLP world model and its Jacobians at many rows, written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from grasp_kernels.reference.mlp_dynamics import backward, forward, unpack


class MLPJacobians(NamedTuple):
    """`F(state, action)` and its two derivatives."""

    prediction: Tensor
    """`(..., D)`, the next state."""
    state_jacobian: Tensor
    """`(..., D, D)`, `[i, j] = d F_i / d state_j`."""
    action_jacobian: Tensor
    """`(..., D, A)`, `[i, j] = d F_i / d action_j`."""


def mlp_jacobians(
    states: Tensor, actions: Tensor, weights: Tensor, constants: Tensor, structure: Sequence[int]
) -> MLPJacobians:
    """Of `states (M, D)` and `actions (M, A)`, in reverse mode: D unit cotangents for every row."""
    network = unpack(weights, constants, structure)
    prediction, saved = forward(network, states, actions)
    rows, features = states.shape
    units = torch.eye(features, dtype=states.dtype, device=states.device)
    gradients = backward(network, saved, units[:, None].expand(features, rows, features))
    dense = torch.contiguous_format  # and no views of each other
    return MLPJacobians(
        prediction, *(g.transpose(0, 1).clone(memory_format=dense) for g in gradients)
    )
