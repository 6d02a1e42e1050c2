"""What every op must move and compute at least, counted from shapes: the floors of `grasp bench`.

    bytes         every array operand once: read once, written once, however often a kernel comes
                  back to it. The loss rows and the small per-plan operands are counted too.
    operations    the additions, multiplications, divisions, square roots and comparisons of the
                  formula in docs/method.md, one each, per element. For an MLP, two per weight and
                  row: its activations and norms are not counted, nor is anything that happens once
                  per row or less often (a factor on a row's loss, the end of a sum).
    noise         the operations behind the random numbers, apart, because they are integer
                  arithmetic for the most part: 111 for every two normals, as counted in
                  csrc/include/grasp/normals.h.

A backend that makes temporaries moves more. The counts are the same for all of them, so that a
fraction of a ceiling means the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from grasp_kernels.reference import compute_dtype

NOISE_PER_PAIR = 111
"""Operations that make two normals: Philox words, logarithm, square root, cosine and sine."""


@dataclass(frozen=True)
class Cost:
    """Bytes and operations of one call."""

    bytes_read: int = 0
    bytes_written: int = 0
    operations: int = 0
    noise: int = 0

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
            self.operations + other.operations,
            self.noise + other.noise,
        )


def normals(plans: int, steps: int, features: int, noise: str, modes: int = 8) -> Cost:
    """Drawing the normals of `steps` rows, and summing the waves of a bridge."""
    per_row = 4 * -(-features // 4)  # a counter gives four, whether all are used or not
    if noise == "none":
        return Cost()
    if noise == "white":
        return Cost(noise=NOISE_PER_PAIR * plans * steps * per_row // 2)
    # One multiply-add per mode; the table of sines is small and is not counted.
    return Cost(
        operations=2 * modes * plans * steps * features,
        noise=NOISE_PER_PAIR * plans * (modes if steps else 0) * per_row // 2,
    )


def gaussian_noise(
    plans: int,
    steps: int,
    features: int,
    *,
    noise: str = "white",
    modes: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Cost:
    """Reads the plan ids, writes the noise."""
    written = plans * steps * features * dtype.itemsize
    return Cost(8 * plans, written) + normals(plans, steps, features, noise, modes)


def lifted_loss(
    plans: int,
    steps: int,
    features: int,
    *,
    dtype: torch.dtype = torch.float32,
    feature_weight: bool = False,
    time_weight: bool = False,
) -> Cost:
    """Reads prediction, trajectory without row 0, and goal; writes two losses per row."""
    elements, small = plans * steps * features, compute_dtype(dtype).itemsize
    weights = _weights(steps, features, feature_weight, time_weight, small)
    read = (2 * elements + plans * features) * dtype.itemsize + weights
    # residual, goal error, and a multiply-add for the square of each; w once more for each
    operations = (6 + 2 * feature_weight) * elements
    return Cost(read, 2 * plans * steps * small, operations)


def lifted_loss_backward(
    plans: int,
    steps: int,
    features: int,
    *,
    dtype: torch.dtype = torch.float32,
    feature_weight: bool = False,
    time_weight: bool = False,
) -> Cost:
    """Reads what the forward read and a cotangent for every loss; writes both gradients."""
    elements, small = plans * steps * features, compute_dtype(dtype).itemsize
    weights = _weights(steps, features, feature_weight, time_weight, small)
    read = (2 * elements + plans * features) * dtype.itemsize + weights + 2 * plans * steps * small
    written = (elements + plans * (steps + 1) * features) * dtype.itemsize
    # residual, goal error, each by a factor of its row, their sum; w once for each
    return Cost(read, written, (5 + 2 * feature_weight) * elements)


def lifted_step_(
    plans: int,
    steps: int,
    features: int,
    *,
    noise: str = "white",
    modes: int = 8,
    dtype: torch.dtype = torch.float32,
    feature_weight: bool = False,
    time_weight: bool = False,
    state_gradient: bool = False,
    terminal: str = "fixed",
) -> Cost:
    """Reads prediction, trajectory without row 0, and goal; writes the cotangent and the rows of
    the trajectory that move: all but the first, and the last with `terminal="free"` only."""
    size, small = dtype.itemsize, compute_dtype(dtype).itemsize
    elements = plans * steps * features
    rows = steps if terminal == "free" else max(steps - 1, 0)
    moved = plans * rows * features
    read = (2 * elements + plans * features) * size + plans * (8 + 3 * small)
    read += _weights(steps, features, feature_weight, time_weight, small)
    read += state_gradient * moved * size
    written = (elements + moved) * size + 2 * plans * steps * small
    # The two losses 6; the cotangent: goal error by its weight, plus residual, doubled 3.
    operations = (9 + 3 * feature_weight) * elements
    # The move: doubled residual by the step size, added 3; noise by its scale, added 2.
    drawn = 0 if noise == "none" else 2
    operations += (3 + drawn + feature_weight + 2 * state_gradient) * moved
    return Cost(read, written, operations) + normals(plans, rows, features, noise, modes)


def action_step_(
    plans: int,
    steps: int,
    features: int,
    *,
    optimizer: str = "adam",
    bounds: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Cost:
    """Reads and writes the actions, and Adam's two moments; reads the gradient."""
    elements, small = plans * steps * features, compute_dtype(dtype).itemsize
    moments = 2 * small if optimizer == "adam" else 0
    read = elements * (2 * dtype.itemsize + moments) + plans * small
    written = elements * (dtype.itemsize + moments)
    # Adam: first moment 3, second 4, corrected with its root and epsilon 3, the quotient 2.
    arithmetic = (12 if optimizer == "adam" else 0) + 2 + bounds
    return Cost(read, written, arithmetic * elements)


