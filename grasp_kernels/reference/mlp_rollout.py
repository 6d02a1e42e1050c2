"""The rollout of an MLP world model, and its adjoint, written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grasp_kernels.reference.mlp_dynamics import backward, forward, unpack


def mlp_rollout(
    start: Tensor, actions: Tensor, weights: Tensor, constants: Tensor, structure: Sequence[int]
) -> Tensor:
    """`states[0] = start`, `states[t + 1] = F(states[t], actions[t])`: `(N, T + 1, D)`."""
    network = unpack(weights, constants, structure)
    states = [start]
    for action in actions.unbind(1):
        states.append(forward(network, states[-1], action)[0])
    return torch.stack(states, dim=1)


def mlp_rollout_backward(
    cotangent: Tensor,
    states: Tensor,
    actions: Tensor,
    weights: Tensor,
    constants: Tensor,
    structure: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Gradients for `start (N, D)` and `actions (N, T, A)`, from those of all states.

    adjoint_T = cotangent_T,  adjoint_t = cotangent_t + (dF/ds)^T adjoint_{t+1}
    """
    network = unpack(weights, constants, structure)
    adjoint = cotangent[:, -1].clone()  # what T = 0 returns is not a view
    gradient = torch.empty_like(actions)
    for t in reversed(range(actions.shape[1])):
        _, saved = forward(network, states[:, t], actions[:, t])
        adjoint, gradient[:, t] = backward(network, saved, adjoint)
        adjoint = adjoint + cotangent[:, t]
    return adjoint, gradient
