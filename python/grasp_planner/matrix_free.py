"""The lifted Gauss-Newton step for states too many for Jacobians: products with them alone.

`lifted_newton_step_` keeps a `D x D` matrix per time step. Here nothing is larger than a state: the
sensitivity S of the goal error to the actions is applied by a scan of JVPs, its transpose by a
scan of VJPs, and the least squares are solved by conjugate gradients. A scan is T dependent calls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grasp_kernels.reference import block_sum
from grasp_planner.blocks import first_of_blocks, hold_actions, sum_blocks

Model = Callable[[Tensor, Tensor], Tensor]
SOLVES = 2
ITERATIONS = 16  # of conjugate gradients in each
JITTER = 1e-6  # damping that is always there, as in `lifted_newton_step_`


class _Linearised:
    """The model linearised at every (state, action) of N plans: `S`, `S^T`, and the scan itself."""

    def __init__(
        self, model: Model, states: Tensor, actions: Tensor, root: Tensor, hold: int
    ) -> None:
        self.model, self.states, self.actions = model, states, actions
        self.root, self.hold = root, hold

    def scan(
        self, step: Tensor, defect: Tensor | None = None, limit: float = torch.inf
    ) -> list[Tensor]:
        """`dx_{t+1} = A_t dx_t + B_t step_t + d_t` for every t, from `dx_0 = 0`."""
        change, changes = torch.zeros_like(self.states[:, 0]), []
        for t in range(step.shape[1]):
            at = (self.states[:, t], self.actions[:, t])
            change = _pushed(self.model, at, (change, step[:, t]))
            if defect is not None:
                change = change + defect[:, t]
            change = change.clamp(-limit, limit)
            changes.append(change)
        return changes

    def forward(self, blocks: Tensor) -> Tensor:
        """`S blocks`: `(N, K, A)` to `(N, D)`."""
        step = hold_actions(blocks, self.hold, self.actions.shape[1])
        return self.root * self.scan(step)[-1]

    def transposed(self, error: Tensor) -> Tensor:
        """`S^T error`: `(N, D)` to `(N, K, A)`."""
        cotangent, rows = self.root * error, []
        for t in reversed(range(self.actions.shape[1])):
            pull = torch.func.vjp(self.model, self.states[:, t], self.actions[:, t])[1]
            cotangent, row = pull(cotangent)
            rows.append(row)
        return sum_blocks(torch.stack(rows[::-1], 1), self.hold)


def matrix_free_newton_step_(
    model: Model,
    trajectory: Tensor,
    actions: Tensor,
    goal: Tensor,
    *,
    damping: Tensor | float,
    goal_weight: Tensor,
    hold: int,
    low: Tensor,
    high: Tensor,
    max_action_step: float,
    max_state_step: float,
    solves: int = SOLVES,
    iterations: int = ITERATIONS,
    max_rows: int | None = None,
) -> Tensor:
    """The step of `lifted_newton_step_` by JVPs and VJPs; in place on trajectory and actions.

    Args:
        model: `F(states (N, D), actions (N, A)) -> (N, D)`, for `torch.func` to transform.
        trajectory, actions, goal: `(N, T + 1, D)`, `(N, T, A)`, `(N, D)`.
        damping: lambda; since `|S|^2` is not known, `mu = lambda |S^T e|^2 / |e|^2` in its place.
        iterations: of conjugate gradients at most, on `(S^T S + mu I) delta = -S^T e` in the space
            of held actions; two scans each. As many as there are held numbers are exact.
        max_rows: the most that the model sees at once; N is not above it.
        others: as in `lifted_newton_step_`.

    Returns:
        The goal error `|e|^2` before the step, `(N,)`.
    """
    states = trajectory[:, :-1].clone()
    most = max_rows or max(len(states) * states.shape[1], 1)
    rows = zip(states.flatten(0, 1).split(most), actions.flatten(0, 1).split(most), strict=True)
    prediction = torch.cat([model(*some) for some in rows]).view_as(states)
    defect = prediction - trajectory[:, 1:]
    linear = _Linearised(model, states, actions.clone(), goal_weight.sqrt(), hold)
    arriving = trajectory[:, -1] + linear.scan(torch.zeros_like(actions), defect)[-1]
    error = linear.root * (arriving - goal)
    pull = linear.transposed(error)
    mu = (damping + JITTER) * dot(pull, pull) / dot(error, error).clamp_min(1e-30)

    held = first_of_blocks(actions, hold)
    free = torch.ones_like(held)
    for solve in range(solves):
        delta = conjugate_gradients(linear, -pull * free, mu, free, iterations)
        if solve + 1 < solves:
            free = free * ~(((held <= low) & (delta < 0)) | ((held >= high) & (delta > 0)))

    moved = held + delta.clamp(-max_action_step, max_action_step)
    moved = hold_actions(moved.clamp(low, high), hold, actions.shape[1])
    step = moved - actions
    actions.copy_(moved)
    trajectory[:, 1:] += torch.stack(linear.scan(step, defect, max_state_step), 1)
    return dot(error, error)


def matrix_free_calls(steps: int, width: int, hold: int) -> int:
    """Dependent model calls of such a step: its scans, and one evaluation."""
    products = 2 * SOLVES * min(ITERATIONS, width * -(-steps // hold))
    return 1 + steps * (3 + products)


def _pushed(model: Model, at: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor]) -> Tensor:
    """The JVP, as the transpose of a VJP, which is linear in its cotangent (Townsend, 2017).

    Torch's forward mode takes every product of a tangent with a weight through Python, which is
    most of a small MLP's time, and refuses autocast.
    """
    value, pull = torch.func.vjp(model, *at)[:2]
    push = torch.func.vjp(pull, torch.zeros_like(value))[1]
    return push(tangents)[0]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Per plan, `(N, ...)` to `(N,)`."""
    return block_sum((a * b).flatten(1))


def conjugate_gradients(
    linear: _Linearised, right: Tensor, mu: Tensor, free: Tensor, iterations: int
) -> Tensor:
    """`(S^T S + mu I) x = right` in the free entries, `(N, K, A)`; each plan by itself.

    A plan that has arrived (or never had anything to solve) stays where it is.
    """

    def along(plan: Tensor) -> Tensor:
        return plan[:, None, None]

    solution, residual = torch.zeros_like(right), right
    direction, size = residual, dot(residual, residual)
    enough = 1e-10 * size
    for _ in range(min(iterations, right[0].numel() if len(right) else 0)):
        image = free * linear.transposed(linear.forward(direction)) + along(mu) * direction
        curvature = dot(direction, image)
        going = (size > enough) & (curvature > 0)
        rate = torch.where(going, size / curvature, 0.0)
        solution = solution + along(rate) * direction
        residual = residual - along(rate) * image
        next_size = dot(residual, residual)
        direction = residual + along(torch.where(going, next_size / size, 0.0)) * direction
        size = next_size
    return solution