def mlp_weights(structure: Sequence[int]) -> int:
    """How many weights the products of one row use (`structure` as in `MLPDynamics`)."""
    return sum(a * b for a, b in pairwise(_widths(structure)))


def mlp_rollout(plans: int, steps: int, structure: Sequence[int], *, dtype: torch.dtype) -> Cost:
    """Reads weights, start and actions; writes the states. `dtype` is that of the weights."""
    size, (state, action) = compute_dtype(dtype).itemsize, structure[:2]
    read = _model_bytes(structure, dtype) + plans * (state + steps * action) * size
    written = plans * (steps + 1) * state * size
    return Cost(read, written, 2 * plans * steps * mlp_weights(structure))


def mlp_rollout_backward(
    plans: int, steps: int, structure: Sequence[int], *, dtype: torch.dtype
) -> Cost:
    """Reads weights, states, their cotangents and the actions; writes two gradients.

    Four operations per weight and row: the layers once more (only the states were kept), and the
    way back.
    """
    size, (state, action) = compute_dtype(dtype).itemsize, structure[:2]
    read = plans * (2 * (steps + 1) * state + steps * action) * size
    written = plans * (state + steps * action) * size
    operations = 4 * plans * steps * mlp_weights(structure)
    return Cost(read + _model_bytes(structure, dtype), written, operations)


def mlp_jacobians(plans: int, steps: int, structure: Sequence[int], *, dtype: torch.dtype) -> Cost:
    """At plans x steps rows. Reads weights, states and actions; writes predictions and Jacobians.

    Two operations per weight and row, and per row and output once more for all layers but the last:
    a unit cotangent picks a row of that one.
    """
    size, (state, action) = compute_dtype(dtype).itemsize, structure[:2]
    rows, weights = plans * steps, mlp_weights(structure)
    hidden = weights - state * _widths(structure)[-2]
    read = _model_bytes(structure, dtype) + rows * (state + action) * size
    written = rows * state * (1 + state + action) * size
    return Cost(read, written, 2 * rows * (weights + state * hidden))


