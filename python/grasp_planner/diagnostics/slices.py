"""Slices through both objectives around a plan, along seeded random directions and the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_planner.diagnostics.objectives import Objectives
from grasp_planner.diagnostics.setting import Setting, checked_actions


@dataclass(frozen=True, eq=False)
class Slices:
    """An objective's values around a plan; float64 on the CPU, NaN where the model gives NaN.

    A slice moves all variables at once, along a unit vector u: `x + offset sqrt(n) u`. So an offset
    is the root mean square change of a variable (actions in units of half the box, virtual states
    scaled), the same meaning for both objectives, which have different numbers n of variables.

    Attributes:
        objective: "shooting" or "lifted".
        offsets: `(P,)`, of the lines, symmetric around 0.
        lines: `(L, P)`, along L random directions.
        gradient_line: `(P,)`, along the gradient, uphill to the right; None where it is 0.
        gradient_norm: of the objective at the plan.
        plane_offsets: `(Q,)`.
        plane: `(Q, Q)`, along two orthogonal random directions, `[second, first]`.
        minima: `(L,)` int64: how many local minima each line has inside.
        non_finite: how many of all the values are NaN or infinite.
    """

    objective: str
    offsets: Tensor
    lines: Tensor
    gradient_line: Tensor | None
    gradient_norm: float
    plane_offsets: Tensor
    plane: Tensor
    minima: Tensor
    non_finite: int


def landscape(
    setting: Setting,
    actions: Tensor,
    *,
    problem: int = 0,
    reach: float = 0.3,
    lines: int = 6,
    points: int = 121,
    plane_points: int = 31,
    seed: int = 0,
) -> list[Slices]:
    """The landscape of shooting, then of lifting, around the plan and its own rollout's states.

    Actions are not clipped to their bounds: the landscape is the objective's, not the box's.

    Args:
        setting: world model and problems.
        actions: `(T, A)`.
        problem: which problem the plan is for.
        reach: the largest offset, above 0.
        lines: random directions, at least 1.
        points, plane_points: per line and per side of the plane, odd numbers of at least 3.
        seed: of the directions.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """
    actions = checked_actions(setting, actions, plans=1)
    problem = setting.problem(problem)
    if not 0 < reach < float("inf"):
        raise ValueError(f"reach must be finite and above 0, got {reach}")
    if lines < 1:
        raise ValueError(f"lines must be at least 1, got {lines}")
    for name, value in (("points", points), ("plane_points", plane_points)):
        if value < 3 or value % 2 == 0:
            raise ValueError(f"{name} must be an odd number of at least 3, got {value}")
    steps, width = actions.shape[1:]
    _, dtype, _ = setting.precise(width)
    controls = actions.to(dtype)
    half = setting.half_box(width, dtype)
    with torch.no_grad():
        index = torch.tensor([problem], device=actions.device)
        virtual = setting.rollout(controls, index)[:, 1:-1]
    objectives = Objectives(setting, problem, width)
    features = virtual.shape[2]

    def shooting(x: Tensor) -> Tensor:
        return objectives.shooting(half * x.view(-1, steps, width)).square().sum(1)

    def lifted(x: Tensor) -> Tensor:
        states, plans = x.split([virtual.numel(), controls.numel()], dim=1)
        states = states.view(len(x), steps - 1, features)
        return objectives.lifted(states, half * plans.view(-1, steps, width)).square().sum(1)

    in_units = (controls / half).flatten()
    generator = torch.Generator().manual_seed(seed % 2**63)
    grids = [torch.linspace(-reach, reach, n, dtype=dtype) for n in (points, plane_points)]
    return [
        _slices("shooting", shooting, in_units, grids, lines, generator),
        _slices(
            "lifted", lifted, torch.cat([virtual.flatten(), in_units]), grids, lines, generator
        ),
    ]


def _slices(
    objective: str,
    cost: Callable[[Tensor], Tensor],
    x: Tensor,
    grids: list[Tensor],
    lines: int,
    generator: torch.Generator,
) -> Slices:
    with torch.enable_grad():
        at = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cost(at[None]).sum(), at, materialize_grads=True)
    norm = float(gradient.norm())

    def along(directions: Tensor, offsets: Tensor) -> Tensor:
        """Values `(P,)` at `x + sqrt(n) offsets @ u`: offsets `(P, m)`, unit vectors u `(m, n)`."""
        with torch.no_grad():
            parts = offsets.to(x).split(256)  # plans at a time: memory, and nothing else
            root = x.numel() ** 0.5
            return torch.cat([cost(x + root * part @ directions) for part in parts]).double().cpu()

    count = max(lines, 2)
    random = torch.randn(count, x.numel(), generator=generator, dtype=torch.float64).to(x)
    random = random / random.norm(dim=1, keepdim=True)
    offsets, side = grids
    values = torch.stack([along(row[None], offsets[:, None]) for row in random[:lines]])
    gradient_line = None
    if 0 < norm < float("inf"):
        gradient_line = along(gradient[None] / norm, offsets[:, None])
    # Two random ones, made orthogonal; of one variable there is only one direction.
    second = random[1] - (random[1] @ random[0]) * random[0]
    pair = torch.stack([random[0], second / second.norm().clamp(min=1e-30)])
    plane = along(pair, torch.cartesian_prod(side, side).flip(1)).view(len(side), len(side))
    everything = torch.cat([values.flatten(), plane.flatten()])
    if gradient_line is not None:
        everything = torch.cat([everything, gradient_line])
    inside = values[:, 1:-1]
    minima = ((inside < values[:, :-2]) & (inside < values[:, 2:])).sum(1)
    return Slices(
        objective=objective,
        offsets=offsets.double().cpu(),
        lines=values,
        gradient_line=gradient_line,
        gradient_norm=norm,
        plane_offsets=side.double().cpu(),
        plane=plane,
        minima=minima,
        non_finite=int((~everything.isfinite()).sum()),
    )
