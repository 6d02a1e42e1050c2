"""How hard the two objectives are to descend: the conditioning of shooting against lifting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_planner.diagnostics.objectives import LeastSquares, Objectives
from grasp_planner.diagnostics.setting import Setting, checked, checked_actions, straight_line
from grasp_planner.diagnostics.spectrum import ends, least_definite

POINTS = ("solution", "search start")
#: Singular values of J up to this share of the largest count as zero, by the computation's dtype.
ZERO = {torch.float64: 1e-12, torch.float32: 1e-5}
#: Up to so many residuals (or variables, if fewer) J is assembled, which is exact, and for the
#: smallest eigenvalue of such sizes quicker than Lanczos.
ASSEMBLED = 3000


@dataclass(frozen=True)
class Conditioning:
    """The curvature of one objective at one point.

    The condition number is that of Gauss-Newton's matrix `2 J J^T` on its range. The Hessian itself
    is singular at every solution, for both objectives alike: many plans arrive, and along the
    `free_directions` between them nothing changes. What decides how fast a descent converges is
    the largest curvature over the smallest of the others. Eigenvalues of both are in cost per
    squared unit of action or of scaled state.

    Attributes:
        horizon: T.
        objective: "shooting" or "lifted".
        point: "solution": the plan's first T steps, the state they end in as the goal. "search
            start": actions 0 (or the nearest within bounds), virtual states on the straight line to
            the problem's own goal.
        variables: numbers that are searched for: T A, and for lifting (T - 1) D more.
        free_directions: variables less the rank of J.
        largest, smallest: of the nonzero eigenvalues of `2 J J^T`; those of singular values below
            1e-12 of the largest (float32: 1e-5) count as zero. NaN: Lanczos did not converge.
        condition: `largest / smallest`; inf where J is zero.
        condition_scaled: the same of J with columns of length 1, so with each variable in a unit of
            its own. `condition` depends on how states and actions are measured against each other,
            and step sizes of their own, or a diagonal preconditioner (Adam, in effect), undo that.
            NaN where J is not assembled.
        hessian_largest, hessian_least: of the whole Hessian, by Lanczos; a negative least one is a
            direction in which the objective curves downwards. Within `1e-4 hessian_largest` of 0 it
            is 0 or noise. NaN: Lanczos did not converge.
        products: Hessian- and Jacobian-vector products that were needed.
        method: of `largest` and `smallest`: "dense", by the singular values of J, or "Lanczos".
    """

    horizon: int
    objective: str
    point: str
    variables: int
    free_directions: int
    largest: float
    smallest: float
    condition: float
    condition_scaled: float
    hessian_largest: float
    hessian_least: float
    products: int
    method: str


def conditioning(
    setting: Setting, actions: Tensor, horizons: Sequence[int] | None = None, *, problem: int = 0
) -> list[Conditioning]:
    """Both objectives' conditioning against the horizon, at a solution and where searches begin.

    The Hessian is never assembled: its ends come of Hessian-vector products, by implicitly
    restarted Lanczos (`scipy.sparse.linalg.eigsh`, extra `[diagnose]`). J is, up to 3000 rows; the
    smallest eigenvalue of larger ones is left to Lanczos too, which finds it only where the
    condition number is moderate.

    Args:
        setting: world model and problems.
        actions: `(T, A)`, a plan for `problem`, best one that arrives.
        horizons: each from 1 to T; None is T alone.
        problem: which problem.

    Returns:
        For each horizon, point and objective, in this order, a `Conditioning`.

    Raises:
        TypeError, ValueError: an argument is wrong, the world model is not twice differentiable, or
            it answers with NaN or infinity.
    """
    actions = checked_actions(setting, actions, plans=1)
    problem = setting.problem(problem)
    steps, width = actions.shape[1:]
    wanted = [steps] if horizons is None else list(horizons)
    for horizon in wanted:
        if not 1 <= horizon <= steps:
            raise ValueError(f"horizons must be from 1 to T = {steps}, got {horizon}")
    _, dtype, _ = setting.precise(width)
    actions = actions.to(dtype)
    index = torch.tensor([problem], device=actions.device)
    with torch.no_grad():
        states = checked("the plan's rollout", setting.rollout(actions, index), "(1, T + 1, D)", 3)
    low, high = setting.bounds(width, dtype)
    idle = torch.zeros_like(actions).clamp(low, high)
    own = Objectives(setting, problem, width)
    found = []
    for horizon in wanted:
        ended = Objectives(setting, problem, width, goal=states[0, horizon])
        line = straight_line(own.start[None], own.goal[None], horizon)
        for point, objectives, path, controls in (
            (POINTS[0], ended, states[:, : horizon + 1], actions[:, :horizon]),
            (POINTS[1], own, line, idle[:, :horizon]),
        ):
            joint = torch.cat([path[0, 1:horizon].flatten(), controls.flatten()])
            for objective, residual, x in (
                ("shooting", objectives.flat_shooting(horizon), controls.flatten()),
                ("lifted", objectives.flat_lifted(horizon), joint),
            ):
                found.append(_measure(horizon, objective, point, LeastSquares(residual, x)))
    return found


def _measure(horizon: int, objective: str, point: str, at: LeastSquares) -> Conditioning:
    rows, variables = at.residual.numel(), at.x.numel()
    whole = ends(at.hessian, at.x)
    if min(rows, variables) <= ASSEMBLED:
        jacobian = at.jacobian()
        largest, smallest, rank = _squares(jacobian)
        length = jacobian.norm(dim=0)
        most, least, _ = _squares(jacobian / torch.where(length > 0, length, 1.0))
        scaled = most / least if least else math.inf
        products, method = rows, "dense"
    else:
        top = ends(at.gramian, at.residual)
        smallest, products = least_definite(at.gramian, at.residual)
        rank, largest, method = min(rows, variables), top.largest, "Lanczos"
        scaled = math.nan
        products += top.products
    return Conditioning(
        horizon=horizon,
        objective=objective,
        point=point,
        variables=variables,
        free_directions=variables - rank,
        largest=largest,
        smallest=smallest,
        condition=largest / smallest if smallest else math.inf,
        condition_scaled=scaled,
        hessian_largest=whole.largest,
        hessian_least=whole.least,
        products=products + whole.products,
        method=method,
    )


def _squares(jacobian: Tensor) -> tuple[float, float, int]:
    """The largest and the smallest nonzero eigenvalue of `2 J J^T`, and the rank of J.

    By singular values, which keep the digits that squaring, in `J J^T`, would lose.
    """
    at_least_single = torch.promote_types(jacobian.dtype, torch.float32)
    singular = torch.linalg.svdvals(jacobian.to(at_least_single)).double()
    counted = singular[singular > ZERO.get(jacobian.dtype, 1e-2) * singular[0]]
    smallest = 2 * float(counted[-1]) ** 2 if len(counted) else 0.0
    return 2 * float(singular[0]) ** 2, smallest, len(counted)