def lifted_newton_step_(
    plans: int,
    steps: int,
    features: int,
    actions: int,
    *,
    hold: int = 1,
    solves: int = 2,
    bounds: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Cost:
    """Reads states, actions, predictions and Jacobians; writes states and actions.

    All features are weighed. Both scans are two operations per entry of a product; a solve forms
    and factors the symmetric matrix of the goal errors.
    """
    size, d, a = dtype.itemsize, features, actions
    entries = -(-steps // hold) * a
    # The defect, its square into a sum, and L d, L A and L B; then A dx, B step, + d, the limit, +.
    scans = steps * (3 * d + 2 * d * d * (1 + d + a) + 2 * d * (d + a) + 4 * d)
    solve = entries * d * (d + 1) + d**3 // 3 + 2 * d * d + 2 * d * entries
    # Limited, added, into the box; and the step of every row, whose size is compared.
    moves = entries * (3 + bounds) + 2 * steps * a
    read = (2 * steps + 1) * d + steps * a + steps * d * (d + a) + d + 1
    written = steps * (d + a) + 3
    return Cost(
        plans * read * size + (bounds * a) * size,
        plans * written * size,
        plans * (scans + solves * solve + moves),
    )


def mlp_lifted_plan_(
    plans: int,
    steps: int,
    structure: Sequence[int],
    *,
    iterations: int,
    noise: str = "white",
    modes: int = 8,
    optimizer: str = "adam",
    bounds: int = 2,
    dtype: torch.dtype,
) -> Cost:
    """One launch of K iterations: its variables are read once and written once, for all of them.

    Operations of an iteration: the model, its way back to the actions only (of the first layer, the
    action columns), the lifted step and the action step.
    """
    store = compute_dtype(dtype)
    size, (state, action), first = store.itemsize, structure[:2], structure[4]
    moments = 2 if optimizer == "adam" else 0
    variables = plans * ((steps + 1) * state + (1 + moments) * steps * action) * size
    rows = plans * steps
    products = 2 * rows * (2 * mlp_weights(structure) - state * first)
    step = lifted_step_(plans, steps, state, noise=noise, modes=modes, dtype=store)
    act = action_step_(plans, steps, action, optimizer=optimizer, bounds=bounds, dtype=store)
    read = _model_bytes(structure, dtype) + plans * state * size + 2 * iterations * size
    return Cost(
        variables + read,
        variables + iterations * plans * size,
        iterations * (products + step.operations + act.operations),
        iterations * step.noise,
    )


def mlp_sync_(
    plans: int,
    horizon: int,
    structure: Sequence[int],
    *,
    steps: int,
    optimizer: str = "adam",
    bounds: int = 2,
    dtype: torch.dtype,
) -> Cost:
    """One launch of S steps: a rollout and its adjoint each, without recomputing; a last rollout.

    Reads trajectory, actions, the best so far, start and goal; writes the former four.
    """
    size, (state, action) = compute_dtype(dtype).itemsize, structure[:2]
    states, moves = plans * (horizon + 1) * state, plans * horizon * action
    variables = (2 * states + 2 * moves + plans) * size
    act = action_step_(plans, horizon, action, optimizer=optimizer, bounds=bounds)
    rows, weights = plans * horizon, mlp_weights(structure)
    operations = steps * (4 * rows * weights + act.operations) + 2 * rows * weights
    read = variables + _model_bytes(structure, dtype) + 2 * plans * state * size
    return Cost(read, variables, operations)


def _widths(structure: Sequence[int]) -> list[int]:
    """The inputs of the model, then the width of each layer."""
    return [structure[0] + structure[1], *structure[4::4]]


def _model_bytes(structure: Sequence[int], dtype: torch.dtype) -> int:
    """Weights in their dtype; mean, scale, shift, biases and norms in the compute dtype."""
    state, action = structure[:2]
    layers = zip(structure[4::4], structure[6::4], strict=True)
    constants = 2 * (state + action) + 2 * state
    constants += sum(width * (1 + 2 * norm) + norm for width, norm in layers)
    return mlp_weights(structure) * dtype.itemsize + constants * compute_dtype(dtype).itemsize


def _weights(steps: int, features: int, w: bool, v: bool, size: int) -> int:
    return (w * features + v * steps) * size
